/*
 * node_keep.h - what the daemon and its keepers share (see node_proc.h).
 */
#ifndef FVM_CLUSTER_NODE_KEEP_H
#define FVM_CLUSTER_NODE_KEEP_H

#include <stdint.h>

enum { FVM_NODE_KEEP_REPORT_FD = 3 }; /* the keeper writes the line of DIR/pid here, then closes it */

/** Start time of a process in clock ticks since boot (/proc/PID/stat, field 22); 0: no such process. */
uint64_t fvm_node_keep_start_time(int pid);

#endif

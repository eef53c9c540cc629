/*
 * fvm_display.h - a VM's screen and keyboard over its control socket, and its VNC server.
 *
 *   {"cmd":"screenshot","path":F}       -> {"path":F,"width":W,"height":H}   a PNG; F absolute, replaced as a whole
 *   {"cmd":"screenshot","text":true}    -> {"text":"..."}                    characters of a text mode
 *   {"cmd":"sendkey","keys":"ctrl-alt-f2","hold_ms":N} -> {"typed":1}
 *   {"cmd":"type","text":"ls\n"}        -> {"typed":N}                       when the guest's keyboard took the last key
 *
 * Keys go one after another as the guest takes them; a guest that takes none for 10 s fails the request.
 * Thread: loop. Test: tests/e2e/display
 */
#ifndef FVM_CLUSTER_FVM_DISPLAY_H
#define FVM_CLUSTER_FVM_DISPLAY_H

#include "cluster/fvm_run.h"

struct fvm_run_display;

int fvm_display_register(struct fvm_run *run);
/** --display. After the VM is there, before the sandbox. */
int fvm_display_open(struct fvm_run *run, struct fvm_err *err);
void fvm_display_close(struct fvm_run *run);
/** `fvm screenshot|sendkey|type` (fvm_display_client.c); -1: no such command. */
int fvm_display_client_main(int argc, char **argv);

#endif

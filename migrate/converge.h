/*
 * converge.h - when to stop the guest: bandwidth and dirty rate in, a decision out. Pure.
 *
 *   predicted downtime = bytes that would be left / bandwidth + fixed cost (save state, digest, two swaps)
 *
 * Goes to the final phase when the prediction keeps the contract and further rounds no longer buy much; says early when
 * it will not converge, has the guest's writers held back, step by step, if that is allowed; at the deadline does what
 * `on_miss` says.
 */
#ifndef FVM_MIGRATE_CONVERGE_H
#define FVM_MIGRATE_CONVERGE_H

#include "base/types.h"

enum fvm_on_miss { FVM_ON_MISS_CANCEL, FVM_ON_MISS_PAUSE };

struct fvm_converge {
    uint64_t max_downtime_ns;
    uint64_t deadline_ns; /* of the whole migration, from its start; 0: none */
    uint32_t round_limit;
    enum fvm_on_miss on_miss;
    double bandwidth, dirty_rate, fixed_ns; /* bytes/s, bytes/s, ns: EWMA */
    uint64_t predicted_ns, last_predicted_ns;
    uint32_t rounds, stalls;
    bool may_throttle;
    uint64_t write_limit; /* bytes of RAM per second that the guest may dirty from now on; 0: no limit */
    uint64_t told_ns;
};

enum fvm_converge_next { FVM_CONVERGE_ROUND, FVM_CONVERGE_FINAL, FVM_CONVERGE_MISS };

void fvm_converge_init(struct fvm_converge *c, uint64_t max_downtime_ns, uint64_t deadline_ns,
                       enum fvm_on_miss on_miss);
/**
 * A round is over. sent: bytes on the wire and how long that took (0 bytes: no new estimate); dirtied: bytes of guest
 * RAM that changed during it; pending: bytes of guest RAM to send now; compression: wire bytes per RAM byte, 0..1.
 */
enum fvm_converge_next fvm_converge_round(struct fvm_converge *c, uint64_t sent_bytes, uint64_t dirtied_bytes,
                                          uint64_t pending_bytes, double compression, uint64_t round_ns,
                                          uint64_t elapsed_ns);
/**
 * When rounds have stopped helping and the contract is not kept: why, and what is done about it, in one line; at first
 * soon, then every few seconds. NULL: nothing to say.
 */
const char *fvm_converge_says(struct fvm_converge *c, uint64_t elapsed_ns, char *buf, size_t size);

#endif

/*
 * fvm_migrate.h - a VM's process as one end of a migration: five commands on its control socket, and events.
 *
 *   {"cmd":"migrate-key"}                          -> {"public_key": K, "self": N, "record": R}, made at first use
 *   {"cmd":"incoming","self":N,"allow":K, RECORD}  -> {"address": A, "public_key": K}; only after fvm run --incoming
 *   {"cmd":"migrate","self":N,"to_name":N,"to_addr":A,"to_key":K, RECORD,
 *     "max_downtime_ms","deadline_ms","rate_limit_bytes": integers, "on_miss":"cancel|pause", "no_throttle": true,
 *     "dry_run","verify_all": bool}                -> {"started":true}
 *   {"cmd":"migrate-status"}                       -> the last event, or {"phase":"none"}
 *   {"cmd":"migrate-cancel"}                       -> {"asked":true}
 *
 * RECORD says where the hand-over record is: "store":URL,"vm":NAME (a cluster's), or "record":"file:PATH" (two
 * processes on one machine; who comes first makes the file, for "owner":N). Without a cluster, "self" and "record" are
 * those that migrate-key tells.
 *
 * Events to every client: {"event":"migration","phase":...} while it goes on, at the end one
 * {"event":"migration-done","outcome":"moved|stayed|unknown","error":TEXT, ...report}. A source whose guest moved ends
 * with status 0. Units are in the names.
 *
 * FVM_MIGRATE_FAULT in the environment damages what is sent, for tests: corrupt_batch=N, drop_batch=N, corrupt_ram,
 * die_in_phase=NAME, separated by commas.
 *
 * Thread: loop. Test: tests/e2e/cluster-migrate, cluster-faults, migrate-bytes
 */
#ifndef FVM_CLUSTER_FVM_MIGRATE_H
#define FVM_CLUSTER_FVM_MIGRATE_H

#include "cluster/fvm_run.h"

struct fvm_run_migration;

int fvm_migrate_register(struct fvm_run *run);
/** May an operator let the guest run? Not while a migration decides about it: there could be two of it. */
int fvm_migrate_may_run(const struct fvm_run *run, struct fvm_err *err);
/** `fvm migrate` (fvm_migrate_client.c). */
int fvm_migrate_client_main(int argc, char **argv);
/** Cancels what goes on and turns the loop until its threads are gone. Before the VM is destroyed. */
void fvm_migrate_close(struct fvm_run *run);

#endif

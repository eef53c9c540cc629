/*
 * load.c - the other modes: watch for pauses, beat, dirty memory at a rate, read a block device.
 *
 * What a guest does while it is moved. It names the pauses that its own clock shows; as that clock may stand still in a
 * pause, it can also beat, for somebody outside who has a clock.
 */
#include "micro.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

void micro_mode_jitter(double seconds, double min_ms)
{
    double first = micro_now(), before = first, worst = 0, sum = 0;
    long count = 0;
    while (before - first < seconds) {
        double after = micro_now(), gap = (after - before) * 1e3;
        if (gap > min_ms) {
            struct timespec wall;
            clock_gettime(CLOCK_REALTIME, &wall);
            printf("gap %.1f ms at +%.3f s (wall %ld.%03ld)\n", gap, after - first, (long)wall.tv_sec,
                   wall.tv_nsec / 1000000);
            fflush(stdout);
            count++;
            sum += gap;
            worst = gap > worst ? gap : worst;
            after = micro_now();
        }
        before = after;
    }
    printf("jitter gaps %ld worst %.1f ms sum %.1f ms\n", count, worst, sum);
}

void micro_mode_beat(double interval_ms, double seconds)
{
    struct timespec pause = {0, (long)(interval_ms * 1e6)};
    double first = micro_now();
    for (long n = 0; micro_now() - first < seconds; n++) {
        printf("beat %ld\n", n);
        fflush(stdout);
        nanosleep(&pause, NULL);
    }
}

struct dirty { /* one word in each page of a buffer, round and round */
    char *p;
    size_t pages, next;
    uint64_t done;                /* pages written */
    uint64_t told_done;           /* when the last rate was printed */
    double start, told, told_due; /* seconds; moved on by every pause, which is not caught up */
    double worst_ms;
};

static void dirty_fill(struct micro *m, struct dirty *d, size_t mib, int incompressible)
{
    size_t words = mib * MICRO_MIB / sizeof(uint64_t);
    d->p = micro_map(mib * MICRO_MIB);
    d->pages = mib * MICRO_MIB / MICRO_PAGE;
    madvise(d->p, mib * MICRO_MIB, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < words; i++)
        ((uint64_t *)d->p)[i] = incompressible ? micro_random(m) : (i / 512) * 0x9e3779b97f4a7c15ull;
    printf("dirty ready %zu MiB\n", mib);
    fflush(stdout);
}

static void dirty_burst(struct dirty *d, double wanted)
{
    for (int burst = 0; (double)d->done < wanted && burst < 256; burst++) {
        *(volatile uint64_t *)(d->p + d->next * MICRO_PAGE) = d->done++;
        d->next = d->next + 1 == d->pages ? 0 : d->next + 1;
    }
}

static void dirty_note_pause(struct dirty *d, double before, double after)
{
    double ms = (after - before) * 1e3;
    d->worst_ms = ms > d->worst_ms ? ms : d->worst_ms;
    if (ms <= 20)
        return;
    printf("gap %.1f ms at +%.3f s\n", ms, after - d->start);
    fflush(stdout);
    d->start += after - before;
    d->told += after - before;
    d->told_due += after - before;
}

static void dirty_tell_rate(struct dirty *d, double now)
{
    if (now < d->told_due)
        return;
    printf("rate %.0f MiB/s\n", (double)(d->done - d->told_done) / 256.0 / (now - d->told));
    fflush(stdout);
    d->told = now;
    d->told_due += 1;
    d->told_done = d->done;
}

void micro_mode_dirty(struct micro *m, size_t mib, double mib_per_s, double seconds, int incompressible)
{
    struct dirty d = {.next = 0};
    dirty_fill(m, &d, mib, incompressible);
    double before = micro_now();
    d.start = d.told = before;
    d.told_due = before + 1;
    while (before - d.start < seconds) {
        double wanted = mib_per_s > 0 ? (before - d.start) * mib_per_s * 256 : 1e18;
        dirty_burst(&d, wanted);
        if (mib_per_s > 0 && (double)d.done >= wanted)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        double after = micro_now();
        dirty_note_pause(&d, before, after);
        dirty_tell_rate(&d, after);
        before = after;
    }
    printf("dirty done %.0f MiB worst gap %.1f ms\n", (double)d.done / 256.0, d.worst_ms);
}

int micro_mode_blk(struct micro *m, const char *device)
{
    int fd = open(device, O_RDONLY | O_DIRECT), r = 1;
    off_t bytes = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
    void *buffer = NULL;
    if (bytes < (off_t)MICRO_MIB || posix_memalign(&buffer, MICRO_PAGE, MICRO_MIB)) {
        fprintf(stderr, "micro: cannot read 1 MiB of %s\n", device);
        goto out;
    }
    long n = micro_times(m, 4000);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        off_t at = (off_t)(micro_random(m) % (uint64_t)(bytes / MICRO_PAGE)) * MICRO_PAGE;
        if (pread(fd, buffer, MICRO_PAGE, at) != MICRO_PAGE)
            goto out;
    }
    micro_print_us("blk_rand4k_qd1", start, n);
    n = micro_times(m, 128);
    start = micro_now();
    for (long i = 0; i < n; i++)
        if (pread(fd, buffer, MICRO_MIB, (i % (bytes / (off_t)MICRO_MIB)) * (off_t)MICRO_MIB) != (ssize_t)MICRO_MIB)
            goto out;
    micro_print_rate("blk_seq1M", start, (double)n * (double)MICRO_MIB, "MB/s");
    r = 0;
out:
    free(buffer);
    if (fd >= 0)
        close(fd);
    return r;
}

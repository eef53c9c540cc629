/*
 * process.c - processes, threads and paging: fork, exec, page faults, changes of mappings.
 *
 * Each needs many changes of page tables and address spaces, which a machine without nested paging must follow.
 */
#include "micro.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

void micro_bench_fork(struct micro *m)
{
    long n = micro_times(m, 3000);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        pid_t child = fork();
        if (!child)
            _exit(0);
        waitpid(child, NULL, 0);
    }
    micro_print_us("fork_exit", start, n);
}

static void exec_row(const char *row, const char *path, char *const argv[], long n)
{
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        pid_t child = fork();
        if (!child) {
            execv(path, argv);
            _exit(127);
        }
        int status = -1;
        waitpid(child, &status, 0);
        if (status)
            micro_wrong(row);
    }
    micro_print_us(row, start, n);
}

void micro_bench_exec(struct micro *m)
{
    char self[4096], path[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length < 0)
        micro_wrong("fork_exec_static");
    self[length] = 0;
    exec_row("fork_exec_static", self, (char *[]){"micro", "true", NULL}, micro_times(m, 1000));
    snprintf(path, sizeof(path), "%s/true", m->programs);
    exec_row("fork_exec_bintrue", path, (char *[]){"true", NULL}, micro_times(m, 700));
    snprintf(path, sizeof(path), "%s/sh", m->programs);
    exec_row("fork_exec_sh", path, (char *[]){"sh", "-c", ":", NULL}, micro_times(m, 500));
}

static void *thread_nothing(void *arg)
{
    return arg;
}

void micro_bench_thread(struct micro *m)
{
    long n = micro_times(m, 10000);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, thread_nothing, NULL))
            micro_wrong("thread_create_join");
        pthread_join(thread, NULL);
    }
    micro_print_us("thread_create_join", start, n);
}

static void *map_small_pages(size_t bytes)
{
    void *p = micro_map(bytes);
    madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

/* Seconds to write one byte in each page. */
static double touch_all(char *p, size_t bytes, char value)
{
    double start = micro_now();
    for (size_t at = 0; at < bytes; at += MICRO_PAGE)
        p[at] = value;
    return micro_now() - start;
}

void micro_bench_fault(struct micro *m)
{
    size_t bytes = 64 * MICRO_MIB;
    long n = micro_times(m, 4);
    double touch = 0, unmap = 0, pages = (double)n * (double)(bytes / MICRO_PAGE);
    for (long i = 0; i < n; i++) {
        char *p = map_small_pages(bytes);
        touch += touch_all(p, bytes, 1);
        double start = micro_now();
        munmap(p, bytes);
        unmap += micro_now() - start;
    }
    micro_print("fault_anon", touch / pages * 1e9, "ns");
    micro_print("munmap_page", unmap / pages * 1e9, "ns");
}

/* Reading a mapped file: the kernel maps around the fault, about one fault in 16 pages. */
void micro_bench_faultfile(struct micro *m)
{
    char name[] = "/tmp/microXXXXXX";
    size_t bytes = 16 * MICRO_MIB;
    int fd = mkstemp(name);
    char *data = calloc(1, bytes);
    unlink(name);
    if (fd < 0 || !data || write(fd, data, bytes) != (ssize_t)bytes)
        micro_wrong("fault_file");
    free(data);
    long n = micro_times(m, 8);
    double seconds = 0;
    uint64_t sum = 0;
    for (long i = 0; i < n; i++) {
        char *p = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            micro_wrong("fault_file");
        double start = micro_now();
        for (size_t at = 0; at < bytes; at += MICRO_PAGE)
            sum += (unsigned char)p[at];
        seconds += micro_now() - start;
        munmap(p, bytes);
    }
    micro_use(sum);
    close(fd);
    micro_print("fault_file", seconds / (double)n / (double)(bytes / MICRO_PAGE) * 1e9, "ns/page");
}

void micro_bench_cow(struct micro *m)
{
    size_t bytes = 32 * MICRO_MIB;
    char *p = map_small_pages(bytes);
    int result[2];
    memset(p, 1, bytes);
    if (pipe(result))
        micro_wrong("fault_cow");
    long n = micro_times(m, 3);
    double sum = 0;
    for (long i = 0; i < n; i++) {
        double seconds;
        pid_t child = fork();
        if (!child) {
            seconds = touch_all(p, bytes, 2);
            _exit(write(result[1], &seconds, sizeof(seconds)) != sizeof(seconds));
        }
        if (read(result[0], &seconds, sizeof(seconds)) != sizeof(seconds))
            micro_wrong("fault_cow");
        sum += seconds;
        waitpid(child, NULL, 0);
    }
    micro_print("fault_cow", sum / (double)n / (double)(bytes / MICRO_PAGE) * 1e9, "ns");
    close(result[0]);
    close(result[1]);
    munmap(p, bytes);
}

void micro_bench_mprotect(struct micro *m)
{
    volatile char *p = micro_map(4 * MICRO_PAGE);
    p[0] = 1;
    long n = micro_times(m, 3e5);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        mprotect((void *)p, MICRO_PAGE, PROT_READ);
        mprotect((void *)p, MICRO_PAGE, PROT_READ | PROT_WRITE);
        p[0] = (char)i;
    }
    micro_print_ns("mprotect_pair", start, n);
    munmap((void *)p, 4 * MICRO_PAGE);

    n = micro_times(m, 2e5);
    start = micro_now();
    for (long i = 0; i < n; i++) {
        char *q = micro_map(4 * MICRO_PAGE);
        q[0] = 1;
        munmap(q, 4 * MICRO_PAGE);
    }
    micro_print_ns("mmap_touch_munmap", start, n);
}

/*
 * kernel.c - what it costs to enter the guest's kernel: system calls, clocks, trapped instructions, signals, waits.
 *
 * Where a machine has no hardware help, these are the transitions between its privilege levels.
 */
#include "micro.h"

#include <cpuid.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

void micro_bench_syscall(struct micro *m)
{
    long n = micro_times(m, 3e6);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        syscall(SYS_getppid);
    micro_print_ns("syscall_getppid", start, n);
}

void micro_bench_read(struct micro *m)
{
    int fd = open("/dev/zero", O_RDONLY);
    char c;
    long n = micro_times(m, 2e6);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        if (read(fd, &c, 1) != 1)
            micro_wrong("syscall_read1");
    micro_print_ns("syscall_read1", start, n);
    close(fd);
}

void micro_bench_access(struct micro *m)
{
    long n = micro_times(m, 5e5);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        if (access("/proc", R_OK))
            micro_wrong("syscall_access");
    micro_print_ns("syscall_access", start, n);
}

void micro_bench_clock(struct micro *m)
{
    struct timespec t;
    long n = micro_times(m, 1e7);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        clock_gettime(CLOCK_MONOTONIC, &t);
    micro_print_ns("clock_gettime", start, n);
}

void micro_bench_rdtsc(struct micro *m)
{
    uint64_t sum = 0;
    long n = micro_times(m, 1e7);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        sum += __builtin_ia32_rdtsc();
    micro_use(sum);
    micro_print_ns("rdtsc", start, n);
}

void micro_bench_cpuid(struct micro *m)
{
    unsigned a, b, c, d, sum = 0;
    long n = micro_times(m, 1e4);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        __cpuid_count(0, 0, a, b, c, d);
        sum += a + b + c + d;
    }
    micro_use(sum);
    micro_print_ns("cpuid", start, n);
}

/* What the signal handler, which gets no argument of ours, must know. */
static char *segv_page;
static volatile long segv_count;

static void on_segv(int signal_number)
{
    (void)signal_number;
    segv_count++;
    mprotect(segv_page, MICRO_PAGE, PROT_READ | PROT_WRITE);
}

void micro_bench_signal(struct micro *m)
{
    struct sigaction action = {.sa_handler = on_segv};
    sigaction(SIGSEGV, &action, NULL);
    segv_page = micro_map(MICRO_PAGE);
    long n = micro_times(m, 1e5);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        mprotect(segv_page, MICRO_PAGE, PROT_READ);
        *(volatile char *)segv_page = 1;
    }
    micro_print_ns("segv_handler", start, n);
    signal(SIGSEGV, SIG_DFL);
    munmap(segv_page, MICRO_PAGE);
    if (segv_count < n)
        micro_wrong("segv_handler");
}

/* Stay on the processor we are on; returns what was allowed before. */
static cpu_set_t pin_here(void)
{
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof(one), &one);
    return before;
}

static void pipe_echo(int from, int to, long n)
{
    char c;
    for (long i = 0; i < n; i++)
        if (read(from, &c, 1) != 1 || write(to, &c, 1) != 1)
            _exit(1);
    _exit(0);
}

void micro_bench_pipe(struct micro *m)
{
    int there[2], back[2];
    char c = 0;
    long n = micro_times(m, 1e5);
    if (pipe(there) || pipe(back))
        micro_wrong("pipe_pingpong_proc");
    cpu_set_t before = pin_here();
    pid_t child = fork();
    if (!child)
        pipe_echo(there[0], back[1], n);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
            micro_wrong("pipe_pingpong_proc");
    micro_print_us("pipe_pingpong_proc", start, n);
    waitpid(child, NULL, 0);
    for (int i = 0; i < 2; i++) {
        close(there[i]);
        close(back[i]);
    }
    sched_setaffinity(0, sizeof(before), &before);
}

struct pingpong { /* two threads and the word that each waits for */
    int ping, pong;
    long n;
};

static void futex_wait(int *word, int value)
{
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, !value, NULL, NULL, 0);
}

static void futex_post(int *word, int value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *futex_echo(void *arg)
{
    struct pingpong *p = arg;
    for (long i = 0; i < p->n; i++) {
        futex_wait(&p->ping, !(i & 1));
        futex_post(&p->pong, !(i & 1));
    }
    return NULL;
}

static void futex_row(const char *row, long n)
{
    struct pingpong p = {.n = n};
    pthread_t thread;
    if (pthread_create(&thread, NULL, futex_echo, &p))
        micro_wrong(row);
    double start = micro_now();
    for (long i = 0; i < n; i++) {
        futex_post(&p.ping, !(i & 1));
        futex_wait(&p.pong, !(i & 1));
    }
    micro_print_us(row, start, n);
    pthread_join(thread, NULL);
}

void micro_bench_futex(struct micro *m)
{
    long n = micro_times(m, 1e5);
    cpu_set_t before = pin_here();
    futex_row("futex_pingpong_1cpu", n);
    sched_setaffinity(0, sizeof(before), &before);
    if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
        futex_row("futex_pingpong_ncpu", n);
    else
        micro_skip("futex_pingpong_ncpu");
}

void micro_bench_sleep(struct micro *m)
{
    struct timespec pause = {0, 50000};
    long n = micro_times(m, 2000);
    double start = micro_now();
    for (long i = 0; i < n; i++)
        nanosleep(&pause, NULL);
    micro_print_us("nanosleep_50us", start, n);
}

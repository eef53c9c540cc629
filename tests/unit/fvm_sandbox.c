/*
 * fvm_sandbox.c - the cage holds: each case runs in a child that enters it and then tries something.
 *
 * The status of a child says what happened: 0 done, 3 the call failed politely, 77 the handler named a forbidden call.
 */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "cluster/fvm_sandbox.h"

static int in_cage(enum fvm_sandbox_mode mode, int (*act)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct fvm_err err = {0};
        close(STDERR_FILENO);
        open("/dev/null", O_WRONLY);
        if (fvm_sandbox_enter(mode, &err))
            _exit(99);
        _exit(act());
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int polite(long r)
{
    return r < 0 ? 3 : 0;
}

static int do_exec(void)
{
    char *argv[] = {"true", NULL};
    return polite(execv("/bin/true", argv));
}

static int do_fork(void)
{
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0)
        _exit(0);
    return polite(pid);
}

static int do_process_clone(void)
{
    pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return polite(pid);
}

static int do_ptrace(void)
{
    return polite(ptrace(PTRACE_TRACEME, 0, 0, 0));
}

static int do_unshare(void)
{
    return polite(unshare(CLONE_NEWUSER));
}

static int do_kill_parent(void)
{
    return polite(kill(getppid(), 0));
}

static int do_type_into_shell(void)
{
    return polite(ioctl(STDIN_FILENO, TIOCSTI, "x"));
}

static int do_raw_socket(void)
{
    return polite(socket(AF_PACKET, SOCK_RAW, 0));
}

static int do_raise_limit(void)
{
    return polite(syscall(SYS_prlimit64, 0, 7, "0123456789abcdef", NULL));
}

static void *idle(void *arg)
{
    return arg;
}

static void *exec_in_thread(void *arg)
{
    pthread_barrier_wait(arg);
    pthread_barrier_wait(arg);
    _exit(do_exec());
}

static int ordinary(void) /* what a VM does all day */
{
    pthread_t thread;
    void *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC), s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char text[4096] = "";
    if (code == MAP_FAILED || fd < 0 || s < 0 || pthread_create(&thread, NULL, idle, NULL) ||
        pthread_join(thread, NULL))
        return 1;
    if (read(fd, text, sizeof(text) - 1) <= 0)
        return 2;
    bool caged = strstr(text, "NoNewPrivs:\t1") && strstr(text, "Seccomp:\t2");
    bool weak = strstr(text, "CapEff:\t0000000000000000") && strstr(text, "CapPrm:\t0000000000000000");
    return caged && weak ? 0 : 4;
}

static void forbidden(void)
{
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_exec), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_fork), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_process_clone), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_ptrace), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_unshare), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_kill_parent), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_type_into_shell), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_raw_socket), 77);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, do_raise_limit), 77);
}

static void allowed(void)
{
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_ON, ordinary), 0);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_OFF, do_exec), 0);
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_LOG, do_fork), 0); /* only told */
}

static int thread_from_before(void)
{
    static pthread_barrier_t barrier;
    pthread_t thread;
    struct fvm_err err = {0};
    pthread_barrier_init(&barrier, NULL, 2);
    if (pthread_create(&thread, NULL, exec_in_thread, &barrier))
        return 1;
    pthread_barrier_wait(&barrier); /* it runs */
    if (fvm_sandbox_enter(FVM_SANDBOX_ON, &err))
        return 2;
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
    return 5;
}

static void all_threads(void)
{
    CU_ASSERT_EQUAL(in_cage(FVM_SANDBOX_OFF, thread_from_before), 77);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("fvm_sandbox", NULL, NULL);
    CU_add_test(s, "forbidden", forbidden);
    CU_add_test(s, "allowed", allowed);
    CU_add_test(s, "all_threads", all_threads);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}

/*
 * node_keep.c - the keeper: one small process per VM that waits for it and writes down how it ended (see node_proc.h).
 *
 * It holds no descriptor of the daemon but the report pipe, and ignores the signals of terminals and service managers:
 * it ends when its child does. The child gets the default signals back.
 *
 * Invariant: DIR/pid is complete before the child's first instruction, DIR/exit before the keeper is gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster/dir.h"
#include "cluster/node_keep.h"
#include "cluster/node_proc.h"

static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGUSR1, SIGUSR2, SIGTSTP, SIGTTIN, SIGTTOU};

uint64_t fvm_node_keep_start_time(int pid)
{
    char path[64], text[2048];
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;
    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    char *p = strrchr(text, ')'); /* a process may have blanks and brackets in its name */
    unsigned long long start = 0;
    if (!p ||
        sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) != 1)
        return 0;
    return start;
}

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[4200];
    snprintf(path, sizeof(path), "%.4000s/%s", dir, name);
    struct fvm_err err = {0};
    if (fvm_dir_write_file(path, text, strlen(text), 0600, &err))
        fprintf(stderr, "fvm-node keeper: %s\n", err.text);
}

/* The daemon may be shielded from the out-of-memory killer; its guests are not. */
static void unshield(void)
{
    char text[16] = "";
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, text, sizeof(text) - 1) > 0 && text[0] == '-' && pwrite(fd, "0", 1, 0) < 0)
        fprintf(stderr, "fvm-node keeper: oom_score_adj: %s\n", strerror(errno));
    close(fd);
}

static void child(char *const *argv, int go)
{
    char byte;
    unshield();
    for (size_t i = 0; i < FVM_ARRAY_SIZE(ignored); i++)
        signal(ignored[i], SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (read(go, &byte, 1) != 1)
        _exit(127); /* the keeper could not write down who we are */
    execv(argv[0], argv);
    fprintf(stderr, "fvm-node: cannot start %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

void fvm_node_proc_keep(const char *dir, char *const *argv)
{
    int go[2];
    char text[160];
    prctl(PR_SET_NAME, "fvm-keep");
    for (size_t i = 0; i < FVM_ARRAY_SIZE(ignored); i++)
        signal(ignored[i], SIG_IGN);
    if (pipe2(go, O_CLOEXEC))
        _exit(1);
    pid_t pid = fork();
    if (pid == 0)
        child(argv, go[0]);
    if (pid < 0) {
        fprintf(stderr, "fvm-node: cannot start a process: %s\n", strerror(errno));
        _exit(1);
    }
    snprintf(text, sizeof(text), "%d %llu %d %llu\n", (int)pid, (unsigned long long)fvm_node_keep_start_time(pid),
             (int)getpid(), (unsigned long long)fvm_node_keep_start_time(getpid()));
    write_file(dir, "pid", text);
    if (write(FVM_NODE_KEEP_REPORT_FD, text, strlen(text)) < 0) {
        /* the daemon died meanwhile; it will read the file */
    }
    close(FVM_NODE_KEEP_REPORT_FD);
    if (write(go[1], "g", 1) != 1)
        kill(pid, SIGKILL);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        snprintf(text, sizeof(text), "signal %d\n", WTERMSIG(status));
    else
        snprintf(text, sizeof(text), "exit %d\n", WEXITSTATUS(status));
    write_file(dir, "exit", text);
    _exit(0);
}

/*
 * node_proc.c - starting, adopting and watching a VM's process through its keeper (see node_proc.h).
 *
 * Invariant: `ended` is called once, and only after both the VM's process and its keeper are gone, so DIR/exit is as
 * complete as it will ever be. Processes are held by pidfd, checked against the recorded start time after opening: a
 * recycled pid is never signalled.
 */
#include "cluster/node_proc.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster/dir.h"
#include "cluster/node_keep.h"

struct fvm_node_proc {
    char dir[4096];
    int pid, keeper;
    int fd[2]; /* pidfds of VM and keeper, -1: gone */
    struct fvm_loop *loop;
    struct fvm_loop_io *io[2];
    fvm_node_proc_ended ended;
    void *ctx;
};

static void path_of(const char *dir, const char *name, char *buf, size_t size)
{
    snprintf(buf, size, "%.4000s/%s", dir, name);
}

static int open_pidfd(int pid, uint64_t start)
{
    if (pid <= 0)
        return -1;
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0 && fvm_node_keep_start_time(pid) != start) {
        close(fd);
        return -1;
    }
    return fd;
}

static void remove_files(const char *dir)
{
    char path[4200];
    path_of(dir, "pid", path, sizeof(path));
    unlink(path);
    path_of(dir, "exit", path, sizeof(path));
    unlink(path);
}

static struct fvm_node_proc_end read_end(const char *dir)
{
    struct fvm_node_proc_end end = {.how = FVM_NODE_PROC_UNKNOWN};
    char path[4200], *text = NULL;
    path_of(dir, "exit", path, sizeof(path));
    if (fvm_dir_read_file(path, 256, &text, NULL, NULL))
        return end;
    if (sscanf(text, "exit %d", &end.value) == 1)
        end.how = FVM_NODE_PROC_EXIT;
    else if (sscanf(text, "signal %d", &end.value) == 1)
        end.how = FVM_NODE_PROC_SIGNAL;
    free(text);
    return end;
}

static void drop(struct fvm_node_proc *p, int i)
{
    if (p->io[i])
        fvm_loop_io_remove(&p->io[i]);
    if (p->fd[i] >= 0)
        close(p->fd[i]);
    p->fd[i] = -1;
}

static void on_end(void *ctx, int fd, unsigned revents)
{
    struct fvm_node_proc *p = ctx;
    (void)revents;
    if (fd == p->fd[1])
        waitpid(p->keeper, NULL, WNOHANG); /* ours, unless we adopted it */
    drop(p, fd == p->fd[1]);
    if (p->fd[0] >= 0 || p->fd[1] >= 0)
        return;
    struct fvm_node_proc_end end = read_end(p->dir);
    remove_files(p->dir);
    p->ended(p->ctx, &end);
}

static int watch(struct fvm_loop *loop, const char *dir, const char *line, fvm_node_proc_ended ended, void *ctx,
                 struct fvm_node_proc **ret_proc, struct fvm_err *err)
{
    unsigned long long start, keeper_start;
    struct fvm_node_proc *p = calloc(1, sizeof(*p));
    if (!p)
        return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "out of memory");
    *p = (struct fvm_node_proc){.loop = loop, .ended = ended, .ctx = ctx, .fd = {-1, -1}};
    snprintf(p->dir, sizeof(p->dir), "%s", dir);
    if (sscanf(line, "%d %llu %d %llu", &p->pid, &start, &p->keeper, &keeper_start) != 4) {
        free(p);
        return fvm_err_set(err, FVM_EBADIMAGE, 0, "cluster", "%s/pid: not written by fvm-node", dir);
    }
    p->fd[0] = open_pidfd(p->pid, start);
    p->fd[1] = open_pidfd(p->keeper, keeper_start);
    if (p->fd[0] < 0 && p->fd[1] < 0) {
        free(p);
        return FVM_ENOENT;
    }
    for (int i = 0; i < 2; i++)
        if (p->fd[i] >= 0 && fvm_loop_io_add(loop, p->fd[i], FVM_LOOP_IN, on_end, p, &p->io[i])) {
            fvm_node_proc_destroy(&p);
            return fvm_err_set(err, FVM_ENOMEM, 0, "cluster", "%s: cannot watch the VM's process", dir);
        }
    *ret_proc = p;
    return 0;
}

void fvm_node_proc_destroy(struct fvm_node_proc **proc_p)
{
    struct fvm_node_proc *p = *proc_p;
    *proc_p = NULL;
    if (!p)
        return;
    drop(p, 0);
    drop(p, 1);
    free(p);
}

int fvm_node_proc_pid(const struct fvm_node_proc *proc) { return proc->pid; }

int fvm_node_proc_kill(struct fvm_node_proc *proc, int signo)
{
    if (proc->fd[0] < 0)
        return FVM_ENOENT;
    return syscall(SYS_pidfd_send_signal, proc->fd[0], signo, NULL, 0) ? fvm_err_from_errno(errno) : 0;
}

/* ---- starting ---- */

/* In the forked child: become the keeper. Only async-signal-safe calls: the daemon has threads. */
static void become_keeper(const char *log, int report, char *const *argv)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    int null = open("/dev/null", O_RDWR);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (null < 0 || out < 0 || dup2(report, 64) < 0)
        _exit(126);
    dup2(null, 0);
    dup2(out, 1);
    dup2(out, 2);
    dup2(64, FVM_NODE_KEEP_REPORT_FD);
    syscall(SYS_close_range, FVM_NODE_KEEP_REPORT_FD + 1, ~0u, 0);
    execv("/proc/self/exe", argv);
    _exit(126);
}

/* The keeper's first line; it comes within milliseconds or not at all. */
static int read_report(int fd, char *line, size_t size)
{
    size_t len = 0;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, 5000);
        if (n < 0 && errno == EINTR)
            continue;
        ssize_t got = n > 0 ? read(fd, line + len, size - 1 - len) : -1;
        if (got <= 0)
            break;
        len += (size_t)got;
        if (memchr(line, '\n', len))
            break;
    }
    line[len] = 0;
    return len ? 0 : FVM_EIO;
}

int fvm_node_proc_spawn(struct fvm_loop *loop, const char *dir, char *const *argv, fvm_node_proc_ended ended, void *ctx,
                        struct fvm_node_proc **ret_proc, struct fvm_err *err)
{
    char log[4200], line[160];
    char *args[256] = {"fvm-node", "--keep", (char *)(uintptr_t)dir};
    int report[2];
    size_t n = 3;
    for (size_t i = 0; argv[i]; i++) {
        if (n + 1 >= FVM_ARRAY_SIZE(args))
            return fvm_err_set(err, FVM_EINVAL, 0, "cluster", "a VM with too many disks or networks");
        args[n++] = argv[i];
    }
    remove_files(dir);
    path_of(dir, "log", log, sizeof(log));
    if (pipe2(report, O_CLOEXEC))
        return fvm_err_set(err, fvm_err_from_errno(errno), errno, "cluster", "cannot start a process: %s",
                           strerror(errno));
    pid_t pid = fork();
    if (pid == 0)
        become_keeper(log, report[1], args);
    int sys = errno;
    close(report[1]);
    int rc = 0;
    if (pid < 0)
        rc = fvm_err_set(err, fvm_err_from_errno(sys), sys, "cluster", "cannot start a process: %s", strerror(sys));
    else if (read_report(report[0], line, sizeof(line)))
        rc = fvm_err_set(err, FVM_EIO, 0, "cluster", "cannot start the VM's keeper (is %s writable?)", log);
    close(report[0]);
    if (!rc)
        rc = watch(loop, dir, line, ended, ctx, ret_proc, err);
    if (rc == FVM_ENOENT) /* it ended before we could look at it */
        rc = fvm_err_set(err, FVM_EIO, 0, "cluster", "the VM's process ended at once: see %s", log);
    if (rc && pid > 0)
        waitpid(pid, NULL, WNOHANG);
    return rc;
}

int fvm_node_proc_adopt(struct fvm_loop *loop, const char *dir, fvm_node_proc_ended ended, void *ctx,
                        struct fvm_node_proc **ret_proc, struct fvm_node_proc_end *ret_end, struct fvm_err *err)
{
    char path[4200], *line = NULL;
    path_of(dir, "pid", path, sizeof(path));
    int rc = fvm_dir_read_file(path, 256, &line, NULL, err);
    if (rc == FVM_ENOENT)
        *ret_end = (struct fvm_node_proc_end){.how = FVM_NODE_PROC_EXIT};
    if (rc)
        return rc;
    rc = watch(loop, dir, line, ended, ctx, ret_proc, err);
    free(line);
    if (rc == FVM_ENOENT) {
        *ret_end = read_end(dir);
        remove_files(dir);
        return fvm_err_set(err, FVM_ENOENT, 0, "cluster", "%s: its process has ended", dir);
    }
    return rc;
}

void fvm_node_proc_last_words(const char *dir, char *buf, size_t size)
{
    char path[4200], text[1025];
    buf[0] = 0;
    path_of(dir, "log", path, sizeof(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    ssize_t n = pread(fd, text, sizeof(text) - 1, end > 1024 ? end - 1024 : 0);
    close(fd);
    if (n <= 0)
        return;
    text[n] = 0;
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        text[--n] = 0;
    char *line = strrchr(text, '\n');
    line = line ? line + 1 : text;
    if (strncmp(line, "fvm: ", 5) == 0)
        line += 5;
    for (char *p = line; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    snprintf(buf, size, "%s", line);
}

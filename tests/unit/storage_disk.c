/* storage: bytes come back, limits and modes are kept, two writers never both get in, epochs, what probe says. */
#include <CUnit/Basic.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "storage/storage.h"

#define MIB (1u << 20)

static char dir[64];
static struct fvm_loop *loop;

struct result {
    int calls, status;
};

static void done(void *ctx, int status)
{
    struct result *r = ctx;
    r->calls++;
    r->status = status;
}

/* One turn at a time until `r` is called, at most ten seconds. */
static int wait_for(struct result *r)
{
    uint64_t end = fvm_now_ns() + 10000000000ull;
    while (!r->calls && fvm_now_ns() < end)
        fvm_loop_turn(loop, 100000000);
    CU_ASSERT_EQUAL(r->calls, 1);
    return r->status;
}

static char *make_file(const char *name, off_t bytes)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CU_ASSERT_FATAL(fd >= 0 && ftruncate(fd, bytes) == 0);
    close(fd);
    return path;
}

static struct fvm_disk *open_disk(struct fvm_disk_options opt)
{
    struct fvm_err err = {0};
    struct fvm_disk *disk = NULL;
    int r = fvm_disk_open(loop, &opt, &disk, &err);
    if (r < 0)
        fprintf(stderr, "open: %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(r, 0);
    return disk;
}

static int transfer(struct fvm_disk *disk, bool write, uint64_t offset, struct iovec *iov, int count)
{
    struct result r = {0};
    if (write)
        fvm_disk_writev(disk, offset, iov, count, done, &r);
    else
        fvm_disk_readv(disk, offset, iov, count, done, &r);
    CU_ASSERT_EQUAL(r.calls, 0); /* never from inside the call */
    return wait_for(&r);
}

static int move(struct fvm_disk *disk, bool write, uint64_t offset, void *buf, size_t len)
{
    struct iovec iov = {buf, len};
    return transfer(disk, write, offset, &iov, 1);
}

static void test_bytes(void)
{
    static uint8_t out[700 * 512], in[700 * 512];
    struct iovec many[700], two[2] = {{in, 1536 + 7}, {in + 1536 + 7, sizeof(in) - 1536 - 7}};
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = make_file("bytes", MIB)});
    struct result r = {0};
    CU_ASSERT_EQUAL(fvm_disk_bytes(disk), MIB);
    for (size_t i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i * 31 + i / 251);
    for (int i = 0; i < 700; i++) /* more than one preadv takes */
        many[i] = (struct iovec){out + 512 * i, 512};
    CU_ASSERT_EQUAL(transfer(disk, true, 4096, many, 700), 0);
    CU_ASSERT_EQUAL(transfer(disk, false, 4096, two, 2), 0);
    CU_ASSERT_EQUAL(memcmp(in, out, sizeof(in)), 0);
    fvm_disk_flush(disk, done, &r);
    CU_ASSERT_EQUAL(wait_for(&r), 0);

    r.calls = 0;
    fvm_disk_discard(disk, 8192, 4096, true, done, &r);
    CU_ASSERT_EQUAL(wait_for(&r), 0);
    CU_ASSERT_EQUAL(move(disk, false, 4096, in, 12288), 0);
    CU_ASSERT_EQUAL(memcmp(in, out, 4096), 0);
    CU_ASSERT_TRUE(in[4096] == 0 && !memcmp(in + 4096, in + 4097, 4095));
    CU_ASSERT_EQUAL(memcmp(in + 8192, out + 8192, 4096), 0);

    CU_ASSERT_EQUAL(move(disk, false, MIB - 512, in, 1024), FVM_EINVAL);
    CU_ASSERT_EQUAL(move(disk, true, UINT64_MAX - 511, in, 512), FVM_EINVAL);
    CU_ASSERT_EQUAL(move(disk, true, 100, in, 512), FVM_EINVAL);
    CU_ASSERT_EQUAL(move(disk, true, 0, in, 100), FVM_EINVAL);
    fvm_disk_close(&disk);
    CU_ASSERT_PTR_NULL(disk);
}

static void test_drain(void)
{
    enum { N = 200 };
    static uint8_t buf[N][4096];
    struct result r[N] = {{0}};
    struct iovec iov[N];
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = make_file("drain", 4 * MIB)});
    for (int i = 0; i < N; i++) {
        memset(buf[i], i, sizeof(buf[i]));
        iov[i] = (struct iovec){buf[i], sizeof(buf[i])};
        fvm_disk_writev(disk, 4096u * (unsigned)i, &iov[i], 1, done, &r[i]);
    }
    fvm_disk_drain(disk);
    for (int i = 0; i < N; i++)
        CU_ASSERT_TRUE(r[i].calls == 1 && r[i].status == 0);
    uint8_t back[4096];
    CU_ASSERT_EQUAL(move(disk, false, 4096 * 150, back, 4096), 0);
    CU_ASSERT_EQUAL(memcmp(back, buf[150], 4096), 0);
    fvm_disk_close(&disk);
}

static void test_odd_tail(void)
{
    uint8_t buf[1024], want[1024] = {0};
    char *path = make_file("tail", 1000);
    int fd = open(path, O_WRONLY);
    memset(want, 0x5a, 1000);
    CU_ASSERT_EQUAL(pwrite(fd, want, 1000, 0), 1000);
    close(fd);
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = path});
    CU_ASSERT_EQUAL(fvm_disk_bytes(disk), 1024);
    memset(buf, 0xff, sizeof(buf));
    CU_ASSERT_EQUAL(move(disk, false, 0, buf, 1024), 0);
    CU_ASSERT_EQUAL(memcmp(buf, want, 1024), 0);
    /* cut behind our back: an error, not zeros */
    CU_ASSERT_EQUAL(truncate(path, 512), 0);
    CU_ASSERT_EQUAL(move(disk, false, 0, buf, 1024), FVM_EIO);
    fvm_disk_close(&disk);
}

static void test_modes(void)
{
    uint8_t buf[512];
    struct result r = {0};
    char *path = make_file("modes", MIB);
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = path, .readonly = true});
    struct fvm_disk *second = open_disk((struct fvm_disk_options){.path = path, .readonly = true});
    memset(buf, 7, sizeof(buf));
    CU_ASSERT_EQUAL(move(disk, true, 0, buf, 512), FVM_EPERM);
    fvm_disk_close(&second);
    fvm_disk_close(&disk);

    disk = open_disk((struct fvm_disk_options){.path = path, .inactive = true});
    CU_ASSERT_FALSE(fvm_disk_active(disk));
    CU_ASSERT_EQUAL(move(disk, true, 0, buf, 512), FVM_ESTATE);
    fvm_disk_discard(disk, 0, 512, true, done, &r);
    CU_ASSERT_EQUAL(wait_for(&r), FVM_ESTATE);
    CU_ASSERT_EQUAL(move(disk, false, 0, buf, 512), 0);
    CU_ASSERT_EQUAL(buf[0], 0);
    CU_ASSERT_EQUAL(fvm_disk_activate(disk, 0, NULL), 0);
    buf[0] = 9;
    CU_ASSERT_EQUAL(move(disk, true, 0, buf, 512), 0);
    CU_ASSERT_EQUAL(fvm_disk_deactivate(disk), 0);
    CU_ASSERT_EQUAL(move(disk, true, 0, buf, 512), FVM_ESTATE);
    fvm_disk_close(&disk);

    struct fvm_err err = {0};
    struct fvm_disk_options bad[] = {{.path = "/dev/null"}, {.path = dir}, {.path = "/nonexistent/disk"}, {.path = path, .format = "vpc"}};
    int want[] = {FVM_EINVAL, FVM_EINVAL, FVM_ENOENT, FVM_EUNSUPPORTED};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        CU_ASSERT_EQUAL(fvm_disk_open(loop, &bad[i], &disk, &err), want[i]);
        CU_ASSERT_TRUE(err.text[0]);
    }
}

static void test_lock(void)
{
    struct fvm_err err = {0};
    struct fvm_disk *b = NULL;
    char *path = make_file("lock", MIB), pid[32];
    struct fvm_disk_options rw = {.path = path}, ro = {.path = path, .readonly = true}, later = {.path = path, .inactive = true};
    struct fvm_disk *a = open_disk(rw);
    snprintf(pid, sizeof(pid), "process %d ", getpid());
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &rw, &b, &err), FVM_EBUSY);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, pid));
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &ro, &b, &err), FVM_EBUSY);
    b = open_disk(later);
    CU_ASSERT_EQUAL(fvm_disk_activate(b, 2, &err), FVM_EBUSY);
    CU_ASSERT_EQUAL(fvm_disk_deactivate(a), 0);
    CU_ASSERT_EQUAL(fvm_disk_activate(b, 2, &err), 0); /* hand-over */
    CU_ASSERT_EQUAL(fvm_disk_activate(a, 3, &err), FVM_EBUSY);
    fvm_disk_close(&a);
    fvm_disk_close(&b);
    a = open_disk(rw); /* close has let it go */
    fvm_disk_close(&a);
}

/* The epoch in `base`: the same rules with the attribute or with the sidecar. */
static void epoch_rules(const char *path)
{
    struct fvm_err err = {0};
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = path, .inactive = true});
    CU_ASSERT_EQUAL(fvm_disk_activate(disk, 5, &err), 0);
    CU_ASSERT_EQUAL(fvm_disk_deactivate(disk), 0);
    CU_ASSERT_EQUAL(fvm_disk_activate(disk, 4, &err), FVM_ECONFLICT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "epoch 5"));
    CU_ASSERT_FALSE(fvm_disk_active(disk));
    CU_ASSERT_EQUAL(fvm_disk_activate(disk, 5, &err), 0);
    CU_ASSERT_EQUAL(fvm_disk_activate(disk, 12, &err), 0); /* raised while active */
    fvm_disk_close(&disk);
    struct fvm_disk_options old = {.path = path, .epoch = 11};
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &old, &disk, &err), FVM_ECONFLICT);
}

static void test_epoch(void)
{
    char sidecar[160], text[16] = "";
    char *path = make_file("epoch", MIB);
    epoch_rules(path);

    /* a volume that came from a file system without attributes: its sidecar counts as well */
    path = make_file("epoch2", MIB);
    snprintf(sidecar, sizeof(sidecar), "%s.fvm-epoch", path);
    FILE *f = fopen(sidecar, "w");
    fputs("30\n", f);
    fclose(f);
    struct fvm_disk_options opt = {.path = path, .epoch = 29};
    struct fvm_err err = {0};
    struct fvm_disk *disk;
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &opt, &disk, &err), FVM_ECONFLICT);
    f = fopen(sidecar, "w");
    fputs("thirty", f);
    fclose(f);
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &opt, &disk, &err), FVM_EBADIMAGE);

    /* where attributes cannot be written the sidecar is */
    snprintf(sidecar, sizeof(sidecar), "/dev/shm/fvm-epoch-test-%d", getpid());
    int fd = open(sidecar, O_RDWR | O_CREAT, 0600);
    CU_ASSERT_FATAL(fd >= 0 && ftruncate(fd, MIB) == 0);
    bool attributes = fsetxattr(fd, "user.fvm.probe", "1", 1, 0) == 0;
    close(fd);
    epoch_rules(sidecar);
    char *copy = strdup(sidecar);
    strcat(sidecar, ".fvm-epoch");
    f = fopen(sidecar, "r");
    CU_ASSERT_EQUAL(f != NULL, !attributes);
    if (f) {
        CU_ASSERT_PTR_NOT_NULL(fgets(text, sizeof(text), f));
        CU_ASSERT_STRING_EQUAL(text, "12\n");
        fclose(f);
        unlink(sidecar);
    }
    unlink(copy);
    free(copy);
}

static void test_host_refuses(void)
{
    struct rlimit old, small = {.rlim_cur = 64 * 1024};
    uint8_t buf[4096] = {1};
    struct fvm_disk *disk = open_disk((struct fvm_disk_options){.path = make_file("full", MIB)});
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    setrlimit(RLIMIT_FSIZE, &small);
    CU_ASSERT_TRUE(move(disk, true, 512 * 1024, buf, 4096) < 0);
    setrlimit(RLIMIT_FSIZE, &old);
    CU_ASSERT_EQUAL(move(disk, true, 512 * 1024, buf, 4096), 0);
    fvm_disk_close(&disk);
}

static void put_bytes(const char *path, const void *bytes, size_t len, off_t at)
{
    int fd = open(path, O_WRONLY);
    CU_ASSERT_EQUAL(pwrite(fd, bytes, len, at), (ssize_t)len);
    close(fd);
}

static void test_probe(void)
{
    struct fvm_probe probe;
    struct fvm_err err = {0};
    struct fvm_disk *disk;
    char *path = make_file("probe", 4 * MIB);
    CU_ASSERT_EQUAL(fvm_disk_probe(path, &probe, &err), 0);
    CU_ASSERT_STRING_EQUAL(probe.kind, "unknown"); /* all zeros is not "empty" */
    /* a partition table: one Linux partition from sector 2048 on */
    uint8_t entry[16] = {0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0};
    put_bytes(path, entry, 16, 446);
    put_bytes(path, "\x55\xaa", 2, 510);
    CU_ASSERT_EQUAL(fvm_disk_probe(path, &probe, &err), 0);
    CU_ASSERT_STRING_EQUAL(probe.kind, "partitions");
    CU_ASSERT_STRING_EQUAL(probe.type, "dos");
    CU_ASSERT_FALSE(probe.mounted);

    path = make_file("probe.qcow2", MIB);
    put_bytes(path, "QFI\xfb\0\0\0\3", 8, 0);
    CU_ASSERT_EQUAL(fvm_disk_probe(path, &probe, &err), 0);
    CU_ASSERT_STRING_EQUAL(probe.type, "qcow2");
    struct fvm_disk_options opt = {.path = path};
    CU_ASSERT_EQUAL(fvm_disk_open(loop, &opt, &disk, &err), FVM_EUNSUPPORTED);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "qcow2"));
    disk = open_disk((struct fvm_disk_options){.path = path, .format = "raw"});
    fvm_disk_close(&disk);
    CU_ASSERT_EQUAL(fvm_disk_probe("/dev/zero", &probe, &err), FVM_EINVAL);
}

int main(void)
{
    strcpy(dir, "/tmp/fvm-storage-XXXXXX");
    if (!mkdtemp(dir) || fvm_loop_create(&loop) < 0 || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("storage", NULL, NULL);
    CU_add_test(suite, "bytes come back", test_bytes);
    CU_add_test(suite, "drain completes all", test_drain);
    CU_add_test(suite, "a last sector that is not whole", test_odd_tail);
    CU_add_test(suite, "readonly and inactive", test_modes);
    CU_add_test(suite, "one writer", test_lock);
    CU_add_test(suite, "storage epoch", test_epoch);
    CU_add_test(suite, "the host refuses a write", test_host_refuses);
    CU_add_test(suite, "probe", test_probe);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_loop_destroy(&loop);
    char command[96];
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command) != 0 || failures;
}

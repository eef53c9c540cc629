/* vm_config.c - sizes, disks, networks, and what fvm_config_check refuses. */
#include <CUnit/Basic.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_config.h"

static void sizes(void)
{
    static const struct { const char *text; uint64_t bytes; } good[] = {
        {"0", 0}, {"4096", 4096}, {"64K", 65536}, {"512M", 512ull << 20}, {"1G", 1ull << 30}, {"2g", 2ull << 30},
        {"3GiB", 3ull << 30}, {"1T", 1ull << 40}, {"16777215T", 16777215ull << 40}};
    static const char *const bad[] = {
        "", "G", "-1", "+1", " 1", "1.5G", "1GB", "1 G", "16777216T", "99999999999999999999", "1Q", "0x10", "1G "};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(good); i++) {
        uint64_t n = 1;
        CU_ASSERT_EQUAL(fvm_config_parse_bytes(good[i].text, &n, NULL), 0);
        CU_ASSERT_EQUAL(n, good[i].bytes);
    }
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        uint64_t n = 77;
        struct fvm_err err = {0};
        CU_ASSERT_EQUAL(fvm_config_parse_bytes(bad[i], &n, &err), FVM_EINVAL);
        CU_ASSERT_EQUAL(n, 77); /* untouched */
        CU_ASSERT(err.text[0] != 0);
    }
}

static void disks(void)
{
    Fvm__VmConfig *c = fvm_config_new();
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/a.img", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/odd,,name,readonly,format=raw,serial=S1", NULL), 0);
    CU_ASSERT_EQUAL(c->n_disks, 2);
    CU_ASSERT_STRING_EQUAL(c->disks[0]->path, "/a.img");
    CU_ASSERT_FALSE(c->disks[0]->readonly);
    CU_ASSERT_STRING_EQUAL(c->disks[1]->path, "/odd,name");
    CU_ASSERT_TRUE(c->disks[1]->readonly);
    CU_ASSERT_STRING_EQUAL(c->disks[1]->serial, "S1");
    static const char *const bad[] = {"",    ",readonly", "/a,cache=none", "/a,serial=123456789012345678901",
                                      "/a,", "/a,format="};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++)
        CU_ASSERT_EQUAL(fvm_config_add_disk(c, bad[i], NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(c->n_disks, 2);
    while (c->n_disks < FVM_CONFIG_DISKS_MAX)
        CU_ASSERT_EQUAL_FATAL(fvm_config_add_disk(c, "/b", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/b", NULL), FVM_EINVAL);
    fvm_config_free(&c);
    CU_ASSERT_PTR_NULL(c);
}

static void machines(void)
{
    struct fvm_err err = {0};
    Fvm__VmConfig *c = fvm_config_new();
    CU_ASSERT_TRUE(fvm_config_is_pc(c)); /* no kernel: firmware boots */
    CU_ASSERT_EQUAL(fvm_config_set(&c->kernel, "/vmlinuz"), 0);
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/v,if=virtio", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,model=virtio", NULL), 0);
    CU_ASSERT_FALSE(fvm_config_is_pc(c));
    CU_ASSERT_EQUAL(fvm_config_add_cdrom(c, "/i,,so,serial=X", NULL), 0);
    CU_ASSERT_STRING_EQUAL(c->disks[1]->path, "/i,so");
    CU_ASSERT_TRUE(c->disks[1]->cdrom && c->disks[1]->readonly);
    CU_ASSERT_TRUE(fvm_config_is_pc(c));
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), 0);
    CU_ASSERT_EQUAL(fvm_config_set_machine(c, "isapc", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_set_machine(c, "virtio", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), FVM_EINVAL);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--machine pc"));
    CU_ASSERT_EQUAL(fvm_config_set_machine(c, "pc", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_add_cdrom(c, "/c,if=virtio", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_cdrom(c, "", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/c,if=scsi", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,model=ne2k", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,tftp=", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "switch:/s,tftp=/srv", NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,tftp=/a,,b,bootfile=x", NULL), 0);
    CU_ASSERT_STRING_EQUAL(c->nets[c->n_nets - 1]->tftp, "/a,b");
    CU_ASSERT_STRING_EQUAL(c->nets[c->n_nets - 1]->bootfile, "x");
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,model=e1000", NULL), 0);
    for (int i = 0; i < 3; i++)
        CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/d,if=ide", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), 0);
    CU_ASSERT_EQUAL(fvm_config_add_disk(c, "/d,if=ide", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_set(&c->disks[2]->interface, "ahci"), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), 0);
    static const char *const bad[] = {"", "floppy", "disk,", "disk,disk", ",disk", "disk,,net"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++)
        CU_ASSERT_EQUAL(fvm_config_set_boot(c, bad[i], NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(fvm_config_set_boot(c, "cdrom,disk", NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), 0);
    c->disks[1]->readonly = false; /* as a peer could send it */
    CU_ASSERT_EQUAL(fvm_config_check(c, false, &err), FVM_EINVAL);
    fvm_config_free(&c);
}

static void nets(void)
{
    Fvm__VmConfig *c = fvm_config_new();
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "none", NULL), 0);
    CU_ASSERT_EQUAL(c->n_nets, 0);
    CU_ASSERT_EQUAL(
        fvm_config_add_net(
            c, "user,hostfwd=tcp:127.0.0.1:2222-:22,mac=52:54:00:12:34:56,hostfwd=udp::53-10.0.2.15:5353", NULL),
        0);
    CU_ASSERT_EQUAL_FATAL(c->n_nets, 1);
    CU_ASSERT_EQUAL_FATAL(c->nets[0]->n_forwards, 2);
    CU_ASSERT_EQUAL(c->nets[0]->mac.len, 6);
    CU_ASSERT_EQUAL(c->nets[0]->forwards[0]->host_port, 2222);
    CU_ASSERT_EQUAL(c->nets[0]->forwards[0]->guest_port, 22);
    CU_ASSERT_STRING_EQUAL(c->nets[0]->forwards[1]->host_addr, "127.0.0.1"); /* never all addresses by default */
    CU_ASSERT_STRING_EQUAL(c->nets[0]->forwards[1]->guest_addr, "10.0.2.15");
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "switch:/run/sw.sock", NULL), 0);
    static const char *const bad[] = {"",
                                      "bridge",
                                      "switch:",
                                      "user,hostfwd=",
                                      "user,hostfwd=tcp:1-2",
                                      "user,hostfwd=tcp::0-:22",
                                      "user,hostfwd=tcp::65536-:22",
                                      "user,hostfwd=tcp:a.b:1-:2",
                                      "user,hostfwd=icmp::1-:2",
                                      "user,mac=01:00:00:00:00:00",
                                      "user,mac=52:54:00:12:34",
                                      "user,mac=52:54:00:12:34:5g",
                                      "user,what=1",
                                      "switch:/s,hostfwd=tcp::1-:2",
                                      "user,hostfwd=tcp::22-:22x"};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++)
        CU_ASSERT_EQUAL(fvm_config_add_net(c, bad[i], NULL), FVM_EINVAL);
    CU_ASSERT_EQUAL(c->n_nets, 2);
    fvm_config_free(&c);
}

static Fvm__VmConfig *sane(void)
{
    Fvm__VmConfig *c = fvm_config_new();
    fvm_config_set(&c->kernel, "/dev/null");
    return c;
}

static void check(void)
{
    Fvm__VmConfig *c = sane();
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_config_check(c, true, &err), 0);
    c->memory_bytes = (1ull << 30) + 1;
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    c->memory_bytes = 8 << 20;
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    c->memory_bytes = FVM_CONFIG_MEMORY_MAX; /* possible, but no host of ours has it */
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, true, &err), FVM_ENOMEM);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "--memory"));
    c->memory_bytes = 64 << 20;
    c->cpus = 0;
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    c->cpus = FVM_CONFIG_CPUS_MAX + 1;
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    c->cpus = 1;
    fvm_config_set(&c->name, "a/b");
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    fvm_config_set(&c->name, "a");
    fvm_config_set(&c->on_reset, "explode");
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    fvm_config_set(&c->on_reset, "stop");
    fvm_config_set(&c->kernel, "/nonexistent/kernel");
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), 0);
    CU_ASSERT_EQUAL(fvm_config_check(c, true, &err), FVM_ENOENT);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, "/nonexistent/kernel"));
    fvm_config_set(&c->kernel, "");
    CU_ASSERT_EQUAL(fvm_config_check(c, false, NULL), FVM_EINVAL);
    fvm_config_free(&c);
}

static void copies(void)
{
    Fvm__VmConfig *c = sane();
    CU_ASSERT_EQUAL(fvm_config_add_net(c, "user,hostfwd=tcp::1-:2", NULL), 0);
    Fvm__VmConfig *d = fvm_config_copy(c);
    CU_ASSERT_PTR_NOT_NULL_FATAL(d);
    CU_ASSERT_EQUAL(memcmp(c->id.data, d->id.data, 16), 0);
    CU_ASSERT_EQUAL(d->nets[0]->forwards[0]->host_port, 1);
    fvm_config_free(&c);
    CU_ASSERT_STRING_EQUAL(d->kernel, "/dev/null");
    fvm_config_free(&d);
}

int main(void)
{
    CU_initialize_registry();
    CU_pSuite s = CU_add_suite("vm_config", NULL, NULL);
    CU_add_test(s, "sizes", sizes);
    CU_add_test(s, "disks", disks);
    CU_add_test(s, "machines", machines);
    CU_add_test(s, "nets", nets);
    CU_add_test(s, "check", check);
    CU_add_test(s, "copies", copies);
    CU_basic_run_tests();
    unsigned failed = CU_get_number_of_failures();
    CU_cleanup_registry();
    return failed != 0;
}

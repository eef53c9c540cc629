/* net/switch: nodes in one process, linked over TCP on loopback; VMs on unix sockets. Nothing circles, moves are followed. */
#include "net/switch.h"

#include <CUnit/Basic.h>
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SECOND 1000000000ull

static struct fvm_loop *loop;
static char dir[64];

struct vm {
    struct fvm_net *net;
    uint8_t mac[6];
    unsigned frames; /* received from here on: those with ethertype 88b5 */
    uint32_t last;
    uint8_t seen[64];
    unsigned rarps, arp_replies;
};

static bool on_frame(void *ctx, const uint8_t *f, size_t len)
{
    struct vm *vm = ctx;
    if (f[12] == 0x88 && f[13] == 0xb5 && len >= 18) {
        memcpy(&vm->last, f + 14, 4);
        vm->frames++;
        vm->seen[vm->last % 64]++;
    }
    vm->rarps += f[12] == 0x80 && f[13] == 0x35;
    vm->arp_replies += f[12] == 8 && f[13] == 6 && f[21] == 2;
    return true;
}

static const char *path_of(unsigned node)
{
    static char path[4][128];
    snprintf(path[node], sizeof(path[node]), "%s/node%u", dir, node);
    return path[node];
}

static struct fvm_switch *make_switch(unsigned node)
{
    struct fvm_switch *sw = NULL;
    struct fvm_err err = {0};
    int r = fvm_switch_create(loop, path_of(node), &sw, &err);
    if (r < 0)
        fprintf(stderr, "%s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(r, 0);
    return sw;
}

static void join(struct vm *vm, unsigned id, unsigned node, bool inactive)
{
    char kind[160];
    struct fvm_err err = {0};
    snprintf(kind, sizeof(kind), "switch:%s", path_of(node));
    memset(vm, 0, sizeof(*vm));
    memcpy(vm->mac, (uint8_t[]){0x52, 0x54, 0, 0, 0, (uint8_t)id}, 6);
    struct fvm_net_options opt = {.kind = kind, .inactive = inactive};
    CU_ASSERT_EQUAL_FATAL(fvm_net_open(loop, &opt, on_frame, vm, &vm->net, &err), 0);
}

static void send_frame(struct vm *from, const uint8_t to[6], uint32_t number)
{
    uint8_t f[60] = {0};
    memcpy(f, to, 6);
    memcpy(f + 6, from->mac, 6);
    f[12] = 0x88;
    f[13] = 0xb5;
    memcpy(f + 14, &number, 4);
    fvm_net_send(from->net, f, sizeof(f));
}

static const uint8_t everybody[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

/* Turn until *value reaches `want` (0: not at all); then a little more, so that what should not come would have come. */
static bool turn_until(const unsigned *value, unsigned want)
{
    uint64_t end = fvm_now_ns() + 10 * SECOND;
    while (*value < want && fvm_now_ns() < end)
        fvm_loop_turn(loop, SECOND / 50);
    for (int quiet = 0; quiet < 2;)
        quiet = fvm_loop_turn(loop, SECOND / 100) == 1 ? 0 : quiet + 1;
    return *value >= want;
}

static bool links_up(struct fvm_switch *sw, unsigned want)
{
    struct fvm_switch_stats stats;
    uint64_t end = fvm_now_ns() + 10 * SECOND;
    do {
        fvm_loop_turn(loop, SECOND / 50);
        fvm_switch_get_stats(sw, &stats);
    } while (stats.links != want && fvm_now_ns() < end);
    return stats.links == want;
}

static bool vms_up(struct fvm_switch *sw, unsigned want)
{
    struct fvm_switch_stats stats;
    uint64_t end = fvm_now_ns() + 10 * SECOND;
    do {
        fvm_loop_turn(loop, SECOND / 50);
        fvm_switch_get_stats(sw, &stats);
    } while (stats.vms != want && fvm_now_ns() < end);
    return stats.vms == want;
}

static void link_nodes(struct fvm_switch *a, struct fvm_switch *b)
{
    struct fvm_err err = {0};
    uint16_t port;
    CU_ASSERT_EQUAL_FATAL(fvm_switch_tcp_listen(a, "127.0.0.1", 0, &port, &err), 0);
    CU_ASSERT_EQUAL_FATAL(fvm_switch_tcp_connect(b, "127.0.0.1", port, &err), 0);
}

static void test_one_node(void)
{
    struct vm a, b, c;
    struct fvm_switch *sw = make_switch(0), *second = NULL;
    struct fvm_err err = {0};
    CU_ASSERT_EQUAL(fvm_switch_create(loop, path_of(0), &second, &err), FVM_EBUSY);
    join(&a, 1, 0, false);
    join(&b, 2, 0, false);
    join(&c, 3, 0, false);
    CU_ASSERT_TRUE_FATAL(vms_up(sw, 3));
    send_frame(&a, everybody, 1);
    CU_ASSERT_TRUE(turn_until(&b.frames, 1));
    CU_ASSERT_TRUE(a.frames == 0 && b.frames == 1 && c.frames == 1);
    send_frame(&b, a.mac, 2); /* a's place is known */
    CU_ASSERT_TRUE(turn_until(&a.frames, 1));
    CU_ASSERT_TRUE(a.last == 2 && c.frames == 1);
    send_frame(&a, c.mac, 3); /* c's is not: flooded */
    CU_ASSERT_TRUE(turn_until(&c.frames, 2));
    CU_ASSERT_EQUAL(b.frames, 2);
    fvm_net_close(&b.net);
    struct fvm_switch_stats stats;
    CU_ASSERT_TRUE(vms_up(sw, 2));
    fvm_switch_get_stats(sw, &stats);
    CU_ASSERT_TRUE(stats.vms == 2 && stats.macs == 1); /* b is forgotten */
    fvm_net_close(&a.net);
    fvm_net_close(&c.net);
    fvm_switch_destroy(&sw);
    CU_ASSERT_NOT_EQUAL(access(path_of(0), F_OK), 0);
}

static void test_mesh_and_move(void)
{
    struct vm a, b, c, moved;
    struct fvm_switch *sw[3];
    for (unsigned i = 0; i < 3; i++)
        sw[i] = make_switch(i);
    link_nodes(sw[0], sw[1]);
    link_nodes(sw[1], sw[2]);
    link_nodes(sw[0], sw[2]);
    for (unsigned i = 0; i < 3; i++)
        CU_ASSERT_TRUE_FATAL(links_up(sw[i], 2));
    join(&a, 1, 0, false);
    join(&b, 2, 1, false);
    join(&c, 3, 2, false);
    for (unsigned i = 0; i < 3; i++)
        CU_ASSERT_TRUE_FATAL(vms_up(sw[i], 1));
    for (uint32_t n = 0; n < 64; n++)
        send_frame(&a, everybody, n);
    CU_ASSERT_TRUE(turn_until(&b.frames, 64) && turn_until(&c.frames, 64));
    for (int n = 0; n < 64; n++)
        CU_ASSERT_TRUE(b.seen[n] == 1 && c.seen[n] == 1); /* once each: no circle */
    CU_ASSERT_EQUAL(a.frames, 0);

    send_frame(&b, everybody, 100);
    send_frame(&c, everybody, 101);
    CU_ASSERT_TRUE(turn_until(&a.frames, 2));
    unsigned before = c.frames;
    send_frame(&a, b.mac, 102);
    CU_ASSERT_TRUE(turn_until(&b.frames, 66));
    CU_ASSERT_EQUAL(c.frames, before); /* not flooded */

    /* b moves from node 1 to node 2: same MAC; a and c send on without a word from the guest */
    join(&moved, 2, 2, true);
    fvm_net_announce(moved.net, moved.mac); /* inactive: waits */
    fvm_net_deactivate(b.net);
    CU_ASSERT_TRUE(turn_until(&a.rarps, 0)); /* all quiet */
    CU_ASSERT_EQUAL(a.rarps, 0);
    CU_ASSERT_EQUAL(fvm_net_activate(moved.net, NULL), 0);
    fvm_net_announce(moved.net, moved.mac);
    CU_ASSERT_TRUE(turn_until(&a.rarps, 2)); /* repeated */
    send_frame(&a, moved.mac, 103);
    send_frame(&c, moved.mac, 104);
    CU_ASSERT_TRUE(turn_until(&moved.frames, 2));
    CU_ASSERT_TRUE(moved.seen[103 % 64] == 1 && moved.seen[104 % 64] == 1);
    CU_ASSERT_EQUAL(c.frames, before);
    unsigned heard = a.rarps;
    send_frame(&moved, everybody, 105); /* the guest speaks for itself: no more RARP */
    CU_ASSERT_TRUE(turn_until(&a.frames, 3));
    CU_ASSERT_TRUE(a.rarps <= heard + 1);
    fvm_net_close(&a.net);
    fvm_net_close(&b.net);
    fvm_net_close(&c.net);
    fvm_net_close(&moved.net);
    for (unsigned i = 0; i < 3; i++)
        fvm_switch_destroy(&sw[i]);
}

static void test_daemon_restarts(void)
{
    struct vm a, b;
    struct fvm_switch *sw = NULL;
    join(&a, 1, 0, false); /* before there is a switch */
    send_frame(&a, everybody, 1);
    sw = make_switch(0);
    join(&b, 2, 0, false);
    CU_ASSERT_TRUE(turn_until(&b.rarps, 1)); /* a has come and says where it is */
    send_frame(&b, a.mac, 2);
    CU_ASSERT_TRUE(turn_until(&a.frames, 1));
    fvm_switch_destroy(&sw);
    sw = make_switch(0);
    b.rarps = 0;
    CU_ASSERT_TRUE(turn_until(&b.rarps, 1) || turn_until(&a.rarps, 1));
    send_frame(&b, a.mac, 3);
    CU_ASSERT_TRUE(turn_until(&a.frames, 2));
    fvm_net_close(&a.net);
    fvm_net_close(&b.net);
    fvm_switch_destroy(&sw);
}

static void test_gateway(void)
{
    struct vm far;
    struct fvm_err err = {0};
    struct fvm_switch *sw[2] = {make_switch(0), make_switch(1)};
    struct fvm_net_options user = {.kind = "user"}, none = {.kind = "none"};
    CU_ASSERT_EQUAL(fvm_switch_set_gateway(sw[0], &none, &err), FVM_EUNSUPPORTED);
    CU_ASSERT_EQUAL(fvm_switch_set_gateway(sw[0], &user, &err), 0);
    link_nodes(sw[0], sw[1]);
    CU_ASSERT_TRUE_FATAL(links_up(sw[0], 1));
    CU_ASSERT_TRUE_FATAL(links_up(sw[1], 1));
    join(&far, 7, 1, false);
    uint8_t f[60] = {0};
    memset(f, 0xff, 6);
    memcpy(f + 6, far.mac, 6);
    memcpy(f + 12, "\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01", 10);
    memcpy(f + 22, far.mac, 6);
    memcpy(f + 28, (uint8_t[]){10, 0, 2, 15}, 4);
    memcpy(f + 38, (uint8_t[]){10, 0, 2, 2}, 4);
    fvm_net_send(far.net, f, sizeof(f));
    CU_ASSERT_TRUE(turn_until(&far.arp_replies, 1)); /* over the link and back */
    CU_ASSERT_EQUAL(far.arp_replies, 1);
    CU_ASSERT_EQUAL(fvm_switch_set_gateway(sw[0], NULL, &err), 0);
    fvm_net_send(far.net, f, sizeof(f));
    CU_ASSERT_TRUE(turn_until(&far.arp_replies, 0));
    CU_ASSERT_EQUAL(far.arp_replies, 1);
    fvm_net_close(&far.net);
    fvm_switch_destroy(&sw[0]);
    fvm_switch_destroy(&sw[1]);
}

static unsigned link_frames;
static bool link_send(void *ctx, const uint8_t *frame, size_t len)
{
    (void)frame;
    CU_ASSERT_TRUE(len >= FVM_NET_FRAME_MIN && len <= FVM_NET_FRAME_MAX);
    ++*(unsigned *)ctx;
    return true;
}

static void test_hostile(void)
{
    static const struct fvm_switch_link_ops ops = {.send = link_send};
    static uint8_t big[FVM_NET_FRAME_MAX + 1];
    struct vm a, b;
    struct fvm_switch_link *one = NULL, *two = NULL;
    struct fvm_switch_stats stats;
    struct fvm_switch *sw = make_switch(0);
    unsigned to_two = 0;
    link_frames = 0;
    CU_ASSERT_EQUAL(fvm_switch_link_add(sw, "one", &ops, &link_frames, &one), 0);
    CU_ASSERT_EQUAL(fvm_switch_link_add(sw, "two", &ops, &to_two, &two), 0);
    join(&a, 1, 0, false);
    join(&b, 2, 0, false);
    CU_ASSERT_TRUE_FATAL(vms_up(sw, 2));
    send_frame(&b, everybody, 0);
    CU_ASSERT_TRUE(turn_until(&a.frames, 1));
    CU_ASSERT_TRUE(link_frames == 1 && to_two == 1);

    fvm_switch_link_receive(one, big, 13);
    fvm_switch_link_receive(one, big, sizeof(big));
    fvm_switch_get_stats(sw, &stats);
    CU_ASSERT_EQUAL(stats.dropped, 2);
    /* a guest that makes up addresses fills its share and no more; b stays known */
    for (unsigned i = 0; i < 5000; i++) {
        struct vm fake = a;
        fake.mac[3] = 9;
        fake.mac[4] = (uint8_t)(i >> 8);
        fake.mac[5] = (uint8_t)i;
        send_frame(&fake, b.mac, i);
        if (i % 32 == 31)
            fvm_loop_turn(loop, SECOND / 50);
    }
    CU_ASSERT_TRUE(turn_until(&b.frames, 4000));
    fvm_switch_get_stats(sw, &stats);
    CU_ASSERT_TRUE(stats.macs <= 65 + 1);
    CU_ASSERT_EQUAL(link_frames, 1);
    /* split horizon, also for an unknown destination */
    uint8_t f[60] = {2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 8, 0};
    fvm_switch_link_receive(one, f, sizeof(f));
    CU_ASSERT_EQUAL(to_two, 1);
    fvm_switch_link_remove(&two);
    fvm_net_close(&a.net);
    fvm_net_close(&b.net);
    fvm_switch_destroy(&sw);
}

static void test_garbled_stream(void)
{
    struct fvm_switch *sw = make_switch(0);
    struct fvm_err err = {0};
    uint16_t port, again;
    CU_ASSERT_EQUAL_FATAL(fvm_switch_tcp_listen(sw, "127.0.0.1", 0, &port, &err), 0);
    CU_ASSERT_EQUAL(fvm_switch_tcp_listen(sw, "127.0.0.1", port, &again, &err), FVM_EBUSY);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CU_ASSERT_EQUAL(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    CU_ASSERT_TRUE(links_up(sw, 1));
    CU_ASSERT_EQUAL(write(fd, "GET / HTTP/1.1\r\n", 16), 16);
    CU_ASSERT_TRUE(links_up(sw, 0));
    close(fd);
    fvm_switch_destroy(&sw);
}

int main(void)
{
    strcpy(dir, "/tmp/fvm-switch-XXXXXX");
    if (!mkdtemp(dir) || fvm_loop_create(&loop) < 0 || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("net_switch", NULL, NULL);
    CU_add_test(suite, "one node learns", test_one_node);
    CU_add_test(suite, "a mesh has no circles; a guest moves", test_mesh_and_move);
    CU_add_test(suite, "the daemon restarts", test_daemon_restarts);
    CU_add_test(suite, "the gateway over a link", test_gateway);
    CU_add_test(suite, "hostile ports", test_hostile);
    CU_add_test(suite, "a stream that makes no sense", test_garbled_stream);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_loop_destroy(&loop);
    rmdir(dir);
    return failures != 0;
}

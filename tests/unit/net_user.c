/* net: the user network as a guest sees it (frames by hand), forwards, leases that move; frames in order. */
#include <CUnit/Basic.h>
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net/net.h"

static struct fvm_loop *loop;

struct guest { /* what was delivered last, by kind */
    unsigned frames, refuse;
    uint8_t last[2048];
    size_t last_len;
    uint8_t arp_reply[60], arp_request[60];
    bool got_reply, got_request, got_dhcp, got_syn;
    uint8_t offered[4];
    uint16_t syn_port;
    unsigned order[64], order_count;
};

static bool on_frame(void *ctx, const uint8_t *frame, size_t len)
{
    struct guest *g = ctx;
    if (g->refuse) {
        g->refuse--;
        return false;
    }
    g->frames++;
    g->last_len = FVM_MIN(len, sizeof(g->last));
    memcpy(g->last, frame, g->last_len);
    if (frame[12] == 8 && frame[13] == 6 && len >= 42) {
        uint8_t *to = frame[21] == 2 ? g->arp_reply : g->arp_request;
        memcpy(to, frame, 42);
        *(frame[21] == 2 ? &g->got_reply : &g->got_request) = true;
    } else if (frame[12] == 8 && frame[13] == 0 && frame[23] == 17 && frame[37] == 68) {
        g->got_dhcp = true;
        memcpy(g->offered, frame + 42 + 16, 4); /* yiaddr */
    } else if (frame[12] == 8 && frame[13] == 0 && frame[23] == 6 && (frame[47] & 2)) {
        g->got_syn = true;
        g->syn_port = (uint16_t)(frame[36] << 8 | frame[37]);
    }
    return true;
}

static bool turn_until(const bool *flag)
{
    uint64_t end = fvm_now_ns() + 5000000000ull;
    while (!*flag && fvm_now_ns() < end)
        fvm_loop_turn(loop, 50000000);
    return *flag;
}

static struct fvm_net *open_net(struct fvm_net_options opt, struct guest *g)
{
    struct fvm_net *net = NULL;
    struct fvm_err err = {0};
    int r = fvm_net_open(loop, &opt, on_frame, g, &net, &err);
    if (r < 0)
        fprintf(stderr, "open: %s\n", err.text);
    CU_ASSERT_EQUAL_FATAL(r, 0);
    return net;
}

static void send_arp(struct fvm_net *net, const uint8_t mac[6], uint8_t op, const uint8_t from[4], const uint8_t to[4])
{
    uint8_t f[60] = {0};
    memset(f, 0xff, 6);
    memcpy(f + 6, mac, 6);
    memcpy(f + 12, "\x08\x06\x00\x01\x08\x00\x06\x04\x00", 9);
    f[21] = op;
    memcpy(f + 22, mac, 6);
    memcpy(f + 28, from, 4);
    memcpy(f + 38, to, 4);
    fvm_net_send(net, f, sizeof(f));
}

static uint16_t ip_sum(const uint8_t *p, size_t len)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2)
        sum += (uint32_t)(p[i] << 8 | p[i + 1]);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void send_dhcp(struct fvm_net *net, const uint8_t mac[6], uint8_t type)
{
    uint8_t f[14 + 20 + 8 + 300] = {0};
    uint8_t *ip = f + 14, *udp = ip + 20, *bootp = udp + 8;
    memset(f, 0xff, 6);
    memcpy(f + 6, mac, 6);
    f[12] = 8;
    memcpy(ip, "\x45\0\x01\x48\0\0\0\0\x40\x11\0\0\0\0\0\0\xff\xff\xff\xff", 20);
    uint16_t sum = ip_sum(ip, 20);
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    memcpy(udp, "\0\x44\0\x43\x01\x34\0\0", 8);
    bootp[0] = bootp[1] = 1;
    bootp[2] = 6;
    memcpy(bootp + 4, "fvm!", 4);
    memcpy(bootp + 28, mac, 6);
    memcpy(bootp + 236, "\x63\x82\x53\x63\x35\x01", 6);
    bootp[242] = type;
    bootp[243] = 0xff;
    fvm_net_send(net, f, sizeof(f));
}

static const uint8_t mac_a[6] = {0x52, 0x54, 0, 1, 2, 3}, mac_b[6] = {0x52, 0x54, 0, 1, 2, 4};
static const uint8_t ip_guest[4] = {10, 0, 2, 15}, ip_gateway[4] = {10, 0, 2, 2};

static void test_gateway_answers(void)
{
    struct guest g = {0};
    struct fvm_net *net = open_net((struct fvm_net_options){.kind = "user"}, &g);
    send_arp(net, mac_a, 1, ip_guest, ip_gateway);
    CU_ASSERT_TRUE(turn_until(&g.got_reply));
    CU_ASSERT_EQUAL(memcmp(g.arp_reply + 28, ip_gateway, 4), 0);
    CU_ASSERT_EQUAL(memcmp(g.arp_reply, mac_a, 6), 0);
    fvm_net_close(&net);
    CU_ASSERT_PTR_NULL(net);
}

/* A free port; *ret_fd keeps it taken. */
static uint16_t take_port(int *ret_fd)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CU_ASSERT_FATAL(bind(fd, (struct sockaddr *)&a, len) == 0 && listen(fd, 1) == 0 && getsockname(fd, (struct sockaddr *)&a, &len) == 0);
    *ret_fd = fd;
    return ntohs(a.sin_port);
}

static int dial(uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

static void test_forward(void)
{
    int taken;
    struct fvm_net_forward f = {.host_port = take_port(&taken), .guest_port = 22};
    struct fvm_net_options opt = {.kind = "user", .forwards = &f, .forward_count = 1};
    struct fvm_err err = {0};
    struct guest g = {0};
    struct fvm_net *net = NULL;
    char port[16];
    snprintf(port, sizeof(port), "port %u ", f.host_port);
    CU_ASSERT_EQUAL(fvm_net_open(loop, &opt, on_frame, &g, &net, &err), FVM_EBUSY);
    CU_ASSERT_PTR_NOT_NULL(strstr(err.text, port));
    CU_ASSERT_PTR_NULL(net);

    opt.inactive = true; /* binds nothing yet */
    net = open_net(opt, &g);
    CU_ASSERT_EQUAL(fvm_net_activate(net, &err), FVM_EBUSY);
    CU_ASSERT_FALSE(fvm_net_active(net));
    close(taken);
    CU_ASSERT_EQUAL(fvm_net_activate(net, &err), 0);
    int fd = dial(f.host_port);
    CU_ASSERT_TRUE(fd >= 0);
    CU_ASSERT_TRUE(turn_until(&g.got_request)); /* who has 10.0.2.15? */
    CU_ASSERT_EQUAL(memcmp(g.arp_request + 38, ip_guest, 4), 0);
    send_arp(net, mac_a, 2, ip_guest, ip_gateway);
    CU_ASSERT_TRUE(turn_until(&g.got_syn));
    CU_ASSERT_EQUAL(g.syn_port, 22);
    close(fd);

    fvm_net_deactivate(net);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(f.host_port)};
    CU_ASSERT_NOT_EQUAL(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0); /* nobody listens any more */
    close(fd);
    fvm_net_close(&net);
}

static void test_state_moves(void)
{
    struct guest a = {0}, b = {0}, fresh = {0};
    uint8_t *state = NULL;
    size_t len = 0;
    struct fvm_err err = {0};
    struct fvm_net *from = open_net((struct fvm_net_options){.kind = "user"}, &a);
    struct fvm_net *to = open_net((struct fvm_net_options){.kind = "user", .inactive = true}, &b);
    send_dhcp(from, mac_a, 1);
    CU_ASSERT_TRUE(turn_until(&a.got_dhcp));
    CU_ASSERT_EQUAL(memcmp(a.offered, ip_guest, 4), 0);
    send_dhcp(from, mac_a, 3);
    CU_ASSERT_EQUAL(fvm_net_save(from, &state, &len), 0);
    CU_ASSERT_TRUE(len > 4);
    CU_ASSERT_EQUAL(fvm_net_restore(to, state, len, &err), 0);
    send_dhcp(to, mac_b, 1); /* inactive: nothing comes */
    CU_ASSERT_EQUAL(b.frames, 0);
    CU_ASSERT_EQUAL(fvm_net_activate(to, &err), 0);
    send_dhcp(to, mac_b, 1);
    CU_ASSERT_TRUE(turn_until(&b.got_dhcp));
    CU_ASSERT_EQUAL(b.offered[3], 16); /* .15 is still lent to the first */
    fvm_net_close(&to);

    /* half a state: starts fresh */
    to = open_net((struct fvm_net_options){.kind = "user", .inactive = true}, &fresh);
    CU_ASSERT_EQUAL(fvm_net_restore(to, state, len / 2, &err), 0);
    CU_ASSERT_EQUAL(fvm_net_activate(to, &err), 0);
    send_dhcp(to, mac_b, 1);
    CU_ASSERT_TRUE(turn_until(&fresh.got_dhcp));
    CU_ASSERT_EQUAL(fresh.offered[3], 15);
    free(state);
    fvm_net_close(&to);
    /* a migration that was called off: the same net comes back */
    fvm_net_deactivate(from);
    CU_ASSERT_EQUAL(fvm_net_activate(from, &err), 0);
    a.got_dhcp = false;
    send_dhcp(from, mac_b, 1);
    CU_ASSERT_TRUE(turn_until(&a.got_dhcp));
    CU_ASSERT_EQUAL(a.offered[3], 16);
    fvm_net_close(&from);
}

static void test_backpressure(void)
{
    struct guest g = {.refuse = 1};
    struct fvm_net *net = open_net((struct fvm_net_options){0}, &g);
    send_arp(net, mac_a, 1, ip_guest, ip_gateway); /* the reply is refused, and waits */
    send_dhcp(net, mac_a, 1);                      /* its reply waits behind */
    CU_ASSERT_EQUAL(g.frames, 0);
    fvm_net_ready(net);
    CU_ASSERT_TRUE(g.got_reply);
    CU_ASSERT_TRUE(turn_until(&g.got_dhcp));
    CU_ASSERT_EQUAL(g.frames, 2);
    CU_ASSERT_TRUE(g.last[23] == 17); /* in order: DHCP last */
    fvm_net_close(&net);
}

static void test_refusals(void)
{
    struct fvm_net *net = NULL;
    struct fvm_err err = {0};
    struct fvm_net_forward f = {.host_addr = "nonsense", .host_port = 1000, .guest_port = 1};
    struct fvm_net_options bad[] = {{.kind = "tap9"},
                                    {.kind = "user", .forwards = &f, .forward_count = 1},
                                    {.kind = "none", .forwards = &f, .forward_count = 1},
                                    {.kind = "switch:"}};
    int want[] = {FVM_EUNSUPPORTED, FVM_EINVAL, FVM_EINVAL, FVM_EINVAL};
    struct guest g = {0};
    for (size_t i = 0; i < FVM_ARRAY_SIZE(bad); i++) {
        CU_ASSERT_EQUAL(fvm_net_open(loop, &bad[i], on_frame, &g, &net, &err), want[i]);
        CU_ASSERT_TRUE(err.text[0]);
    }
    net = open_net((struct fvm_net_options){.kind = "none"}, &g);
    send_arp(net, mac_a, 1, ip_guest, ip_gateway);
    CU_ASSERT_EQUAL(g.frames, 0);
    fvm_net_close(&net);
    net = open_net((struct fvm_net_options){.kind = "user"}, &g);
    static const uint8_t junk[FVM_NET_FRAME_MAX + 1];
    fvm_net_send(net, junk, 3);
    fvm_net_send(net, junk, sizeof(junk));
    fvm_net_close(&net);
}

int main(void)
{
    if (fvm_loop_create(&loop) < 0 || CU_initialize_registry() != CUE_SUCCESS)
        return 1;
    CU_pSuite suite = CU_add_suite("net_user", NULL, NULL);
    CU_add_test(suite, "the gateway answers", test_gateway_answers);
    CU_add_test(suite, "host forwards", test_forward);
    CU_add_test(suite, "leases move with the state", test_state_moves);
    CU_add_test(suite, "frames wait in order", test_backpressure);
    CU_add_test(suite, "what is refused", test_refusals);
    CU_basic_set_mode(CU_BRM_VERBOSE);
    CU_basic_run_tests();
    unsigned failures = CU_get_number_of_failures();
    CU_cleanup_registry();
    fvm_loop_destroy(&loop);
    return failures != 0;
}

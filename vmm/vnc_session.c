/*
 * vnc_session.c - one VNC client: handshake, its messages, and updates of its picture. See vnc.h.
 *
 *   version -> security -> (password) -> init -> messages
 *
 * Input is hostile: it is collected in a buffer as large as the largest message kept, every length is compared first.
 * A message too long for the buffer (clipboard) is passed over as it comes.
 *
 * Invariant: `shown` is what the client has, whenever it waits for nothing; updates are made only when the output is
 * empty, so a client that doesn't read costs one picture at most.
 */
#include <nettle/des.h>
#include <nettle/memops.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/devices/ps2.h"
#include "vmm/vm_keys.h"
#include "vmm/vnc.h"

enum { IN_MAX = 4096, ENCODINGS_MAX = 512, BAND = 16, STRIP = 64 };
enum { SECURITY_NONE = 1, SECURITY_VNC = 2 };
enum { MSG_FORMAT = 0, MSG_ENCODINGS = 2, MSG_UPDATE = 3, MSG_KEY = 4, MSG_POINTER = 5, MSG_CUT = 6, MSG_QEMU = 255 };
enum { ENCODING_RAW = 0, ENCODING_HEXTILE = 5, PSEUDO_SIZE = -223, PSEUDO_KEYS = -258 };

enum stage { STAGE_VERSION, STAGE_SECURITY, STAGE_AUTH, STAGE_INIT, STAGE_NORMAL, STAGE_OVER };

struct fvm_vnc_session {
    struct fvm_vnc_host host;
    char password[FVM_VNC_PASSWORD_MAX + 1];
    bool has_password;
    uint8_t challenge[16];
    enum stage stage;
    unsigned minor; /* of the protocol: 3, 7 or 8 */
    uint8_t in[IN_MAX];
    size_t in_len;
    uint64_t skip; /* bytes to pass over */
    struct fvm_vnc_buffer out;
    struct fvm_vnc_format format;
    bool hextile, can_resize, scan_codes, keys_announced;
    bool wants, wants_all;        /* an update: what changed, or everything */
    struct fvm_surface now, shown;
    unsigned width, height;       /* as the client knows it */
    bool pointer_known;
    int x, y;
    uint8_t pressed[FVM_KEYS];
};

static unsigned get16(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }

static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

/* ---- life ---- */

static const struct fvm_vnc_format native = {
    .bits = 32, .depth = 24, .shift = {16, 8, 0}, .max = {255, 255, 255}};

int fvm_vnc_session_create(const struct fvm_vnc_host *host, const char *password, const uint8_t challenge[16],
                           struct fvm_vnc_session **ret_session)
{
    struct fvm_vnc_session *s = calloc(1, sizeof(*s));
    if (!s)
        return FVM_ENOMEM;
    s->host = *host;
    s->format = native;
    s->has_password = password != NULL;
    if (password) {
        strncpy(s->password, password, FVM_VNC_PASSWORD_MAX);
        memcpy(s->challenge, challenge, sizeof(s->challenge));
    }
    fvm_vnc_put(&s->out, "RFB 003.008\n", 12);
    *ret_session = s;
    return 0;
}

void fvm_vnc_session_destroy(struct fvm_vnc_session **session_p)
{
    struct fvm_vnc_session *s = *session_p;
    *session_p = NULL;
    if (!s)
        return;
    for (unsigned key = 0; key < FVM_KEYS; key++)
        if (s->pressed[key])
            s->host.key(s->host.ctx, key, false);
    fvm_surface_fini(&s->now);
    fvm_surface_fini(&s->shown);
    free(s->out.bytes);
    explicit_bzero(s->password, sizeof(s->password));
    free(s);
}

struct fvm_vnc_buffer *fvm_vnc_session_output(struct fvm_vnc_session *s) { return &s->out; }

/* ---- handshake. Each stage's function: bytes used, 0 for more, or a code ---- */

static void put_text(struct fvm_vnc_session *s, const char *text)
{
    fvm_vnc_put32(&s->out, (uint32_t)strlen(text));
    fvm_vnc_put(&s->out, text, strlen(text));
}

static int stage_version(struct fvm_vnc_session *s)
{
    const uint8_t type = s->has_password ? SECURITY_VNC : SECURITY_NONE;
    if (s->in_len < 12)
        return 0;
    if (memcmp(s->in, "RFB 003.00", 10) != 0 || s->in[11] != '\n' || s->in[10] < '3' || s->in[10] > '8')
        return FVM_EPROTO;
    s->minor = s->in[10] == '8' ? 8 : s->in[10] == '7' ? 7 : 3;
    if (s->minor == 3) { /* the server decides */
        fvm_vnc_put32(&s->out, type);
        s->stage = type == SECURITY_NONE ? STAGE_INIT : STAGE_AUTH;
        if (type == SECURITY_VNC)
            fvm_vnc_put(&s->out, s->challenge, sizeof(s->challenge));
        return 12;
    }
    fvm_vnc_put(&s->out, (const uint8_t[2]){1, type}, 2);
    s->stage = STAGE_SECURITY;
    return 12;
}

static int stage_security(struct fvm_vnc_session *s)
{
    if (s->in[0] != (s->has_password ? SECURITY_VNC : SECURITY_NONE))
        return FVM_EPROTO;
    if (s->has_password) {
        fvm_vnc_put(&s->out, s->challenge, sizeof(s->challenge));
        s->stage = STAGE_AUTH;
        return 1;
    }
    if (s->minor == 8)
        fvm_vnc_put32(&s->out, 0);
    s->stage = STAGE_INIT;
    return 1;
}

static int stage_auth(struct fvm_vnc_session *s)
{
    uint8_t key[8], want[16];
    struct des_ctx des;
    if (s->in_len < 16)
        return 0;
    for (unsigned i = 0; i < 8; i++) { /* VNC's DES has the bits of each key byte in the other order */
        uint8_t b = (uint8_t)s->password[i];
        key[i] = (uint8_t)((b * 0x0202020202ull & 0x010884422010ull) % 1023);
    }
    (void)des_set_key(&des, key); /* a weak key is the user's choice */
    des_encrypt(&des, sizeof(want), want, s->challenge);
    bool right = memeql_sec(want, s->in, sizeof(want));
    explicit_bzero(&des, sizeof(des));
    explicit_bzero(key, sizeof(key));
    fvm_vnc_put32(&s->out, right ? 0 : 1);
    s->stage = STAGE_INIT;
    if (right)
        return 16;
    if (s->minor == 8)
        put_text(s, "the password is wrong");
    return FVM_EAUTH;
}

static void put_format(struct fvm_vnc_session *s)
{
    const struct fvm_vnc_format *f = &native;
    const uint8_t head[4] = {f->bits, f->depth, 0, 1}, shifts[6] = {f->shift[0], f->shift[1], f->shift[2], 0, 0, 0};
    fvm_vnc_put(&s->out, head, sizeof(head));
    for (unsigned c = 0; c < 3; c++)
        fvm_vnc_put16(&s->out, f->max[c]);
    fvm_vnc_put(&s->out, shifts, sizeof(shifts));
}

static int stage_init(struct fvm_vnc_session *s)
{
    s->width = 720; /* until there is a picture */
    s->height = 400;
    if (s->host.screen(s->host.ctx, &s->now) == 0) {
        s->width = s->now.width;
        s->height = s->now.height;
    }
    fvm_vnc_put16(&s->out, s->width);
    fvm_vnc_put16(&s->out, s->height);
    put_format(s);
    put_text(s, s->host.name);
    s->stage = STAGE_NORMAL;
    return 1;
}

/* ---- messages ---- */

static int take_format(struct fvm_vnc_session *s, const uint8_t *p)
{
    struct fvm_vnc_format f = {.bits = p[0], .depth = p[1], .big_endian = p[2] != 0,
                               .max = {(uint16_t)get16(p + 4), (uint16_t)get16(p + 6), (uint16_t)get16(p + 8)},
                               .shift = {p[10], p[11], p[12]}};
    if ((f.bits != 8 && f.bits != 16 && f.bits != 32) || !p[3])
        return FVM_EPROTO; /* no colour maps */
    for (unsigned c = 0; c < 3; c++)
        if (f.shift[c] >= f.bits || f.max[c] > 255 || ((uint64_t)f.max[c] << f.shift[c]) >> f.bits)
            return FVM_EPROTO;
    s->format = f;
    s->wants_all = true;
    return 0;
}

static void take_encodings(struct fvm_vnc_session *s, const uint8_t *p, unsigned count)
{
    s->hextile = s->can_resize = s->scan_codes = false;
    for (unsigned i = 0; i < count; i++) {
        int32_t e = (int32_t)get32(p + 4 * i);
        s->hextile |= e == ENCODING_HEXTILE;
        s->can_resize |= e == PSEUDO_SIZE;
        s->scan_codes |= e == PSEUDO_KEYS;
    }
}

static void press(struct fvm_vnc_session *s, unsigned key, bool down)
{
    if (!key || key >= FVM_KEYS)
        return;
    s->pressed[key] = down;
    s->host.key(s->host.ctx, key, down);
}

static void take_scan_code(struct fvm_vnc_session *s, const uint8_t *p)
{
    uint32_t code = get32(p + 6), keysym = get32(p + 2);
    unsigned key = code && code < 0x100 ? code : fvm_keys_of_keysym(keysym);
    if (code == 0xc6 || keysym == 0xff13)
        key = FVM_KEY_PAUSE;
    else if (code == 0xb7)
        key = FVM_KEY_PRINT;
    press(s, key, get16(p) != 0);
}

static void take_pointer(struct fvm_vnc_session *s, const uint8_t *p)
{
    unsigned mask = p[0], buttons = (mask & 1) | (mask & 4) >> 1 | (mask & 2) << 1;
    int x = (int)get16(p + 1), y = (int)get16(p + 3), dz = (mask & 16 ? 1 : 0) - (mask & 8 ? 1 : 0);
    int dx = s->pointer_known ? x - s->x : 0, dy = s->pointer_known ? y - s->y : 0;
    s->pointer_known = true;
    s->x = x;
    s->y = y;
    s->host.mouse(s->host.ctx, dx, dy, dz, buttons);
}

static int take_qemu(struct fvm_vnc_session *s)
{
    if (s->in_len < 2)
        return 0;
    if (s->in[1] != 0) /* audio and the like: never offered */
        return FVM_EPROTO;
    if (s->in_len < 12)
        return 0;
    take_scan_code(s, s->in + 2);
    return 12;
}

static int take_message(struct fvm_vnc_session *s)
{
    static const uint8_t sizes[] = {[MSG_FORMAT] = 20, [MSG_ENCODINGS] = 4, [MSG_UPDATE] = 10, [MSG_KEY] = 8,
                                    [MSG_POINTER] = 6, [MSG_CUT] = 8};
    unsigned type = s->in[0], size;
    if (type == MSG_QEMU)
        return take_qemu(s);
    if (type >= sizeof(sizes) || !sizes[type])
        return FVM_EPROTO;
    size = sizes[type];
    if (s->in_len < size)
        return 0;
    switch (type) {
    case MSG_FORMAT: {
        int r = take_format(s, s->in + 4);
        return r ? r : (int)size;
    }
    case MSG_ENCODINGS:
        if (get16(s->in + 2) > ENCODINGS_MAX)
            return FVM_EPROTO;
        size += 4 * get16(s->in + 2);
        if (s->in_len < size)
            return 0;
        take_encodings(s, s->in + 4, get16(s->in + 2));
        return (int)size;
    case MSG_UPDATE: /* the area asked for is not looked at: what changed anywhere is sent */
        s->wants = true;
        s->wants_all |= !s->in[1];
        return (int)size;
    case MSG_KEY:
        press(s, fvm_keys_of_keysym(get32(s->in + 4)), s->in[1] != 0);
        return (int)size;
    case MSG_POINTER:
        take_pointer(s, s->in + 1);
        return (int)size;
    default: /* MSG_CUT: a guest has no clipboard of ours; a negative length is the extended form */
        s->skip = (uint64_t)llabs((int32_t)get32(s->in + 4));
        return (int)size;
    }
}

static int take(struct fvm_vnc_session *s)
{
    switch (s->stage) {
    case STAGE_VERSION: return stage_version(s);
    case STAGE_SECURITY: return stage_security(s);
    case STAGE_AUTH: return stage_auth(s);
    case STAGE_INIT: return stage_init(s);
    case STAGE_NORMAL: return take_message(s);
    default: return FVM_EPROTO;
    }
}

static int consume(struct fvm_vnc_session *s)
{
    size_t used = 0;
    int r = 1;
    while (r > 0 && s->in_len) {
        if (s->skip) {
            r = (int)FVM_MIN(s->skip, (uint64_t)s->in_len);
            s->skip -= (uint64_t)r;
        } else {
            r = take(s);
        }
        used = r > 0 ? (size_t)r : 0;
        memmove(s->in, s->in + used, s->in_len - used);
        s->in_len -= used;
    }
    return r < 0 ? r : 0;
}

int fvm_vnc_session_input(struct fvm_vnc_session *s, const uint8_t *bytes, size_t len)
{
    int r = s->stage == STAGE_OVER ? FVM_EPROTO : 0;
    while (!r && len) {
        size_t n = FVM_MIN(len, sizeof(s->in) - s->in_len);
        fvm_assert(n > 0); /* every message kept fits, so the buffer never stays full */
        memcpy(s->in + s->in_len, bytes, n);
        s->in_len += n;
        bytes += n;
        len -= n;
        r = consume(s);
        if (!r && s->out.failed)
            r = FVM_ENOMEM;
    }
    if (r)
        s->stage = STAGE_OVER;
    return r;
}

/* ---- updates ---- */

static void put_rectangle(struct fvm_vnc_session *s, unsigned x, unsigned y, unsigned w, unsigned h, int32_t encoding)
{
    fvm_vnc_put16(&s->out, x);
    fvm_vnc_put16(&s->out, y);
    fvm_vnc_put16(&s->out, w);
    fvm_vnc_put16(&s->out, h);
    fvm_vnc_put32(&s->out, (uint32_t)encoding);
}

static void put_pixels(struct fvm_vnc_session *s, unsigned x, unsigned y, unsigned w, unsigned h)
{
    put_rectangle(s, x, y, w, h, s->hextile ? ENCODING_HEXTILE : ENCODING_RAW);
    if (s->hextile)
        fvm_vnc_encode_hextile(&s->out, &s->format, &s->now, x, y, w, h);
    else
        fvm_vnc_encode_raw(&s->out, &s->format, &s->now, x, y, w, h);
}

static bool differs(const struct fvm_vnc_session *s, unsigned x, unsigned y, unsigned w, unsigned h)
{
    for (unsigned row = y; row < y + h; row++)
        if (memcmp(s->now.pixels + (size_t)row * s->width + x, s->shown.pixels + (size_t)row * s->width + x, 4 * (size_t)w))
            return true;
    return false;
}

/* The changed pieces of a band of lines, neighbours together. Returns how many rectangles. */
static unsigned put_band(struct fvm_vnc_session *s, unsigned y, unsigned h, bool all)
{
    unsigned first = 0, count = 0;
    bool open = false;
    for (unsigned x = 0; x < s->width; x += STRIP) {
        bool dirty = all || differs(s, x, y, FVM_MIN((unsigned)STRIP, s->width - x), h);
        if (dirty && !open)
            first = x;
        if (!dirty && open) {
            put_pixels(s, first, y, x - first, h);
            count++;
        }
        open = dirty;
    }
    if (open) {
        put_pixels(s, first, y, s->width - first, h);
        count++;
    }
    return count;
}

/* The guest's picture in the size that the client knows: cut, or black at the edges. */
static int fit(struct fvm_vnc_session *s)
{
    struct fvm_surface fitted = {0};
    if (s->now.width == s->width && s->now.height == s->height)
        return 0;
    int r = fvm_surface_size(&fitted, s->width, s->height);
    if (r)
        return r;
    memset(fitted.pixels, 0, (size_t)s->width * s->height * sizeof(*fitted.pixels));
    for (unsigned y = 0; y < FVM_MIN(s->height, s->now.height); y++)
        memcpy(fitted.pixels + (size_t)y * s->width, s->now.pixels + (size_t)y * s->now.width,
               FVM_MIN(s->width, s->now.width) * sizeof(*fitted.pixels));
    fvm_surface_fini(&s->now);
    s->now = fitted;
    return 0;
}

static void put_update(struct fvm_vnc_session *s, bool resize, bool announce)
{
    size_t head = s->out.len;
    unsigned count = 0;
    bool all = s->wants_all || s->shown.width != s->width || s->shown.height != s->height;
    fvm_vnc_put32(&s->out, 0); /* message 0, padding, number of rectangles: filled in below */
    if (resize) {
        put_rectangle(s, 0, 0, s->width, s->height, PSEUDO_SIZE);
        count++;
    }
    if (announce) {
        put_rectangle(s, 0, 0, s->width, s->height, PSEUDO_KEYS);
        count++;
    }
    for (unsigned y = 0; y < s->height; y += BAND)
        count += put_band(s, y, FVM_MIN((unsigned)BAND, s->height - y), all);
    if (s->out.failed)
        return;
    if (!count) {
        s->out.len = head;
        return;
    }
    s->out.bytes[head + 2] = (uint8_t)(count >> 8);
    s->out.bytes[head + 3] = (uint8_t)count;
    s->wants = s->wants_all = false;
    struct fvm_surface old = s->shown; /* what is sent becomes what the client has */
    s->shown = s->now;
    s->now = old;
}

bool fvm_vnc_session_update(struct fvm_vnc_session *s)
{
    if (s->stage != STAGE_NORMAL || !s->wants || s->out.len || s->out.failed)
        return s->stage == STAGE_NORMAL && s->wants;
    if (s->host.screen(s->host.ctx, &s->now))
        return true;
    bool resize = s->can_resize && (s->now.width != s->width || s->now.height != s->height);
    bool announce = s->scan_codes && !s->keys_announced;
    if (resize) {
        s->width = s->now.width;
        s->height = s->now.height;
    } else if (fit(s)) {
        return true;
    }
    put_update(s, resize, announce);
    s->keys_announced |= announce;
    return s->wants;
}

/*
 * ps2_mouse.c - a PS/2 mouse with wheel and five buttons ("IntelliMouse Explorer", by the knock of sample rates 200,
 * 100, 80 and 200, 200, 80). Movement is kept until a report has room for it, so none is lost; a report at a time.
 *
 * Invariant: a report goes into the queue whole or not at all.
 */
#include <string.h>

#include "vmm/devices/ps2.h"

enum { ACK = 0xfa, RESEND = 0xfe, SELF_TEST_OK = 0xaa };
enum { CMD_SCALE1 = 0xe6, CMD_SCALE2 = 0xe7, CMD_RESOLUTION = 0xe8, CMD_STATUS = 0xe9, CMD_STREAM = 0xea,
       CMD_POLL = 0xeb, CMD_UNWRAP = 0xec, CMD_WRAP = 0xee, CMD_REMOTE = 0xf0, CMD_ID = 0xf2, CMD_RATE = 0xf3,
       CMD_ENABLE = 0xf4, CMD_DISABLE = 0xf5, CMD_DEFAULT = 0xf6, CMD_RESET = 0xff };
enum { MOVE_MAX = 1 << 20 };

static void put1(struct fvm_ps2_mouse *m, uint8_t byte)
{
    (void)fvm_ps2_put(&m->queue, &byte, 1);
}

static void defaults(struct fvm_ps2_mouse *m)
{
    m->rates[0] = 100;
    m->rates[1] = m->rates[2] = 0;
    m->resolution = 2;
    m->scale2 = m->remote = m->reporting = m->wrap = false;
    m->dx = m->dy = m->dz = 0;
    m->expecting = 0;
}

void fvm_ps2_mouse_reset(struct fvm_ps2_mouse *m)
{
    memset(m, 0, sizeof(*m));
    defaults(m);
}

static int clamp(int value, int limit)
{
    return value > limit ? limit : value < -limit ? -limit : value;
}

/* PS/2 counts up as positive; the wheel's positive is towards the user. */
static bool report(struct fvm_ps2_mouse *m)
{
    int dx = clamp(m->dx, 255), dy = clamp(-m->dy, 255), dz = clamp(m->dz, 7);
    uint8_t bytes[4] = {(uint8_t)(8u | (m->buttons & 7u) | (dx < 0 ? 0x10u : 0u) | (dy < 0 ? 0x20u : 0u)), (uint8_t)dx,
                        (uint8_t)dy, (uint8_t)dz};

    if (m->id == 4)
        bytes[3] = (uint8_t)((dz & 0xf) | (m->buttons & 0x18u) << 1);
    if (!fvm_ps2_put(&m->queue, bytes, m->id ? 4 : 3))
        return false;
    m->dx -= dx;
    m->dy += dy;
    m->dz -= dz;
    return true;
}

void fvm_ps2_mouse_pump(struct fvm_ps2_mouse *m)
{
    /* one report at a time: what moves while it waits is in the next */
    if (m->reporting && !m->remote && !m->wrap && !m->queue.count && (m->dx || m->dy || (m->id && m->dz)))
        (void)report(m);
}

void fvm_ps2_mouse_move(struct fvm_ps2_mouse *m, int dx, int dy, int dz, unsigned buttons)
{
    bool changed = (buttons & 0x1f) != m->buttons;

    m->dx = clamp(m->dx + clamp(dx, MOVE_MAX), MOVE_MAX);
    m->dy = clamp(m->dy + clamp(dy, MOVE_MAX), MOVE_MAX);
    m->dz = clamp(m->dz + clamp(dz, MOVE_MAX), MOVE_MAX);
    m->buttons = buttons & 0x1f;
    if (!m->reporting) {
        m->dx = m->dy = m->dz = 0;
        return;
    }
    if (changed && !m->remote && !m->wrap)
        (void)report(m); /* a click must not melt into the next report */
    fvm_ps2_mouse_pump(m);
}

static void set_rate(struct fvm_ps2_mouse *m, uint8_t rate)
{
    m->rates[2] = m->rates[1];
    m->rates[1] = m->rates[0];
    m->rates[0] = rate;
    if (rate != 80 || m->rates[2] != 200)
        return;
    if (m->rates[1] == 100 && m->id == 0)
        m->id = 3;
    else if (m->rates[1] == 200 && m->id == 3)
        m->id = 4;
}

static void status(struct fvm_ps2_mouse *m)
{
    const uint8_t bytes[4] = {ACK,
                              (uint8_t)((m->remote ? 0x40u : 0u) | (m->reporting ? 0x20u : 0u) |
                                        (m->scale2 ? 0x10u : 0u) | (m->buttons & 1u) << 2 | (m->buttons & 4u) >> 1 |
                                        (m->buttons & 2u) >> 1),
                              m->resolution, m->rates[0]};

    (void)fvm_ps2_put(&m->queue, bytes, sizeof(bytes));
}

static void command(struct fvm_ps2_mouse *m, uint8_t value)
{
    static const uint8_t tested[3] = {ACK, SELF_TEST_OK, 0};

    switch (value) {
    case CMD_SCALE1: m->scale2 = false; break;
    case CMD_SCALE2: m->scale2 = true; break;
    case CMD_RESOLUTION:
    case CMD_RATE: m->expecting = value; break;
    case CMD_STREAM: m->remote = false; break;
    case CMD_REMOTE: m->remote = true; break;
    case CMD_WRAP: m->wrap = true; break;
    case CMD_UNWRAP: m->wrap = false; break;
    case CMD_ENABLE: m->reporting = true; break;
    case CMD_DISABLE: m->reporting = false; break;
    case CMD_DEFAULT: defaults(m); break;
    case CMD_STATUS: status(m); return;
    case CMD_POLL:
        put1(m, ACK);
        (void)report(m);
        return;
    case CMD_ID:
        put1(m, ACK);
        put1(m, m->id);
        return;
    case CMD_RESET:
        fvm_ps2_mouse_reset(m);
        (void)fvm_ps2_put(&m->queue, tested, sizeof(tested));
        return;
    default: put1(m, RESEND); return;
    }
    put1(m, ACK);
}

void fvm_ps2_mouse_write(struct fvm_ps2_mouse *m, uint8_t value)
{
    uint8_t expecting = m->expecting;

    m->expecting = 0;
    if (m->wrap && value != CMD_RESET && value != CMD_UNWRAP) {
        put1(m, value);
        return;
    }
    if (!expecting) {
        command(m, value);
        return;
    }
    if (expecting == CMD_RATE)
        set_rate(m, value);
    else
        m->resolution = value & 3;
    put1(m, ACK);
}

/* ---- state ---- */

void fvm_ps2_mouse_save(struct fvm_ps2_mouse *m, Fvm__Ps2MouseState *ret)
{
    uint8_t bytes[FVM_PS2_QUEUE];
    unsigned count = m->queue.count;

    *ret = (Fvm__Ps2MouseState)FVM__PS2_MOUSE_STATE__INIT;
    for (unsigned i = 0; i < count; i++) /* in order, from the start of the array */
        bytes[i] = (uint8_t)fvm_ps2_take(&m->queue);
    m->queue.first = 0;
    (void)fvm_ps2_put(&m->queue, bytes, count);
    ret->queue = (ProtobufCBinaryData){.data = m->queue.bytes, .len = count};
    ret->expecting = m->expecting;
    ret->rates = (ProtobufCBinaryData){.data = m->rates, .len = sizeof(m->rates)};
    ret->id = m->id;
    ret->resolution = m->resolution;
    ret->buttons = m->buttons;
    ret->reporting = m->reporting;
    ret->remote = m->remote;
    ret->wrap = m->wrap;
    ret->scale2 = m->scale2;
    ret->dx = m->dx;
    ret->dy = m->dy;
    ret->dz = m->dz;
}

static bool far_away(int32_t v)
{
    return v > MOVE_MAX || v < -MOVE_MAX;
}

const char *fvm_ps2_mouse_check(const Fvm__Ps2MouseState *s)
{
    if (!s)
        return "no mouse";
    if (s->queue.len > FVM_PS2_QUEUE)
        return "too many bytes wait in the mouse";
    if (s->expecting && s->expecting != CMD_RATE && s->expecting != CMD_RESOLUTION)
        return "the mouse waits for the byte of a command that takes none";
    if (s->rates.len != 3 || (s->id != 0 && s->id != 3 && s->id != 4) || s->resolution > 3 || s->buttons > 0x1f)
        return "rate, kind, resolution or buttons of the mouse";
    return far_away(s->dx) || far_away(s->dy) || far_away(s->dz) ? "the mouse moved too far" : NULL;
}

void fvm_ps2_mouse_restore(struct fvm_ps2_mouse *m, const Fvm__Ps2MouseState *s)
{
    fvm_ps2_mouse_reset(m);
    (void)fvm_ps2_put(&m->queue, s->queue.data, (unsigned)s->queue.len);
    m->expecting = (uint8_t)s->expecting;
    memcpy(m->rates, s->rates.data, sizeof(m->rates));
    m->id = (uint8_t)s->id;
    m->resolution = (uint8_t)s->resolution;
    m->buttons = (uint8_t)s->buttons;
    m->reporting = s->reporting;
    m->remote = s->remote;
    m->wrap = s->wrap;
    m->scale2 = s->scale2;
    m->dx = s->dx;
    m->dy = s->dy;
    m->dz = s->dz;
}

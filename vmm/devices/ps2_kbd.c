/*
 * ps2_kbd.c - a PC keyboard with 102 keys: scan code sets 2 (as it wakes up) and 1, LEDs, the AT command set. No
 * autorepeat: who holds a key down for the guest repeats it.
 *
 * Invariant: a key's sequence goes into the queue whole or not at all.
 */
#include <string.h>

#include "vmm/devices/ps2.h"

enum { ACK = 0xfa, RESEND = 0xfe, SELF_TEST_OK = 0xaa, BREAK = 0xf0 };
enum { CMD_LEDS = 0xed, CMD_ECHO = 0xee, CMD_SET = 0xf0, CMD_ID = 0xf2, CMD_RATE = 0xf3, CMD_ENABLE = 0xf4,
       CMD_DISABLE = 0xf5, CMD_DEFAULT = 0xf6, CMD_RESET = 0xff };

int fvm_ps2_take(struct fvm_ps2_queue *q)
{
    int byte;

    if (!q->count)
        return -1;
    byte = q->bytes[q->first];
    q->first = (q->first + 1) % FVM_PS2_QUEUE;
    q->count--;
    return byte;
}

bool fvm_ps2_put(struct fvm_ps2_queue *q, const uint8_t *bytes, unsigned count)
{
    if (count > fvm_ps2_room(q))
        return false;
    for (unsigned i = 0; i < count; i++)
        q->bytes[(q->first + q->count++) % FVM_PS2_QUEUE] = bytes[i];
    return true;
}

static void put1(struct fvm_ps2_kbd *k, uint8_t byte)
{
    (void)fvm_ps2_put(&k->queue, &byte, 1);
}

/* Set 1's code to set 2's: the controller's translation the other way round. */
static const uint8_t set2_of[128] = {
    0,   118, 22,  30,  38,  37,  46,  54,  61,  62,  70,  69,  78,  85,  102, 13,  21,  29,  36,  45, 44,  53,
    60,  67,  68,  77,  84,  91,  90,  20,  28,  27,  35,  43,  52,  51,  59,  66,  75,  76,  82,  14, 18,  93,
    26,  34,  33,  42,  50,  49,  58,  65,  73,  74,  89,  124, 17,  41,  88,  5,   6,   4,   12,  3,  11,  131,
    10,  1,   9,   119, 126, 108, 117, 125, 123, 107, 115, 116, 121, 105, 114, 122, 112, 113, 127, 96, 97,  120,
    7,   15,  23,  31,  39,  47,  55,  63,  71,  79,  86,  94,  8,   16,  24,  32,  40,  48,  56,  64, 72,  80,
    87,  111, 19,  25,  57,  81,  83,  92,  95,  98,  99,  100, 101, 103, 104, 106, 109, 110};

uint8_t fvm_ps2_set2_of(unsigned set1)
{
    fvm_assert(set1 < 128);
    return set2_of[set1];
}

static unsigned sequence(const struct fvm_ps2_kbd *k, unsigned key, bool down, uint8_t out[8])
{
    static const uint8_t pause1[6] = {0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5};
    static const uint8_t pause2[8] = {0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77};
    static const uint8_t print[2][2][6] = {{{0xe0, 0xb7, 0xe0, 0xaa}, {0xe0, 0x2a, 0xe0, 0x37}},
                                           {{0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12}, {0xe0, 0x12, 0xe0, 0x7c}}};
    unsigned n = 0;

    if (key == FVM_KEY_PAUSE) {
        if (!down)
            return 0; /* this key has no break code */
        n = k->set == 1 ? sizeof(pause1) : sizeof(pause2);
        memcpy(out, k->set == 1 ? pause1 : pause2, n);
        return n;
    }
    if (key == FVM_KEY_PRINT) {
        n = k->set == 2 && !down ? 6 : 4;
        memcpy(out, print[k->set == 2][down], n);
        return n;
    }
    if (key & FVM_KEY_E0)
        out[n++] = 0xe0;
    key &= 0x7f;
    if (k->set == 2 && !down)
        out[n++] = BREAK;
    out[n++] = k->set == 2 ? set2_of[key] : (uint8_t)(key | (down ? 0u : 0x80u));
    return n;
}

void fvm_ps2_kbd_key(struct fvm_ps2_kbd *k, unsigned key, bool down)
{
    uint8_t bytes[8];

    if (k->scanning && key < FVM_KEYS && key)
        (void)fvm_ps2_put(&k->queue, bytes, sequence(k, key, down, bytes));
}

static void defaults(struct fvm_ps2_kbd *k)
{
    k->set = 2;
    k->rate = 0x2b;
    k->expecting = 0;
}

void fvm_ps2_kbd_reset(struct fvm_ps2_kbd *k)
{
    memset(k, 0, sizeof(*k));
    defaults(k);
    k->scanning = true;
}

static void argument(struct fvm_ps2_kbd *k, uint8_t command, uint8_t value)
{
    switch (command) {
    case CMD_LEDS:
        k->leds = value & 7;
        put1(k, ACK);
        break;
    case CMD_RATE:
        k->rate = value & 0x7f;
        put1(k, ACK);
        break;
    default: /* CMD_SET */
        put1(k, value <= 2 ? ACK : RESEND);
        if (value == 0)
            put1(k, k->set);
        else if (value <= 2)
            k->set = value;
        break;
    }
}

void fvm_ps2_kbd_write(struct fvm_ps2_kbd *k, uint8_t value)
{
    static const uint8_t id[3] = {ACK, 0xab, 0x83}, tested[2] = {ACK, SELF_TEST_OK};
    uint8_t expecting = k->expecting;

    k->expecting = 0;
    if (expecting && value < 0xed) {
        argument(k, expecting, value);
        return;
    }
    switch (value) {
    case CMD_LEDS:
    case CMD_SET:
    case CMD_RATE:
        k->expecting = value;
        put1(k, ACK);
        break;
    case CMD_ECHO:
        put1(k, CMD_ECHO);
        break;
    case CMD_ID:
        (void)fvm_ps2_put(&k->queue, id, sizeof(id));
        break;
    case CMD_ENABLE:
        k->scanning = true;
        put1(k, ACK);
        break;
    case CMD_DISABLE:
    case CMD_DEFAULT:
        defaults(k);
        k->scanning = value == CMD_DEFAULT;
        put1(k, ACK);
        break;
    case CMD_RESET:
        fvm_ps2_kbd_reset(k);
        (void)fvm_ps2_put(&k->queue, tested, sizeof(tested));
        break;
    default:
        put1(k, RESEND);
        break;
    }
}

/* ---- state ---- */

static void straighten(struct fvm_ps2_queue *q)
{
    uint8_t bytes[FVM_PS2_QUEUE];

    for (unsigned i = 0; i < q->count; i++)
        bytes[i] = q->bytes[(q->first + i) % FVM_PS2_QUEUE];
    memcpy(q->bytes, bytes, q->count);
    q->first = 0;
}

void fvm_ps2_kbd_save(struct fvm_ps2_kbd *k, Fvm__Ps2KbdState *ret)
{
    *ret = (Fvm__Ps2KbdState)FVM__PS2_KBD_STATE__INIT;
    straighten(&k->queue);
    ret->queue = (ProtobufCBinaryData){.data = k->queue.bytes, .len = k->queue.count};
    ret->expecting = k->expecting;
    ret->set = k->set;
    ret->leds = k->leds;
    ret->rate = k->rate;
    ret->scanning = k->scanning;
}

const char *fvm_ps2_kbd_check(const Fvm__Ps2KbdState *s)
{
    if (!s)
        return "no keyboard";
    if (s->queue.len > FVM_PS2_QUEUE)
        return "too many bytes wait in the keyboard";
    if (s->expecting && s->expecting != CMD_LEDS && s->expecting != CMD_SET && s->expecting != CMD_RATE)
        return "the keyboard waits for the byte of a command that takes none";
    if (s->set < 1 || s->set > 2 || s->leds > 7 || s->rate > 0x7f)
        return "scan code set, LEDs or rate of the keyboard";
    return NULL;
}

void fvm_ps2_kbd_restore(struct fvm_ps2_kbd *k, const Fvm__Ps2KbdState *s)
{
    fvm_ps2_kbd_reset(k);
    (void)fvm_ps2_put(&k->queue, s->queue.data, (unsigned)s->queue.len);
    k->expecting = (uint8_t)s->expecting;
    k->set = (uint8_t)s->set;
    k->leds = (uint8_t)s->leds;
    k->rate = (uint8_t)s->rate;
    k->scanning = s->scanning;
}

/*
 * i8042.c - the keyboard controller: two PS/2 sockets (ps2_kbd.c, ps2_mouse.c), one output buffer, and the odd wires that
 * ended up at it: reset by pulsing the output port (command fe), the A20 gate.
 *
 *     keyboard queue --(translation: set 2 -> set 1)--+
 *     mouse queue ------------------------------------+--> output buffer --> port 60, line 1 or 12
 *     the controller's own answers -------------------+
 *
 * A byte goes into the buffer when it is empty and its device's clock is on. Port 92 is the chip set's faster way to
 * reset and A20.
 *
 * Invariant: line 1 (12) is high exactly while the buffer holds a byte that is (not) the mouse's and that interrupt is
 * enabled.
 */
#include "vmm/devices/i8042.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT_DATA = 0x60, PORT_COMMAND = 0x64, PORT_A = 0x92 };
enum { LINE_KBD = 1, LINE_AUX = 12 };
enum { STATUS_OUTPUT = 1, STATUS_SYSTEM = 4, STATUS_COMMAND = 8, STATUS_UNLOCKED = 0x10, STATUS_AUX = 0x20 };
enum { CMD_READ_CONFIG = 0x20, CMD_WRITE_CONFIG = 0x60, CMD_AUX_OFF = 0xa7, CMD_AUX_ON = 0xa8, CMD_AUX_TEST = 0xa9,
       CMD_SELF_TEST = 0xaa, CMD_KBD_TEST = 0xab, CMD_KBD_OFF = 0xad, CMD_KBD_ON = 0xae, CMD_READ_INPUT = 0xc0,
       CMD_READ_OUTPUT = 0xd0, CMD_WRITE_OUTPUT = 0xd1, CMD_WRITE_KBD = 0xd2, CMD_WRITE_AUX = 0xd3, CMD_TO_AUX = 0xd4,
       CMD_A20_OFF = 0xdd, CMD_A20_ON = 0xdf, CMD_PULSE = 0xf0 };
enum { CONFIG_KBD_IRQ = 1, CONFIG_AUX_IRQ = 2, CONFIG_SYSTEM = 4, CONFIG_KBD_OFF = 0x10, CONFIG_AUX_OFF = 0x20,
       CONFIG_TRANSLATE = 0x40 };
enum { OUTPUT_NOT_RESET = 1, OUTPUT_A20 = 2 };

struct i8042 {
    struct fvm_device dev;
    uint8_t output, command, expecting, output_port;
    bool output_full, output_aux, last_was_command;
    struct fvm_ps2_kbd kbd;
    struct fvm_ps2_mouse mouse;
    bool break_next; /* translation: the last byte was set 2's f0 */
    uint8_t set1_of[256];
    struct fvm_irq_source *line[2];
    int claim_id[3];
};

static void reset_line(struct i8042 *k)
{
    const struct fvm_board *board = k->dev.board;

    if (board->reset)
        board->reset(board->ctx);
}

static void drive_lines(struct i8042 *k)
{
    fvm_irq_source_set(k->line[0], k->output_full && !k->output_aux && (k->command & CONFIG_KBD_IRQ));
    fvm_irq_source_set(k->line[1], k->output_full && k->output_aux && (k->command & CONFIG_AUX_IRQ));
}

static void fill(struct i8042 *k, uint8_t value, bool aux)
{
    k->output = value;
    k->output_full = true;
    k->output_aux = aux;
}

/* The next byte of the keyboard as programs see it, -1: none. Set 2's break prefix becomes set 1's bit 7. */
static int kbd_byte(struct i8042 *k)
{
    int byte = fvm_ps2_take(&k->kbd.queue);

    if (byte < 0 || !(k->command & CONFIG_TRANSLATE))
        return byte;
    if (byte == 0xf0) {
        k->break_next = true;
        byte = fvm_ps2_take(&k->kbd.queue);
        if (byte < 0) /* always queued together with its key; only a hostile state has it alone */
            return -1;
    }
    byte = k->set1_of[byte] | (k->break_next ? 0x80 : 0);
    k->break_next = false;
    return byte;
}

/* Move the next byte into the buffer if it is empty. */
static void pump(struct i8042 *k)
{
    int byte = -1;

    if (!k->output_full && !(k->command & CONFIG_KBD_OFF) && (byte = kbd_byte(k)) >= 0)
        fill(k, (uint8_t)byte, false);
    if (!k->output_full && !(k->command & CONFIG_AUX_OFF)) {
        fvm_ps2_mouse_pump(&k->mouse);
        byte = fvm_ps2_take(&k->mouse.queue);
        if (byte >= 0)
            fill(k, (uint8_t)byte, true);
    }
    drive_lines(k);
}

/* The controller's own answer takes the buffer, whatever was in it. */
static void answer(struct i8042 *k, uint8_t value)
{
    fill(k, value, false);
}

static void drive_a20(const struct i8042 *k)
{
    fvm_ram_set_a20(k->dev.board->ram, k->output_port & OUTPUT_A20);
}

static void command_write(struct i8042 *k, uint8_t value)
{
    k->last_was_command = true;
    k->expecting = 0;
    switch (value) {
    case CMD_READ_CONFIG:
        answer(k, k->command);
        break;
    case CMD_WRITE_CONFIG:
    case CMD_WRITE_OUTPUT:
    case CMD_WRITE_KBD:
    case CMD_WRITE_AUX:
    case CMD_TO_AUX:
        k->expecting = value;
        break;
    case CMD_AUX_OFF:
        k->command |= CONFIG_AUX_OFF;
        break;
    case CMD_AUX_ON:
        k->command &= (uint8_t)~CONFIG_AUX_OFF;
        break;
    case CMD_KBD_OFF:
        k->command |= CONFIG_KBD_OFF;
        break;
    case CMD_KBD_ON:
        k->command &= (uint8_t)~CONFIG_KBD_OFF;
        break;
    case CMD_SELF_TEST:
        k->command |= CONFIG_SYSTEM;
        answer(k, 0x55);
        break;
    case CMD_AUX_TEST:
    case CMD_KBD_TEST:
        answer(k, 0);
        break;
    case CMD_READ_INPUT:
        answer(k, 0x80);
        break;
    case CMD_READ_OUTPUT:
        answer(k, k->output_port);
        break;
    case CMD_A20_OFF:
    case CMD_A20_ON:
        k->output_port = (uint8_t)((k->output_port & ~OUTPUT_A20) | (value == CMD_A20_ON ? OUTPUT_A20 : 0));
        drive_a20(k);
        break;
    default:
        if (value >= CMD_PULSE && !(value & OUTPUT_NOT_RESET))
            reset_line(k);
        break;
    }
    pump(k);
}

static void data_write(struct i8042 *k, uint8_t value)
{
    uint8_t expecting = k->expecting;

    k->last_was_command = false;
    k->expecting = 0;
    switch (expecting) {
    case CMD_WRITE_CONFIG:
        k->command = value & 0x7f;
        break;
    case CMD_WRITE_OUTPUT:
        k->output_port = value | OUTPUT_NOT_RESET;
        drive_a20(k);
        if (!(value & OUTPUT_NOT_RESET))
            reset_line(k);
        break;
    case CMD_WRITE_KBD:
    case CMD_WRITE_AUX: /* as if the device had sent it */
        fill(k, value, expecting == CMD_WRITE_AUX);
        break;
    case CMD_TO_AUX:
        k->command &= (uint8_t)~CONFIG_AUX_OFF; /* sending turns the clock on */
        fvm_ps2_mouse_write(&k->mouse, value);
        break;
    default:
        k->command &= (uint8_t)~CONFIG_KBD_OFF;
        fvm_ps2_kbd_write(&k->kbd, value);
        break;
    }
    pump(k);
}

static uint64_t data_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8042 *k = ctx;

    uint8_t value = k->output;

    (void)offset;
    (void)size;
    k->output_full = k->output_aux = false;
    drive_lines(k); /* low first: the next byte is another interrupt */
    pump(k);
    return value;
}

static void data_port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    data_write(ctx, (uint8_t)value);
}

static uint64_t status_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8042 *k = ctx;

    (void)offset;
    (void)size;
    return STATUS_UNLOCKED | (k->output_full ? STATUS_OUTPUT : 0u) | (k->output_aux ? STATUS_AUX : 0u) |
           (k->command & CONFIG_SYSTEM ? STATUS_SYSTEM : 0u) |
           (k->last_was_command ? STATUS_COMMAND : 0u);
}

static void command_port_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    (void)offset;
    (void)size;
    command_write(ctx, (uint8_t)value);
}

static uint64_t port_a_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8042 *k = ctx;

    (void)offset;
    (void)size;
    return k->output_port & OUTPUT_A20;
}

static void port_a_write(void *ctx, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *k = ctx;

    (void)offset;
    (void)size;
    k->output_port = (uint8_t)((k->output_port & ~OUTPUT_A20) | (value & OUTPUT_A20));
    drive_a20(k);
    if (value & 1)
        reset_line(k);
}

static const struct fvm_bus_ops port_ops[3] = {
    {.read = data_read, .write = data_port_write},
    {.read = status_read, .write = command_port_write},
    {.read = port_a_read, .write = port_a_write},
};

static void i8042_reset(struct fvm_device *dev)
{
    struct i8042 *k = (struct i8042 *)dev;

    k->output = k->expecting = 0;
    k->output_full = k->output_aux = k->last_was_command = k->break_next = false;
    k->command = CONFIG_SYSTEM | CONFIG_KBD_OFF | CONFIG_AUX_OFF | CONFIG_TRANSLATE;
    fvm_ps2_kbd_reset(&k->kbd);
    fvm_ps2_mouse_reset(&k->mouse);
    k->output_port = OUTPUT_NOT_RESET | OUTPUT_A20;
    drive_a20(k);
    drive_lines(k);
}

static void i8042_destroy(struct fvm_device *dev)
{
    struct i8042 *k = (struct i8042 *)dev;

    for (unsigned i = 0; i < 3; i++)
        fvm_bus_release(dev->board->bus, k->claim_id[i]);
    for (unsigned i = 0; i < 2; i++)
        fvm_irq_source_destroy(&k->line[i]);
    free(k);
}

static int i8042_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct i8042 *k = (struct i8042 *)dev;
    Fvm__I8042State state = FVM__I8042_STATE__INIT;
    Fvm__Ps2KbdState kbd;
    Fvm__Ps2MouseState mouse;

    fvm_ps2_kbd_save(&k->kbd, &kbd);
    fvm_ps2_mouse_save(&k->mouse, &mouse);
    state.keyboard = &kbd;
    state.mouse = &mouse;
    state.output_aux = k->output_aux;
    state.break_next = k->break_next;
    state.output_full = k->output_full;
    state.output = k->output;
    state.command = k->command;
    state.expecting = k->expecting;
    state.output_port = k->output_port;
    state.last_was_command = k->last_was_command;
    return fvm_device_pack(&state.base, ret_buf, ret_len);
}

static int i8042_check(struct fvm_device *dev, const uint8_t *buf, size_t len, struct fvm_err *err)
{
    Fvm__I8042State *s = (void *)fvm_device_unpack(&fvm__i8042_state__descriptor, dev, buf, len, err);
    const char *wrong = NULL;

    if (!s)
        return FVM_EBADIMAGE;
    if (s->output > 0xff || s->command > 0x7f || s->output_port > 0xff || !(s->output_port & OUTPUT_NOT_RESET))
        wrong = "a register has bits that do not exist";
    else if (s->expecting && s->expecting != CMD_WRITE_CONFIG &&
             (s->expecting < CMD_WRITE_OUTPUT || s->expecting > CMD_TO_AUX))
        wrong = "waits for data of a command that takes none";
    else if (s->output_aux && !s->output_full)
        wrong = "a byte of the mouse's in an empty buffer";
    if (!wrong)
        wrong = fvm_ps2_kbd_check(s->keyboard);
    if (!wrong)
        wrong = fvm_ps2_mouse_check(s->mouse);
    fvm__i8042_state__free_unpacked(s, NULL);
    return wrong ? fvm_device_refuse(dev, err, wrong) : 0;
}

static void i8042_restore(struct fvm_device *dev, const uint8_t *buf, size_t len)
{
    struct i8042 *k = (struct i8042 *)dev;
    Fvm__I8042State *s = fvm__i8042_state__unpack(NULL, len, buf);

    fvm_assert(s);
    k->output_full = s->output_full;
    k->output = (uint8_t)s->output;
    k->command = (uint8_t)s->command;
    k->expecting = (uint8_t)s->expecting;
    k->output_port = (uint8_t)s->output_port;
    k->last_was_command = s->last_was_command;
    k->output_aux = s->output_aux;
    k->break_next = s->break_next;
    fvm_ps2_kbd_restore(&k->kbd, s->keyboard);
    fvm_ps2_mouse_restore(&k->mouse, s->mouse);
    drive_a20(k);
    drive_lines(k);
    fvm__i8042_state__free_unpacked(s, NULL);
}

static const struct fvm_device_ops i8042_ops = {
    .name = "i8042",
    .destroy = i8042_destroy,
    .reset = i8042_reset,
    .save = i8042_save,
    .check = i8042_check,
    .restore = i8042_restore,
};

/* ---- who types ---- */

void fvm_i8042_key(struct fvm_device *dev, unsigned key, bool down)
{
    struct i8042 *k = (struct i8042 *)dev;

    fvm_ps2_kbd_key(&k->kbd, key, down);
    pump(k);
}

bool fvm_i8042_key_room(const struct fvm_device *dev)
{
    return fvm_ps2_room(&((const struct i8042 *)dev)->kbd.queue) >= 16;
}

void fvm_i8042_mouse(struct fvm_device *dev, int dx, int dy, int dz, unsigned buttons)
{
    struct i8042 *k = (struct i8042 *)dev;

    fvm_ps2_mouse_move(&k->mouse, dx, dy, dz, buttons);
    pump(k);
}

unsigned fvm_i8042_leds(const struct fvm_device *dev)
{
    return ((const struct i8042 *)dev)->kbd.leds;
}

/* ---- create ---- */

/* What the controller makes of a byte of set 2. Bytes that are no keys (answers: fa, aa, ee, ab...) pass; 83 is F7. */
static void make_translation(struct i8042 *k)
{
    for (unsigned i = 0; i < 256; i++)
        k->set1_of[i] = (uint8_t)i;
    for (unsigned key = 1; key < 128; key++)
        k->set1_of[fvm_ps2_set2_of(key)] = (uint8_t)key;
    k->set1_of[0] = 0xff; /* the keyboard's overrun */
    k->set1_of[0x84] = 0x54;
}

int fvm_i8042_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    static const uint16_t port[3] = {PORT_DATA, PORT_COMMAND, PORT_A};
    static const unsigned line[2] = {LINE_KBD, LINE_AUX};
    struct i8042 *k = calloc(1, sizeof(*k));
    unsigned n = 0;
    int r = 0;

    if (!k)
        return FVM_ENOMEM;
    fvm_device_init(&k->dev, &i8042_ops, "i8042", board);
    make_translation(k);
    for (unsigned i = 0; !r && i < 2; i++)
        r = fvm_irq_source_create(board->irq, line[i], &k->line[i]);
    while (!r && n < 3) {
        r = fvm_bus_claim(board->bus, FVM_BUS_PIO, port[n], 1, &port_ops[n], k, "i8042", &k->claim_id[n]);
        n += !r;
    }
    if (r) {
        while (n-- > 0)
            fvm_bus_release(board->bus, k->claim_id[n]);
        for (unsigned i = 0; i < 2; i++)
            if (k->line[i])
                fvm_irq_source_destroy(&k->line[i]);
        free(k);
        return r;
    }
    i8042_reset(&k->dev);
    *ret_dev = &k->dev;
    return 0;
}

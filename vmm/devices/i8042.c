/*
 * i8042.c - keyboard controller without a keyboard: the controller's own commands answer, devices behind it do not.
 *
 * What old software needs of it: reset by pulsing the output port (command fe), the A20 line (always on here), self
 * test. Port 92 is the chip set's faster way to the same two wires.
 */
#include "vmm/devices/i8042.h"

#include <stdlib.h>

#include "proto/device_state.pb-c.h"
#include "vmm/devices/pack.h"

enum { PORT_DATA = 0x60, PORT_COMMAND = 0x64, PORT_A = 0x92 };
enum { STATUS_OUTPUT = 1, STATUS_SYSTEM = 4, STATUS_COMMAND = 8, STATUS_UNLOCKED = 0x10 };
enum { CMD_READ_CONFIG = 0x20, CMD_WRITE_CONFIG = 0x60, CMD_AUX_OFF = 0xa7, CMD_AUX_ON = 0xa8, CMD_AUX_TEST = 0xa9,
       CMD_SELF_TEST = 0xaa, CMD_KBD_TEST = 0xab, CMD_KBD_OFF = 0xad, CMD_KBD_ON = 0xae, CMD_READ_INPUT = 0xc0,
       CMD_READ_OUTPUT = 0xd0, CMD_WRITE_OUTPUT = 0xd1, CMD_PULSE = 0xf0 };
enum { CONFIG_SYSTEM = 4, CONFIG_KBD_OFF = 0x10, CONFIG_AUX_OFF = 0x20 };
enum { OUTPUT_NOT_RESET = 1, OUTPUT_A20 = 2 };

struct i8042 {
    struct fvm_device dev;
    uint8_t output, command, expecting, output_port;
    bool output_full, last_was_command;
    int claim_id[3];
};

static void reset_line(struct i8042 *k)
{
    const struct fvm_board *board = k->dev.board;

    if (board->reset)
        board->reset(board->ctx);
}

static void answer(struct i8042 *k, uint8_t value)
{
    k->output = value;
    k->output_full = true;
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
    default:
        if (value >= CMD_PULSE && !(value & OUTPUT_NOT_RESET))
            reset_line(k);
        break;
    }
}

static void data_write(struct i8042 *k, uint8_t value)
{
    uint8_t expecting = k->expecting;

    k->last_was_command = false;
    k->expecting = 0;
    if (expecting == CMD_WRITE_CONFIG) {
        k->command = value & 0x7f;
    } else if (expecting == CMD_WRITE_OUTPUT) {
        k->output_port = value | OUTPUT_NOT_RESET;
        if (!(value & OUTPUT_NOT_RESET))
            reset_line(k);
    }
}

static uint64_t data_read(void *ctx, uint64_t offset, unsigned size)
{
    struct i8042 *k = ctx;

    (void)offset;
    (void)size;
    k->output_full = false;
    return k->output;
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
    return STATUS_UNLOCKED | (k->output_full ? STATUS_OUTPUT : 0u) | (k->command & CONFIG_SYSTEM ? STATUS_SYSTEM : 0u) |
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
    k->output_full = k->last_was_command = false;
    k->command = CONFIG_SYSTEM | CONFIG_KBD_OFF | CONFIG_AUX_OFF;
    k->output_port = OUTPUT_NOT_RESET | OUTPUT_A20;
}

static void i8042_destroy(struct fvm_device *dev)
{
    struct i8042 *k = (struct i8042 *)dev;

    for (unsigned i = 0; i < 3; i++)
        fvm_bus_release(dev->board->bus, k->claim_id[i]);
    free(k);
}

static int i8042_save(struct fvm_device *dev, uint8_t **ret_buf, size_t *ret_len)
{
    struct i8042 *k = (struct i8042 *)dev;
    Fvm__I8042State state = FVM__I8042_STATE__INIT;

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
    else if (s->expecting && s->expecting != CMD_WRITE_CONFIG && s->expecting != CMD_WRITE_OUTPUT)
        wrong = "waits for data of a command that takes none";
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

int fvm_i8042_create(struct fvm_board *board, struct fvm_device **ret_dev)
{
    static const uint16_t port[3] = {PORT_DATA, PORT_COMMAND, PORT_A};
    struct i8042 *k = calloc(1, sizeof(*k));
    unsigned n;
    int r = 0;

    if (!k)
        return FVM_ENOMEM;
    fvm_device_init(&k->dev, &i8042_ops, "i8042", board);
    for (n = 0; n < 3; n++) {
        r = fvm_bus_claim(board->bus, FVM_BUS_PIO, port[n], 1, &port_ops[n], k, "i8042", &k->claim_id[n]);
        if (r)
            break;
    }
    if (r) {
        while (n-- > 0)
            fvm_bus_release(board->bus, k->claim_id[n]);
        free(k);
        return r;
    }
    i8042_reset(&k->dev);
    *ret_dev = &k->dev;
    return 0;
}

/*
 * vm_keys.c - the tables of vm_keys.h. Scan code set 1 is the common currency: a row of keys has consecutive numbers.
 */
#include "vmm/vm_keys.h"

#include <string.h>
#include <strings.h>

#include "vmm/devices/ps2.h"

#define E0(code) ((code) | FVM_KEY_E0)

static const struct {
    const char *name;
    uint16_t key;
} names[] = {
    {"esc", 1}, {"minus", 12}, {"equal", 13}, {"backspace", 14}, {"tab", 15}, {"bracket_left", 26},
    {"bracket_right", 27}, {"ret", 28}, {"enter", 28}, {"return", 28}, {"ctrl", 29}, {"semicolon", 39},
    {"apostrophe", 40}, {"grave", 41}, {"shift", 42}, {"backslash", 43}, {"comma", 51}, {"dot", 52}, {"slash", 53},
    {"shift_r", 54}, {"kp_multiply", 55}, {"alt", 56}, {"spc", 57}, {"space", 57}, {"caps_lock", 58}, {"f1", 59},
    {"f2", 60}, {"f3", 61}, {"f4", 62}, {"f5", 63}, {"f6", 64}, {"f7", 65}, {"f8", 66}, {"f9", 67}, {"f10", 68},
    {"num_lock", 69}, {"scroll_lock", 70}, {"kp_7", 71}, {"kp_8", 72}, {"kp_9", 73}, {"kp_subtract", 74},
    {"kp_4", 75}, {"kp_5", 76}, {"kp_6", 77}, {"kp_add", 78}, {"kp_1", 79}, {"kp_2", 80}, {"kp_3", 81}, {"kp_0", 82},
    {"kp_decimal", 83}, {"sysrq", 84}, {"less", 86}, {"f11", 87}, {"f12", 88}, {"kp_enter", E0(28)},
    {"ctrl_r", E0(29)}, {"kp_divide", E0(53)}, {"alt_r", E0(56)}, {"altgr", E0(56)}, {"home", E0(71)}, {"up", E0(72)},
    {"pgup", E0(73)}, {"left", E0(75)}, {"right", E0(77)}, {"end", E0(79)}, {"down", E0(80)}, {"pgdn", E0(81)},
    {"insert", E0(82)}, {"delete", E0(83)}, {"meta", E0(91)}, {"meta_r", E0(92)}, {"menu", E0(93)},
    {"print", FVM_KEY_PRINT}, {"pause", FVM_KEY_PAUSE},
};

static const struct {
    uint8_t first;
    const char *plain, *shifted;
} rows[] = {
    {2, "1234567890-=", "!@#$%^&*()_+"},
    {16, "qwertyuiop[]", "QWERTYUIOP{}"},
    {30, "asdfghjkl;'`", "ASDFGHJKL:\"~"},
    {43, "\\zxcvbnm,./", "|ZXCVBNM<>?"},
    {57, " ", " "},
    {14, "\b\t", "\b\t"},
    {28, "\n", "\n"},
    {1, "\033", "\033"},
};

unsigned fvm_keys_of_char(unsigned char c, bool *ret_shift)
{
    if (c == '\r')
        c = '\n';
    for (size_t i = 0; c && i < FVM_ARRAY_SIZE(rows); i++) {
        const char *at = strchr(rows[i].plain, c);
        *ret_shift = !at;
        if (!at && (at = strchr(rows[i].shifted, c)))
            return rows[i].first + (unsigned)(at - rows[i].shifted);
        if (at)
            return rows[i].first + (unsigned)(at - rows[i].plain);
    }
    return 0;
}

static unsigned find_name(const char *name, size_t len)
{
    bool shift;
    if (len == 1) {
        unsigned key = fvm_keys_of_char((unsigned char)name[0], &shift);
        return shift ? 0 : key;
    }
    for (size_t i = 0; i < FVM_ARRAY_SIZE(names); i++)
        if (strlen(names[i].name) == len && !strncasecmp(names[i].name, name, len))
            return names[i].key;
    return 0;
}

int fvm_keys_parse(const char *text, unsigned ret_keys[FVM_KEYS_CHORD_MAX], struct fvm_err *err)
{
    unsigned keys[FVM_KEYS_CHORD_MAX];
    int count = 0;
    for (const char *p = text;; p++) {
        size_t len = strcspn(p, "-");
        unsigned key = find_name(p, len);
        if (!key)
            return fvm_err_set(err, FVM_EINVAL, 0, "keys",
                               "key \"%.*s\" is unknown; write names with \"-\" between, as ctrl-alt-f2 or shift-a",
                               (int)FVM_MIN(len, (size_t)40), p);
        if (count == FVM_KEYS_CHORD_MAX)
            return fvm_err_set(err, FVM_EINVAL, 0, "keys", "more than %d keys at once", FVM_KEYS_CHORD_MAX);
        keys[count++] = key;
        p += len;
        if (!*p)
            break;
    }
    memcpy(ret_keys, keys, (size_t)count * sizeof(*keys));
    return count;
}

/* Keysyms ff00..ffff, in order. */
static const struct {
    uint16_t sym, key;
} keysyms[] = {
    {0xff08, 14}, {0xff09, 15}, {0xff0d, 28}, {0xff13, FVM_KEY_PAUSE}, {0xff14, 70}, {0xff15, 84}, {0xff1b, 1},
    {0xff50, E0(71)}, {0xff51, E0(75)}, {0xff52, E0(72)}, {0xff53, E0(77)}, {0xff54, E0(80)}, {0xff55, E0(73)},
    {0xff56, E0(81)}, {0xff57, E0(79)}, {0xff61, FVM_KEY_PRINT}, {0xff63, E0(82)}, {0xff67, E0(93)}, {0xff7f, 69},
    {0xff8d, E0(28)}, {0xff95, 71}, {0xff96, 75}, {0xff97, 72}, {0xff98, 77}, {0xff99, 80}, {0xff9a, 73}, {0xff9b, 81},
    {0xff9c, 79}, {0xff9d, 76}, {0xff9e, 82}, {0xff9f, 83}, {0xffaa, 55}, {0xffab, 78}, {0xffad, 74}, {0xffae, 83},
    {0xffaf, E0(53)}, {0xffb0, 82}, {0xffb1, 79}, {0xffb2, 80}, {0xffb3, 81}, {0xffb4, 75}, {0xffb5, 76}, {0xffb6, 77},
    {0xffb7, 71}, {0xffb8, 72}, {0xffb9, 73}, {0xffc8, 87}, {0xffc9, 88}, {0xffe1, 42}, {0xffe2, 54}, {0xffe3, 29},
    {0xffe4, E0(29)}, {0xffe5, 58}, {0xffe7, 56}, {0xffe8, E0(56)}, {0xffe9, 56}, {0xffea, E0(56)}, {0xffeb, E0(91)},
    {0xffec, E0(92)}, {0xffff, E0(83)}, {0xfe03, E0(56)}, {0xfe20, 15},
};

unsigned fvm_keys_of_keysym(uint32_t keysym)
{
    bool shift;
    if (keysym >= 0x20 && keysym <= 0x7e)
        return fvm_keys_of_char((unsigned char)keysym, &shift);
    if (keysym >= 0xffbe && keysym <= 0xffc7) /* F1..F10 */
        return 59 + (keysym - 0xffbe);
    for (size_t i = 0; i < FVM_ARRAY_SIZE(keysyms); i++)
        if (keysyms[i].sym == keysym)
            return keysyms[i].key;
    return 0;
}

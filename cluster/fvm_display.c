/*
 * fvm_display.c - the commands of fvm_display.h.
 *
 * Keys wait in a list of our own until the guest's keyboard has room: a real one holds a dozen bytes, a pasted text is
 * long. Each request is a run of events in it.
 * Invariant: the first request of the list is the one being typed; every request is answered once, in order.
 */
#include "cluster/fvm_display.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fvm_png.h"
#include "vmm/devices/vga.h"
#include "vmm/vm_keys.h"
#include "vmm/vnc.h"

enum { TYPE_MAX = 16384, TICK_NS = 4000000, STUCK_NS_S = 10, HOLD_MS_MAX = 10000 };

struct event {
    uint16_t key;
    bool down;
};

struct typing { /* one request */
    struct typing *next;
    struct fvm_control_call *call;
    struct event *events;
    size_t count, done;
    size_t hold_at;     /* before this event hold_ns pass */
    uint64_t hold_ns;
    unsigned typed;     /* for the answer */
};

struct fvm_run_display { /* loop's thread */
    struct fvm_run *run;
    struct fvm_loop_timer *timer;
    struct typing *first;
    uint64_t progress_ns;
    struct fvm_vnc *vnc;
};

static int need(struct fvm_run *run, struct fvm_err *err);

/* ---- pictures ---- */

static int write_file(const char *path, const uint8_t *bytes, size_t len, struct fvm_err *err)
{
    char part[4200];
    if ((size_t)snprintf(part, sizeof(part), "%s.part", path) >= sizeof(part))
        return fvm_err_set(err, FVM_EINVAL, 0, "display", "the file's name is too long");
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    size_t done = 0;
    int e = fd < 0 ? errno : 0;
    while (!e && done < len) {
        ssize_t n = write(fd, bytes + done, len - done);
        if (n < 0 && errno != EINTR)
            e = errno;
        else if (n > 0)
            done += (size_t)n;
    }
    if (fd >= 0 && close(fd) < 0 && !e)
        e = errno;
    if (!e && rename(part, path) < 0)
        e = errno;
    if (!e)
        return 0;
    if (fd >= 0)
        unlink(part);
    return fvm_err_set(err, fvm_err_from_errno(e), e, "display", "%s: %s", path, strerror(e));
}

static int no_screen(struct fvm_err *err, int r)
{
    if (r == FVM_ENOENT)
        return fvm_err_set(err, r, 0, "display", "this VM has no display adapter (it was started with --vga none)");
    if (r == FVM_ESTATE)
        return fvm_err_set(err, r, 0, "display", "the screen is in a graphics mode: there are no characters to read");
    return fvm_err_set(err, r, 0, "display", "the screen cannot be drawn: %s", fvm_err_text(r));
}

static int screen_text(struct fvm_run *run, json_t **ret, struct fvm_err *err)
{
    char *text;
    int r = fvm_vm_screen_text(run->vm, &text);
    if (r)
        return no_screen(err, r);
    *ret = json_pack("{s:s}", "text", text);
    free(text);
    return 0;
}

static int screen_png(struct fvm_run *run, const char *path, json_t **ret, struct fvm_err *err)
{
    struct fvm_surface surface = {0};
    uint8_t *bytes = NULL;
    size_t len = 0;
    if (path[0] != '/')
        return fvm_err_set(err, FVM_EINVAL, 0, "display", "\"path\" must begin with /");
    int r = fvm_vm_screen(run->vm, &surface);
    if (!r)
        r = fvm_png_make(&surface, &bytes, &len);
    if (r)
        no_screen(err, r);
    else
        r = write_file(path, bytes, len, err);
    if (!r)
        *ret = json_pack("{s:s, s:i, s:i}", "path", path, "width", (int)surface.width, "height", (int)surface.height);
    free(bytes);
    fvm_surface_fini(&surface);
    return r;
}

static void command_screenshot(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    struct fvm_run *run = ctx;
    struct fvm_err err = {0};
    json_t *result = NULL;
    const char *path = "";
    int r = run->vm ? 0 : fvm_err_set(&err, FVM_ESTATE, 0, "display", "this process waits for a guest");
    if (!r && json_is_true(json_object_get(request, "text")))
        r = screen_text(run, &result, &err);
    else if (!r && !(r = fvm_control_get_string(request, "path", NULL, &path, &err)))
        r = screen_png(run, path, &result, &err);
    if (r)
        fvm_control_fail(call, &err);
    else
        fvm_control_reply(call, result);
}

/* ---- keys ---- */

static void finish(struct fvm_run_display *d, const struct fvm_err *err)
{
    struct typing *t = d->first;
    d->first = t->next;
    if (t->call && err)
        fvm_control_fail(t->call, err);
    else if (t->call)
        fvm_control_reply(t->call, json_pack("{s:i}", "typed", (int)t->typed));
    free(t->events);
    free(t);
}

static void on_tick(void *ctx)
{
    struct fvm_run_display *d = ctx;
    uint64_t now = fvm_now_ns(), wait_ns = TICK_NS;
    while (d->first && d->run->vm) {
        struct typing *t = d->first;
        if (t->done == t->count) {
            finish(d, NULL);
            d->progress_ns = now;
            continue;
        }
        if (t->hold_ns && t->done == t->hold_at) {
            if (now - d->progress_ns < t->hold_ns) {
                wait_ns = t->hold_ns - (now - d->progress_ns);
                break;
            }
            t->hold_ns = 0;
        }
        if (!fvm_vm_key_room(d->run->vm)) {
            if (now - d->progress_ns < STUCK_NS_S * 1000000000ull)
                break;
            const struct fvm_err err = {.code = FVM_ETIMEOUT, .text = "the guest does not read its keyboard"};
            finish(d, &err);
            d->progress_ns = now;
            continue;
        }
        (void)fvm_vm_key(d->run->vm, t->events[t->done].key, t->events[t->done].down);
        t->done++;
        d->progress_ns = now;
    }
    if (d->first)
        fvm_loop_timer_arm(d->timer, now + wait_ns);
}

static void add(struct typing *t, unsigned key, bool down)
{
    t->events[t->count++] = (struct event){.key = (uint16_t)key, .down = down};
}

static struct typing *typing_new(size_t events)
{
    struct typing *t = calloc(1, sizeof(*t));
    if (t)
        t->events = calloc(events, sizeof(*t->events));
    if (t && !t->events) {
        free(t);
        t = NULL;
    }
    return t;
}

static void enqueue(struct fvm_run_display *d, struct typing *t)
{
    struct typing **end = &d->first;
    if (!d->first)
        d->progress_ns = fvm_now_ns();
    while (*end)
        end = &(*end)->next;
    *end = t;
    on_tick(d);
}

static int may_type(struct fvm_run *run, struct fvm_err *err)
{
    if (!run->vm || fvm_vm_get_state(run->vm) != FVM_VM_RUNNING)
        return fvm_err_set(err, FVM_ESTATE, 0, "display", "the guest does not run: nobody reads the keyboard");
    return need(run, err);
}

static int make_chord(const json_t *request, struct typing **ret, struct fvm_err *err)
{
    unsigned keys[FVM_KEYS_CHORD_MAX];
    const char *text;
    int64_t hold_ms = 0;
    int r = fvm_control_get_string(request, "keys", NULL, &text, err);
    if (!r)
        r = fvm_control_get_int(request, "hold_ms", 0, HOLD_MS_MAX, 50, &hold_ms, err);
    int count = r ? r : fvm_keys_parse(text, keys, err);
    if (count < 0)
        return count;
    struct typing *t = typing_new(2 * (size_t)count);
    if (!t)
        return fvm_err_set(err, FVM_ENOMEM, 0, "display", "out of memory");
    for (int i = 0; i < count; i++)
        add(t, keys[i], true);
    t->hold_at = t->count;
    t->hold_ns = (uint64_t)hold_ms * 1000000u;
    for (int i = count; i-- > 0;)
        add(t, keys[i], false);
    t->typed = 1;
    *ret = t;
    return 0;
}

static int make_text(const json_t *request, struct typing **ret, struct fvm_err *err)
{
    const char *text;
    int r = fvm_control_get_string(request, "text", NULL, &text, err);
    if (r)
        return r;
    size_t len = strlen(text);
    if (len > TYPE_MAX)
        return fvm_err_set(err, FVM_EINVAL, 0, "display", "%zu characters at once; at most %d", len, TYPE_MAX);
    struct typing *t = typing_new(4 * len + 1);
    if (!t)
        return fvm_err_set(err, FVM_ENOMEM, 0, "display", "out of memory");
    for (size_t i = 0; i < len; i++) {
        bool shift = false;
        unsigned key = fvm_keys_of_char((unsigned char)text[i], &shift);
        if (!key) {
            free(t->events);
            free(t);
            return fvm_err_set(err, FVM_EINVAL, 0, "display",
                               "byte %zu (0x%02x) is no character of a US keyboard; only those can be typed", i,
                               (unsigned char)text[i]);
        }
        if (shift)
            add(t, FVM_KEY_LEFT_SHIFT, true);
        add(t, key, true);
        add(t, key, false);
        if (shift)
            add(t, FVM_KEY_LEFT_SHIFT, false);
    }
    t->typed = (unsigned)len;
    *ret = t;
    return 0;
}

static void start_typing(struct fvm_run *run, struct fvm_control_call *call, const json_t *request,
                         int (*make)(const json_t *request, struct typing **ret, struct fvm_err *err))
{
    struct fvm_err err = {0};
    struct typing *t = NULL;
    int r = may_type(run, &err);
    if (!r)
        r = make(request, &t, &err);
    if (r) {
        fvm_control_fail(call, &err);
        return;
    }
    t->call = call;
    enqueue(run->display, t);
}

static void command_sendkey(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    start_typing(ctx, call, request, make_chord);
}

static void command_type(void *ctx, struct fvm_control_call *call, const json_t *request)
{
    start_typing(ctx, call, request, make_text);
}

/* ---- life ---- */

static int need(struct fvm_run *run, struct fvm_err *err)
{
    if (run->display)
        return 0;
    struct fvm_run_display *d = calloc(1, sizeof(*d));
    int r = d ? fvm_loop_timer_add(run->loop, on_tick, d, &d->timer) : FVM_ENOMEM;
    if (r) {
        free(d);
        return fvm_err_set(err, r, 0, "display", "out of memory");
    }
    d->run = run;
    run->display = d;
    return 0;
}

int fvm_display_register(struct fvm_run *run)
{
    static const struct {
        const char *name, *help;
        fvm_control_fn fn;
    } list[] = {
        {"screenshot", "the screen as a PNG file, or a text mode's characters", command_screenshot},
        {"sendkey", "press keys together, as ctrl-alt-f2", command_sendkey},
        {"type", "type a text on the keyboard", command_type},
    };
    int r = 0;
    for (size_t i = 0; !r && i < FVM_ARRAY_SIZE(list); i++)
        r = fvm_control_register(run->control, list[i].name, list[i].help, list[i].fn, run);
    return r;
}

/* ---- the VNC server's view of a VM ---- */

static int vnc_screen(void *ctx, struct fvm_surface *ret)
{
    struct fvm_run *run = ctx;
    return run->vm ? fvm_vm_screen(run->vm, ret) : FVM_ENOENT;
}

static void vnc_key(void *ctx, unsigned key, bool down)
{
    struct fvm_run *run = ctx;
    if (run->vm)
        (void)fvm_vm_key(run->vm, key, down);
}

static void vnc_mouse(void *ctx, int dx, int dy, int dz, unsigned buttons)
{
    struct fvm_run *run = ctx;
    if (run->vm)
        (void)fvm_vm_mouse(run->vm, dx, dy, dz, buttons);
}

int fvm_display_open(struct fvm_run *run, struct fvm_err *err)
{
    const struct fvm_vnc_host host = {
        .screen = vnc_screen, .key = vnc_key, .mouse = vnc_mouse, .ctx = run, .name = run->options.config->name};
    int r = run->options.vnc ? need(run, err) : 0;
    if (r || !run->options.vnc)
        return r;
    return fvm_vnc_create(run->loop, run->options.vnc, run->options.vnc_password_file, &host, &run->display->vnc, err);
}

void fvm_display_close(struct fvm_run *run)
{
    struct fvm_run_display *d = run->display;
    if (!d)
        return;
    while (d->first) { /* unanswered calls are the control socket's to drop */
        d->first->call = NULL;
        finish(d, NULL);
    }
    fvm_vnc_destroy(&d->vnc);
    fvm_loop_timer_remove(&d->timer);
    free(d);
    run->display = NULL;
}

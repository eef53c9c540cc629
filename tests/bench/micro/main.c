/*
 * main.c - the micro-benchmark program: picks benches, or one of the other modes. See micro.h, and usage() below.
 *
 * Static and with no need but a Linux kernel, so that it also runs as the only program of an initrd.
 */
#include "micro.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bench {
    const char *name, *group, *rows;
    void (*run)(struct micro *m);
};

static const struct bench benches[] = {
#define BENCH(name, group, rows) {#name, #group, rows, micro_bench_##name},
#include "benches.def"
#undef BENCH
};

enum { BENCHES = sizeof(benches) / sizeof(benches[0]) };

static int usage(void)
{
    fputs("usage: micro list                         a line \"NAME GROUP ROW...\" per bench\n"
          "       micro all|NAME,NAME... [SCALE]      rows \"ROW VALUE UNIT\"\n"
          "       micro jitter SECONDS [MIN_MS]       every pause of this machine longer than MIN_MS (5)\n"
          "       micro beat INTERVAL_MS SECONDS      a line per interval (below 1000), for a clock outside\n"
          "       micro dirty MIB MIB_PER_S SECONDS [random]   writes pages at a rate (0: flat out), names its pauses\n"
          "       micro blk DEVICE [SCALE]            random 4 KiB and sequential 1 MiB reads, O_DIRECT\n"
          "MICRO_PROGRAMS is the folder of the programs true and sh (default /bin).\n",
          stderr);
    return 64;
}

static int list(void)
{
    for (int i = 0; i < BENCHES; i++)
        printf("%s %s %s\n", benches[i].name, benches[i].group, benches[i].rows);
    return 0;
}

static const struct bench *find(const char *name)
{
    for (int i = 0; i < BENCHES; i++)
        if (!strcmp(benches[i].name, name))
            return &benches[i];
    return NULL;
}

static int run_named(struct micro *m, char *names)
{
    for (char *rest = NULL, *name = strtok_r(names, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        const struct bench *b = find(name);
        if (!b) {
            fprintf(stderr, "micro: no bench %s; micro list names them\n", name);
            return 64;
        }
        b->run(m);
    }
    return 0;
}

static int run_all(struct micro *m)
{
    for (int i = 0; i < BENCHES; i++)
        benches[i].run(m);
    return 0;
}

int main(int argc, char **argv)
{
    struct micro m = {.scale = 1, .random = 88172645463325252ull, .programs = getenv("MICRO_PROGRAMS")};
    const char *mode = argc > 1 ? argv[1] : "";
    if (!m.programs)
        m.programs = "/bin";
    if (!strcmp(mode, "true")) /* what fork_exec_static starts */
        return 0;
    if (!strcmp(mode, "list"))
        return list();
    if (!strcmp(mode, "jitter") && argc > 2) {
        micro_mode_jitter(atof(argv[2]), argc > 3 ? atof(argv[3]) : 5);
        return 0;
    }
    if (!strcmp(mode, "beat") && argc > 3) {
        micro_mode_beat(atof(argv[2]), atof(argv[3]));
        return 0;
    }
    if (!strcmp(mode, "dirty") && argc > 4) {
        micro_mode_dirty(&m, (size_t)atol(argv[2]), atof(argv[3]), atof(argv[4]), argc > 5 && argv[5][0] == 'r');
        return 0;
    }
    if (argc > (!strcmp(mode, "blk") ? 3 : 2))
        m.scale = atof(argv[argc - 1]);
    if (!strcmp(mode, "blk") && argc > 2)
        return micro_mode_blk(&m, argv[2]);
    if (!*mode || mode[0] == '-' || m.scale <= 0)
        return usage();
    return strcmp(mode, "all") ? run_named(&m, argv[1]) : run_all(&m);
}

/*
 * main_fvm.c - the program `fvm`: finds the command. `fvm run` lives in fvm_run.c, the others in fvm_client.c.
 */
#include <argp.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cluster/fvm_display.h"
#include "cluster/fvm_migrate.h"
#include "cluster/fvm_snapshot.h"

const char *argp_program_version = "fvm " FVM_VERSION;

static void usage(FILE *out)
{
    fputs("Usage: fvm COMMAND [OPTION...]\n"
          "Run a virtual machine on any x86-64 Linux host, without hardware support or rights.\n\n"
          "  run        Boot a machine: fvm run --kernel FILE [--initrd FILE] [--append TEXT]\n",
          out);
    fputs("  migrate    Move a running guest: fvm migrate --control unix:A --to unix:B\n", out);
    fputs("  snapshot   Write a guest to a file\n"
          "  restore    Let a guest go on from such a file: fvm restore FILE [--control unix:F]\n", out);
    fputs("  screenshot Save what the guest shows as a PNG file, or print its text\n"
          "  sendkey    Press keys, as ctrl-alt-f2\n"
          "  type       Type a text on the guest's keyboard\n", out);
    fvm_client_list(out);
    fputs("\nfvm COMMAND --help tells the options of each. Full description: man fvm\n", out);
}

/* Started with 0, 1 or 2 closed, the next file opened would become "stdin": a disk with the guest's letters in it. */
static void hold_standard_files(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv)
{
    hold_standard_files();
    if (argc < 2) {
        fputs("fvm: which command? fvm --help lists them\n", stderr);
        return fvm_err_exit_status(FVM_EINVAL);
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        usage(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        puts(argp_program_version);
        return 0;
    }
    if (!strcmp(argv[1], "run")) {
        static char name[] = "fvm run";
        argv[1] = name;
        return fvm_run_main(argc - 1, argv + 1);
    }
    if (!strcmp(argv[1], "restore")) {
        static char name[] = "fvm restore";
        argv[1] = name;
        return fvm_run_main(argc - 1, argv + 1);
    }
    if (!strcmp(argv[1], "snapshot")) {
        static char name[] = "fvm snapshot";
        argv[1] = name;
        return fvm_snapshot_client_main(argc - 1, argv + 1);
    }
    if (!strcmp(argv[1], "migrate")) {
        static char name[] = "fvm migrate";
        argv[1] = name;
        return fvm_migrate_client_main(argc - 1, argv + 1);
    }
    int status = fvm_display_client_main(argc, argv);
    if (status < 0)
        status = fvm_client_main(argc, argv);
    if (status >= 0)
        return status;
    fprintf(stderr, "fvm: command \"%.40s\" is unknown; fvm --help lists them\n", argv[1]);
    return fvm_err_exit_status(FVM_EINVAL);
}

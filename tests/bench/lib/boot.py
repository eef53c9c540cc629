"""Wall time from the start of a machine's process to the first line of init."""
from lib.machine import Output, Stalled, Waits, note

MARK = "fvm-guest: init at"


def boot_once(machine, guest, append, patience, raw):
    with Output(machine.command(guest, append)) as out:
        waits = Waits(out.process.pid)
        try:
            for seconds, line in out.lines(patience):
                if MARK in line:
                    return seconds if raw else seconds * (1 - waits.fraction())
        except Stalled:
            pass
    return None


def measure(guest, machines, args):
    """Seconds by row and machine: with the kernel's messages on the serial port, and without."""
    rows = {}
    for row, append in (("boot_to_init", "console=ttyS0"), ("boot_to_init_quiet", "console=ttyS0 quiet")):
        rows[row] = {m.name: [] for m in machines}
        for i in range(2 * args.runs - 1):
            for m in machines if i % 2 == 0 else machines[::-1]:
                seconds = boot_once(m, guest, append + " fvm.net=off fvm.run=hello", args.patience, args.raw)
                note("%s %d: %s %s" % (row, i + 1, m.name, seconds))
                if seconds is not None:
                    rows[row][m.name].append(seconds)
    return rows

"""Rows of the micro program, on the host and in both guests."""
import fnmatch
import subprocess

from lib.machine import Output, Stalled, Waits, note

GROUPS = {
    "integer": "integer",
    "float": "floating point, SIMD",
    "memory": "memory",
    "kernel": "kernel entry",
    "process": "processes, paging",
    "code": "changing code",
}


# On the host these work in more than one process, whose time without a processor cannot be told from the rest: there the
# best of some tries is taken. In a guest they are all one thread's work.
MANY = {"pipe", "futex", "fork", "exec", "thread", "cow"}
TRIES = 5


class Catalogue:
    """What `micro list` says: benches, their group and rows; and which rows are wanted."""

    def __init__(self, guest, patterns):
        listing = subprocess.run([guest.micro, "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
        self.group, self.bench, self.rows, self.units = {}, {}, [], {}
        for line in listing.splitlines():
            bench, group, *rows = line.split()
            for row in rows:
                names = (row, bench, group)
                if patterns and not any(fnmatch.fnmatch(n, p) for p in patterns for n in names):
                    continue
                self.rows.append(row)
                self.group[row] = group
                self.bench[row] = bench

    def benches(self):
        return list(dict.fromkeys(self.bench[r] for r in self.rows))


class Results:
    """Values by machine and row, one per run; None where a run had no value."""

    def __init__(self, catalogue, raw):
        self.catalogue = catalogue
        self.raw = raw
        self.values = {}
        self.failures = []
        self.skipped = {}  # machine: rows that its processor cannot have

    def add(self, machine, line, waits):
        """waits: of the machine's process, asked once per row."""
        waited = waits.fraction()
        words = line.split()
        if len(words) != 3 or words[0] not in self.catalogue.group:
            return
        row, text, unit = words
        if text == "wrong":
            self.fail(machine, row, "a wrong result")
            return
        if text == "skip":
            self.skipped.setdefault(machine, set()).add(row)
            return
        try:
            value = float(text)
        except ValueError:
            return
        bench = self.catalogue.bench[row]
        if not self.raw and bench != "sleep" and not (machine == "native" and bench in MANY):
            value = value / (1 - waited) if unit.endswith("/s") else value * (1 - waited)
        self.catalogue.units[row] = unit
        self.values.setdefault(machine, {}).setdefault(row, []).append(value)

    def take_best(self, machine, several):
        """Of a row's tries in `several` (times, as all rows of MANY) the shortest."""
        for row, values in several.values.get(machine, {}).items():
            self.values.setdefault(machine, {}).setdefault(row, []).append(min(values))
        for row in several.skipped.get(machine, ()):
            self.skipped.setdefault(machine, set()).add(row)
        self.failures += [f for f in several.failures if f not in self.failures]

    def fail(self, machine, what, why):
        text = "%s: %s: %s" % (machine, what, why)
        if text not in self.failures:
            self.failures.append(text)


def on_host(guest, results, scale, patience):
    for bench in results.catalogue.benches():
        if bench in MANY and not results.raw:
            several = Results(results.catalogue, False)
            for _ in range(TRIES):
                one_on_host(guest, several, bench, scale, patience)
            results.take_best("native", several)
        else:
            one_on_host(guest, results, bench, scale, patience)


def one_on_host(guest, results, bench, scale, patience):
    with Output([guest.micro, bench, str(scale)], env={"MICRO_PROGRAMS": guest.programs}) as out:
        waits = Waits(out.process.pid)
        try:
            for _, line in out.lines(patience):
                results.add("native", line, waits)
        except Stalled as why:
            results.fail("native", bench, str(why))


def one_boot(machine, guest, results, scale, patience, benches):
    """Run benches in one guest. Returns what is left to do after the one during which the guest ended or stalled."""
    append = "console=ttyS0 quiet fvm.net=off fvm.run=bench fvm.scale=%s fvm.benches=%s" % (scale, ",".join(benches))
    current, why = None, "the machine ended"
    with Output(machine.command(guest, append)) as out:
        waits = Waits(out.process.pid)
        try:
            for _, line in out.lines(patience):
                if line == "bench: end":
                    return []
                if line.startswith("bench: status"):
                    results.fail(machine.name, current, line[7:])
                elif line.startswith("bench: "):
                    current = line[7:]
                    waits.fraction()
                    note("%s %s" % (machine.name, current))
                else:
                    results.add(machine.name, line, waits)
        except Stalled as stalled:
            why = str(stalled)
        last = [text for text in out.last if text][-1:] or [""]
    results.fail(machine.name, current or "boot", "%s; its last line: %s" % (why, last[0][:100]))
    return benches[benches.index(current) + 1:] if current in benches else []


def in_guest(machine, guest, results, scale, patience):
    left = results.catalogue.benches()
    while left:
        left = one_boot(machine, guest, results, scale, patience, left)


def measure(guest, machines, args):
    """args.runs interleaved rounds; whoever begins changes from round to round."""
    results = Results(Catalogue(guest, args.rows), args.raw)
    jobs = [("native", lambda: on_host(guest, results, args.scale, args.patience))]
    for m in machines:
        jobs.append((m.name, lambda m=m: in_guest(m, guest, results, args.scale, args.patience)))
    for r in range(args.runs):
        for name, job in jobs[r % len(jobs):] + jobs[:r % len(jobs)]:
            note("micro, run %d of %d: %s" % (r + 1, args.runs, name))
            job()
    return results

"""Debian's own programs, from one root file system: chroot on the host, as a disk in the guests."""
import os
import shutil
import subprocess

from lib.machine import CACHE, SOURCE, Output, Stalled, Waits, note

IMAGE = os.path.join(CACHE, "rootfs-bench.img")
FOLDER = os.path.join(CACHE, "rootfs-bench.d")  # what is in the image
PACKAGES = "openssl,python3,gcc,libc6-dev,perl,sqlite3,xz-utils,zstd"
HINT = "skipped: deploy/guest/rootfs --out %s --size 3G --include %s (as root) makes what is needed" % (IMAGE, PACKAGES)


def unpack():
    """The image's files for the host's chroot; False where that is not possible."""
    if os.geteuid() or not shutil.which("debugfs", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin"):
        return False
    if os.path.isdir(FOLDER) and os.path.getmtime(FOLDER) >= os.path.getmtime(IMAGE):
        return True
    shutil.rmtree(FOLDER, ignore_errors=True)
    os.makedirs(FOLDER + ".part", exist_ok=True)
    env = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
    subprocess.run(["debugfs", "-R", "rdump / %s.part" % FOLDER, IMAGE], stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, check=True, env=env)
    os.rename(FOLDER + ".part", FOLDER)
    os.utime(FOLDER)
    return True


def value_of(name, words, waited):
    """What a row's line says, without the time in which the host had no processor free. On the host that is the time
    for which the processes worked; in a guest all is one thread's work."""
    value = float(words[2])
    if len(words) > 4 and name == "native":
        return float(words[4])
    if name == "native":  # openssl speed counts that way by itself
        return value
    return value / (1 - waited) if words[3].endswith("/s") else value * (1 - waited)


def once(name, command, rows, units, failures, args, env=None):
    with Output(command, env=env) as out:
        waits = Waits(out.process.pid)
        try:
            for _, line in out.lines(args.patience):
                waited = waits.fraction()
                words = line.split()
                if words[:1] != ["program"]:
                    continue
                if words[1] == "end":
                    return
                try:
                    value = float(words[2]) if args.raw else value_of(name, words, waited)
                except (IndexError, ValueError):
                    failures.append("%s: %s" % (name, line))
                    continue
                rows.setdefault(words[1], {}).setdefault(name, []).append(value)
                units[words[1]] = words[3]
                note("%s %s" % (name, line))
        except Stalled as why:
            out.last.append(str(why))
        failures.append("%s: programs: it ended too early: %s" % (name, " | ".join(out.last[-2:])))


def measure(guest, machines, args):
    """Values by row and machine, units, and what failed."""
    rows, units, failures = {}, {"": "s"}, []
    if not os.path.isfile(IMAGE):
        return rows, units, [HINT]
    script = os.path.join(SOURCE, "tests", "bench", "guest", "programs")
    append = "console=ttyS0 quiet fvm.net=off fvm.run=programs fvm.scale=%g" % args.program_scale
    jobs = []
    if unpack():
        env = dict(os.environ, BENCH_ROOT=FOLDER, BENCH_SCALE="%g" % args.program_scale)
        jobs.append(lambda: once("native", ["unshare", "--mount", "--propagation", "private", script], rows, units,
                                 failures, args, env))
    for m in machines:
        command = m.command(guest, append, disk=IMAGE)
        jobs.append(lambda m=m, command=command: once(m.name, command, rows, units, failures, args))
    for r in range(args.runs):
        for job in jobs[r % len(jobs):] + jobs[:r % len(jobs)]:
            job()
    return rows, units, failures

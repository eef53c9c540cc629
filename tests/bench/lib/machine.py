"""The machines that are compared: this host, a guest of fvm, a guest of QEMU's TCG. Both guests have the same stock
kernel, initrd, memory and kind of devices; QEMU never gets hardware help."""
import os
import select
import shutil
import subprocess
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
CACHE = os.environ.get("FVM_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
CACHE = os.path.join(CACHE, "fvm")
QEMU = "qemu-system-x86_64"


def die(text):
    print("bench: " + text, file=sys.stderr)
    sys.exit(69)


def note(text):
    if sys.stderr.isatty() or os.environ.get("FVM_BENCH_VERBOSE"):
        print("bench: " + text, file=sys.stderr, flush=True)


def run(command, **more):
    """A tool that must succeed; its last line is the answer."""
    p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, **more)
    if p.returncode:
        die("%s: status %d\n%s" % (" ".join(command[:3]), p.returncode, (p.stderr or p.stdout)[-2000:]))
    return (p.stdout.strip().splitlines() or [""])[-1]


class Stalled(Exception):
    """No line for too long."""


class Waits:
    """How much of the last interval a process wanted to run but found no processor of the host free, by its busiest
    thread. Linux counts both in /proc/PID/task/TID/schedstat: ns on a processor, ns waiting for one."""

    def __init__(self, pid):
        self.folder = "/proc/%d/task" % pid
        self.before = self.read()
        self.at = time.monotonic()

    def read(self):
        threads = {}
        try:
            for tid in os.listdir(self.folder):
                with open("%s/%s/schedstat" % (self.folder, tid), encoding="ascii") as f:
                    threads[tid] = [int(n) for n in f.read().split()[:2]]
        except (OSError, ValueError):
            pass  # it ends, or this kernel does not count
        return threads

    def fraction(self):
        """0 (always ran) to 0.95 since the last call; 0 for an interval too short to tell."""
        after, now = self.read(), time.monotonic()
        busiest = (0, 0)
        for tid, (ran, waited) in after.items():
            ran_before, waited_before = self.before.get(tid, (0, 0))
            busiest = max(busiest, (ran - ran_before, waited - waited_before))
        seconds = now - self.at
        self.before, self.at = after, now
        return 0 if seconds < 0.004 else min(0.95, max(0, busiest[1] / 1e9 / seconds))


class Output:
    """A process and the lines it prints, each with the time when it was complete."""

    def __init__(self, command, **more):
        self.start = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, **more)
        self.rest = b""
        self.last = []

    def lines(self, patience):
        """Yield (seconds since start, line) to the end; raise Stalled after `patience` seconds without any output."""
        fd = self.process.stdout.fileno()
        while True:
            if not select.select([fd], [], [], patience)[0]:
                raise Stalled("no output for %d s" % patience)
            data = os.read(fd, 65536)
            now = time.monotonic() - self.start
            if not data:
                return
            *whole, self.rest = (self.rest + data).split(b"\n")
            for line in whole:
                text = line.decode(errors="replace").strip("\r ")
                self.last = self.last[-8:] + [text]
                yield now, text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Fvm:
    name = "fvm"

    def __init__(self, path):
        self.path = path
        if not os.access(path, os.X_OK):
            die("there is no %s: deploy/build makes it, FVM_BUILD says where it is" % path)

    def version(self):
        return "fvm " + run([self.path, "--version"]).split()[-1]

    def command(self, guest, append, disk=None, more=()):
        c = [self.path, "run", "--kernel", guest.kernel, "--initrd", guest.initrd, "--memory", "%dM" % guest.memory,
             "--cpus", str(guest.cpus), "--append", append]
        return c + (["--disk", disk + ",readonly"] if disk else []) + list(more)


class Qemu:
    name = "qemu"

    def __init__(self):
        if not shutil.which(QEMU):
            die("%s is missing: apt-get install qemu-system-x86" % QEMU)

    def version(self):
        return " ".join(subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, text=True,
                                       check=True).stdout.split()[:4]) + ", -accel tcg -cpu max"

    def command(self, guest, append, disk=None, more=()):
        c = [QEMU, "-accel", "tcg", "-cpu", "max", "-machine", "pc", "-nodefaults", "-no-user-config", "-display",
             "none", "-no-reboot", "-serial", "stdio", "-device", "virtio-rng-pci", "-m", "%dM" % guest.memory, "-smp",
             str(guest.cpus), "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", append]
        return c + (["-drive", "file=%s,format=raw,if=virtio,readonly=on" % disk] if disk else []) + list(more)


class Guest:
    """What both machines boot: Debian's stock cloud kernel, an initrd with the micro program. Made below `work`."""

    def __init__(self, work, memory=1024, cpus=1):
        self.memory, self.cpus = memory, cpus
        here = os.path.join(SOURCE, "tests", "bench")
        self.micro = os.path.join(work, "micro")
        sources = sorted(f.path for f in os.scandir(os.path.join(here, "micro")) if f.name.endswith(".c"))
        run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-pthread",
             "-fno-strict-aliasing", "-msse4.2", "-mpopcnt", "-o", self.micro] + sources)
        self.initrd = os.path.join(work, "initrd")
        scripts = [f.path for f in os.scandir(os.path.join(here, "guest"))]
        add = ["--add", self.micro + ":/bin/micro"]
        for s in scripts:
            add += ["--add", "%s:/run.d/%s" % (s, os.path.basename(s))]
        run([os.path.join(SOURCE, "deploy", "guest", "initrd"), "--kernel", "cloud", "--out", self.initrd] + add)
        self.kernel = os.path.join(CACHE, "kernels", "cloud", "vmlinuz")
        self.programs = os.path.join(work, "bin")  # the guest's own "true" and "sh", for the host
        os.mkdir(self.programs)
        for applet in ("true", "sh"):
            os.symlink(os.path.join(CACHE, "busybox"), os.path.join(self.programs, applet))

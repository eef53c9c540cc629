"""Three hosts on one machine: containers (podman, runc) with addresses of their own, real etcd, real fvm-nodes.

Each host is h1..h3 at 10.77.0.1..3 on a bridge that stands in a network namespace; nothing leaves the machine. A folder of
this machine is seen by all hosts under the same name: the cluster directory, the nodes' state (a disk that survives its
host's crash) and the guests' shared disks.
"""
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time

HOSTS = ("h1", "h2", "h3")
SUBNET = "10.77.0."
RELAY_PORT = 9999
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class LabError(Exception):
    pass


def run(*argv, timeout=60, check=True, env=None, cwd=None):
    """Standard output; with check=False also of a command that failed."""
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                       text=True)
    if check and p.returncode:
        raise LabError("%s: status %d: %s" % (" ".join(argv)[:200], p.returncode, p.stdout[-500:].strip()))
    return p.stdout


def until(seconds, probe, step=0.1):
    """Waits for a true answer and returns it; the last one (false) when the time is over. Trouble on the way is no answer."""
    end = time.monotonic() + seconds
    while True:
        try:
            got = probe()
        except (LabError, subprocess.SubprocessError, OSError, ValueError, KeyError):
            got = None
        if got or time.monotonic() > end:
            return got
        time.sleep(step)


class Lab:
    def __init__(self, build):
        self.build = build
        self.dir = tempfile.mkdtemp(prefix="fvm-chaos.", dir=os.environ.get("TMPDIR", "/tmp"))
        self.tag = "fvmc%d" % os.getpid()
        self.cluster = os.path.join(self.dir, "c")
        self.etcd_dir = os.path.join(self.dir, "etcd")
        self.control = os.path.join(self.dir, "relay.json")
        self.children = []
        self.started = []
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with open(self.path("containers.conf"), "w") as f:
            f.write('[containers]\ndefault_ulimits=["nofile=%d:%d","nproc=4096:4096"]\n'
                    '[engine]\nruntime="runc"\ncgroup_manager="cgroupfs"\nevents_logger="file"\n' % (hard, hard))
        with open(self.path("storage.conf"), "w") as f:
            f.write('[storage]\ndriver="overlay"\ngraphroot="%s"\nrunroot="%s"\n' % (self.path("store"), self.path("run")))
        self.env = dict(os.environ, CONTAINERS_CONF=self.path("containers.conf"),
                        CONTAINERS_STORAGE_CONF=self.path("storage.conf"))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def name(self, host):
        return self.tag + "-" + host

    def podman(self, *argv, timeout=60, check=True):
        return run("podman", *argv, timeout=timeout, check=check, env=self.env, cwd=self.dir)  # it leaves files where it stands

    # ---- hosts ----

    def up(self):
        for h in HOSTS:  # each state directory is a disk of its own: it can be full
            os.makedirs(self.path("state", h))
            run("mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "fvm-chaos", self.path("state", h))
        switch = self.name("sw")
        self.started.append(switch)
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        for i, h in enumerate(HOSTS, 1):
            ns = self.name(h)
            self.started.append(ns)
            run("ip", "netns", "add", ns)
            run("ip", "-n", switch, "link", "add", "v%d" % i, "type", "veth", "peer", "name", "eth0", "netns", ns)
            run("ip", "-n", switch, "link", "set", "v%d" % i, "master", "br0", "up")
            run("ip", "-n", ns, "link", "set", "lo", "up")
            run("ip", "-n", ns, "addr", "add", SUBNET + "%d/24" % i, "dev", "eth0")
            run("ip", "-n", ns, "link", "set", "eth0", "up")
            self.podman("run", "-d", "--name", ns, "--hostname", h, "--network", "ns:/run/netns/" + ns, "--security-opt",
                        "seccomp=unconfined", "--cap-add", "NET_ADMIN,IPC_LOCK,SYS_PTRACE", "--device", "/dev/net/tun",
                        "-v", "%s:%s" % (self.dir, self.dir), "--rootfs", "/:O", "sleep", "infinity")

    def down(self):
        for p in self.children:
            if p.poll() is None:
                p.kill()
                p.wait()
        for h in HOSTS:
            self.podman("unpause", self.name(h), check=False)
            self.podman("rm", "-f", "-t", "0", self.name(h), check=False)
        run("find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*libpod_parent*", "-exec", "rmdir", "{}", "+", check=False)
        for ns in reversed(self.started):
            run("ip", "netns", "del", ns, check=False)
        for h in HOSTS:
            run("umount", "-l", self.path("state", h), check=False)
        run("umount", "-R", self.path("store", "overlay"), check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def ip(self, host):
        return SUBNET + host[1:]

    def exec(self, host, *argv, timeout=60, check=True):
        return self.podman("exec", self.name(host), *argv, timeout=timeout, check=check)

    def spawn(self, host, log, *argv):
        """A daemon of that host; it dies with the host."""
        text = 'exec "$@" >> "%s" 2>&1 < /dev/null' % self.path("log-%s-%s" % (host, log))
        self.podman("exec", "-d", self.name(host), "sh", "-c", text, "sh", *argv)

    def popen(self, host, log, *argv):
        """Somebody who waits for its end."""
        out = open(self.path(log), "w")
        p = subprocess.Popen(["podman", "exec", self.name(host), *argv], stdout=out, stderr=subprocess.STDOUT,
                             stdin=subprocess.DEVNULL, env=self.env, cwd=self.dir)
        self.children.append(p)
        return p

    def pids(self, *words):
        """Processes of this lab whose command line has all the words."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open("/proc/%s/cmdline" % entry, "rb") as f:
                    line = f.read().replace(b"\0", b" ").decode(errors="replace")
                with open("/proc/%s/stat" % entry) as f:
                    dead = f.read().rsplit(")", 1)[1].split()[0] == "Z"
            except OSError:
                continue
            if not dead and self.dir in line and all(w in line for w in words) and "podman" not in line and " --keep " not in line:
                found.append(int(entry))
        return found

    def signal(self, pids, signo):
        for pid in pids:
            try:
                os.kill(pid, signo)
            except ProcessLookupError:
                pass

    def vmm(self, host, vm="g"):
        return self.pids("fvm run", "--name=%s " % vm, "/state/%s/" % host)

    def daemon(self, host):
        return [p for p in self.pids("fvm-node", "--name %s " % host)]

    def kill_host(self, host):
        self.podman("unpause", self.name(host), check=False)
        self.podman("kill", "-s", "KILL", self.name(host), check=False)

    def start_host(self, host):
        self.podman("start", self.name(host))
        self.start_etcd(host)
        self.start_node(host)

    def freeze(self, host):
        self.podman("pause", self.name(host))

    def thaw(self, host):
        self.podman("unpause", self.name(host), check=False)

    # ---- what runs on them ----

    def start_etcd(self, host):
        self.spawn(host, "etcd", os.path.join(SOURCE, "tests", "etcd"), "run", self.etcd_dir, str(int(host[1:]) - 1))

    def make_cluster(self):
        url = run(os.path.join(SOURCE, "tests", "etcd"), "certs", self.etcd_dir, *[self.ip(h) for h in HOSTS]).split("\n")[-2]
        for h in HOSTS:
            self.start_etcd(h)
        if not until(30, lambda: "made in" in self.ctl("init", "--store", url, check=True) or True, 0.5):
            raise LabError("no cluster: etcd did not come up")
        for h in HOSTS:
            self.ctl("node", "add", h, "--address", "tcp://%s:7710" % self.ip(h))
            self.fault(h, "")
            with open(self.path("fvm-" + h), "w") as f:
                f.write('#!/bin/sh\nFVM_MIGRATE_FAULT=$(cat %s) exec %s "$@"\n' % (self.path("fault-" + h),
                                                                                   os.path.join(self.build, "fvm")))
            os.chmod(self.path("fvm-" + h), 0o755)
        for h in HOSTS:
            self.start_node(h)
        for h in HOSTS:
            self.wait_node(h)

    def start_node(self, host):
        self.spawn(host, "node", os.path.join(self.build, "fvm-node"), "--dir", self.cluster, "--name", host, "--state",
                   self.path("state", host), "--fvm", self.path("fvm-" + host))

    def wait_node(self, host, seconds=30):
        """The daemon is there again; started again when it gave up (the store was away, its old lease still held)."""
        def answers():
            if not self.daemon(host):
                self.start_node(host)
                time.sleep(0.5)
            return "NODE" in self.ctl("node", "list", "--node", host, host=host)
        if not until(seconds, answers, 0.5):
            raise LabError("node %s does not answer" % host)

    def fault(self, host, text):
        """What FVM_MIGRATE_FAULT the VM processes of that host start with from now on."""
        with open(self.path("fault-" + host), "w") as f:
            f.write(text)

    def ctl(self, *argv, host="h3", timeout=40, check=True):
        return self.exec(host, "timeout", str(timeout), os.path.join(self.build, "fvm-cluster"), "--dir", self.cluster, *argv,
                         timeout=timeout + 10, check=check)

    def show(self, vm="g", host="h3"):
        return json.loads(self.ctl("vm", "show", vm, "--json", "--node", host, host=host, timeout=15))

    # ---- the network ----

    def link(self, host, up):
        run("ip", "-n", self.name("sw"), "link", "set", "v" + host[1:], "up" if up else "down")

    def nft(self, ns, text, check=True):
        run("nsenter", "--net=/run/netns/" + self.name(ns), "nft", text, check=check)

    def block(self, *pairs):
        """(from, to): frames that are dropped on the bridge."""
        self.nft("sw", "add table bridge ch; add chain bridge ch f { type filter hook forward priority 0; }")
        for a, b in pairs:
            self.nft("sw", "add rule bridge ch f iifname v%s oifname v%s drop" % (a[1:], b[1:]))

    def lose(self, percent, *pairs):
        """(from, to): so many of a hundred frames are dropped."""
        self.nft("sw", "add table bridge ch; add chain bridge ch f { type filter hook forward priority 0; }")
        for a, b in pairs:
            self.nft("sw", "add rule bridge ch f iifname v%s oifname v%s numgen random mod 100 < %d drop" % (a[1:], b[1:], percent))

    def fill(self, host):
        """The state directory's disk is full."""
        with open(self.path("state", host, "filler"), "wb", buffering=0) as f:
            try:
                while True:
                    f.write(b"x" * 4096)
            except OSError:
                pass

    def unfill(self, host):
        try:
            os.unlink(self.path("state", host, "filler"))
        except FileNotFoundError:
            pass

    def listeners(self, host):
        """TCP ports somebody listens at on that host."""
        table = run("nsenter", "--net=/run/netns/" + self.name(host), "cat", "/proc/net/tcp")
        return sorted({int(line.split()[1].split(":")[1], 16) for line in table.splitlines()[1:] if line.split()[3] == "0A"})

    def unblock(self):
        self.nft("sw", "delete table bridge ch", check=False)

    def relay(self, **control):
        """The way of a migration out of h1 leads through the relay; control as in tests/chaos/relay."""
        tmp = self.control + ".new"
        with open(tmp, "w") as f:
            json.dump(control, f)
        os.replace(tmp, self.control)
        if not any(p.poll() is None and "relay" in p.args[-3] for p in self.children if isinstance(p.args, list)):
            ns = "--net=/run/netns/" + self.name("h1")
            relay = os.path.join(SOURCE, "tests", "chaos", "relay")
            self.children.append(subprocess.Popen(["nsenter", ns, relay, str(RELAY_PORT), self.control],
                                                  stdin=subprocess.DEVNULL, stderr=open(self.path("log-relay"), "a")))
        self.nft("h1", "add table ip rl; flush table ip rl; add chain ip rl o { type nat hook output priority -100; }; "
                       "add rule ip rl o meta mark 7 accept; "
                       "add rule ip rl o ip daddr { 10.77.0.2, 10.77.0.3 } tcp dport { 2379, 2380, 7710 } accept; "
                       "add rule ip rl o ip daddr 10.77.0.2 tcp dport 1024-65535 redirect to :%d" % RELAY_PORT)

    def no_relay(self):
        self.nft("h1", "delete table ip rl", check=False)

    def kill_vmm(self, host):
        self.signal(self.vmm(host), signal.SIGKILL)

    def etcd_leader(self):
        n = self.exec("h3", os.path.join(SOURCE, "tests", "etcd"), "leader", self.etcd_dir, check=False).strip()
        return "h%d" % (int(n) + 1) if n.isdigit() else "h1"

    def etcd(self, host):
        return self.pids("etcd ", "--name m%d " % (int(host[1:]) - 1))

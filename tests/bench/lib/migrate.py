"""A guest that dirties memory moves to a second process over loopback: fvm to fvm, QEMU TCG to QEMU TCG.

Both are told the same limit for the blackout and no limit for the bandwidth. Three views of the blackout:
  blackout_reported  from the source's guest standing still to the destination's running, by the machines' own clocks:
                     fvm's report (from the wish to pause to the word that it runs there), QEMU's STOP and RESUME events
  blackout_claimed   the tool's own headline number: fvm's is the same as above, QEMU's "downtime" ends when the source has
                     sent its state, before the destination has read it
  blackout_outside   the longest time without one of the guest's beats (every 2 ms) on either serial port, by this host's
                     clock: it includes all it takes to get going again, and whatever else the host was busy with;
                     "silence_before" is the same in the two seconds before
"""
import json
import os
import queue
import socket
import threading
import time

from lib.machine import Output, Stalled, note

DOWNTIME_MS = 100
DIRTY_MIB, DIRTY_RATE = 256, 50
LIMIT_S = 120  # of one migration


class Failed(Exception):
    """A migration that did not happen, and why."""


class Lines:
    """Newline-delimited JSON over a UNIX socket: fvm's control socket, and QMP."""

    def __init__(self, path):
        until = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(path)
                break
            except OSError as why:
                self.socket.close()
                if time.monotonic() > until:
                    raise Failed("no control socket: %s" % why) from why
                time.sleep(0.05)
        self.socket.settimeout(LIMIT_S)
        self.file = self.socket.makefile("rw", encoding="utf-8")
        self.events = {}  # QMP: time of the last of each name

    def ask(self, request):
        self.file.write(json.dumps(request) + "\n")
        self.file.flush()

    def wait(self, wanted):
        """The first message that has one of the members; others are let pass."""
        while True:
            try:
                line = self.file.readline()
            except OSError as why:
                raise Failed("no answer within %d s" % LIMIT_S) from why
            if not line:
                raise Failed("the other end of the control socket is gone")
            message = json.loads(line)
            if "timestamp" in message:
                at = message["timestamp"]
                self.events[message["event"]] = at["seconds"] + at["microseconds"] / 1e6
            if wanted(message):
                return message

    def close(self):
        self.file.close()
        self.socket.close()


class Serial(threading.Thread):
    """Reads what a machine prints, so that it never blocks; (time, line) pairs are taken from .lines."""

    def __init__(self, out):
        super().__init__(daemon=True)
        self.out, self.queue, self.seen = out, queue.Queue(), []
        self.start()

    def run(self):
        try:
            for _, line in self.out.lines(3600):
                self.queue.put((time.monotonic(), line))
        except (Stalled, OSError, ValueError):
            pass
        self.queue.put(None)

    def until(self, text, seconds):
        deadline = time.monotonic() + seconds
        while True:
            try:
                item = self.queue.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                item = None
            if item is None:
                raise Failed("no \"%s\" within %d s after: %s" % (text, seconds, " | ".join(self.out.last[-3:])))
            self.seen.append(item)
            if text in item[1]:
                return item

    def beats(self):
        """Times of all beats so far."""
        while not self.queue.empty():
            item = self.queue.get()
            if item:
                self.seen.append(item)
        return [at for at, line in self.seen if line.startswith("beat ")]


def silence(serials, begin, end):
    """The longest time in ms without a beat between begin and end."""
    beats = sorted(at for s in serials for at in s.beats() if begin <= at <= end)
    times = [begin] + beats + [end]
    return max(b - a for a, b in zip(times, times[1:])) * 1e3


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# Both give (reported blackout ms, claimed blackout ms, total s, MB sent).

def move_fvm(source, dest, port, work):
    def call(client, **request):
        client.ask({**request, "id": request["cmd"]})
        answer = client.wait(lambda m: m.get("id") == request["cmd"])
        if not answer.get("ok"):
            raise Failed(answer.get("error", "?"))
        return answer["result"]

    record = "file:" + os.path.join(work, "record")  # the source makes it, so the source begins
    keys = [call(end, cmd="migrate-key")["public_key"] for end in (source, dest)]
    call(source, cmd="migrate", self="a", to_name="b", to_addr="tcp://127.0.0.1:%d" % port, to_key=keys[1],
         record=record, max_downtime_ms=DOWNTIME_MS, deadline_ms=LIMIT_S * 1000)
    call(dest, cmd="incoming", self="b", allow=keys[0], record=record)
    report = source.wait(lambda m: m.get("event") == "migration-done")
    report = report.get("data", report)
    if report["outcome"] != "moved":
        raise Failed("%s: %s" % (report["outcome"], report["error"]))
    return report["blackout_ns"] / 1e6, report["blackout_ns"] / 1e6, report["total_ns"] / 1e9, report["sent_bytes"] / 1e6


def move_qemu(source, dest, port, work):
    def call(client, command, **arguments):
        client.ask({"execute": command, "arguments": arguments})
        answer = client.wait(lambda m: "return" in m or "error" in m)
        if "error" in answer:
            raise Failed(answer["error"]["desc"])
        return answer["return"]

    del work
    call(dest, "qmp_capabilities")
    call(source, "qmp_capabilities")
    call(source, "migrate-set-parameters", **{"downtime-limit": DOWNTIME_MS, "max-bandwidth": 1 << 40})
    call(source, "migrate", uri="tcp:127.0.0.1:%d" % port)
    until = time.monotonic() + LIMIT_S
    while True:
        info = call(source, "query-migrate")
        if info.get("status") == "completed":
            dest.wait(lambda m: m.get("event") == "RESUME")
            blackout = (dest.events["RESUME"] - source.events["STOP"]) * 1e3
            return blackout, info["downtime"], info["total-time"] / 1e3, info["ram"]["transferred"] / 1e6
        if info.get("status") in ("failed", "cancelled") or time.monotonic() > until:
            raise Failed("%s after %d s" % (info.get("status"), LIMIT_S))
        time.sleep(0.02)


def pair(machine, port, work):
    """Extra arguments of the two ends, and who moves the guest from one to the other."""
    sockets = [os.path.join(work, machine.name + end) for end in ("-a", "-b")]
    if machine.name == "fvm":
        extra = [["--control", "unix:" + s] for s in sockets]
        extra[1] += ["--incoming", "tcp://127.0.0.1:%d" % port]
        return sockets, extra, move_fvm
    extra = [["-qmp", "unix:%s,server=on,wait=off" % s] for s in sockets]
    extra[1] += ["-incoming", "tcp:127.0.0.1:%d" % port]
    return sockets, extra, move_qemu


def once(machine, guest, work):
    append = "console=ttyS0 quiet fvm.net=off fvm.run=dirty fvm.seconds=600 fvm.mib=%d fvm.rate=%d" % (
        DIRTY_MIB, DIRTY_RATE)
    port = free_port()
    sockets, extra, move = pair(machine, port, work)
    for path in sockets + [os.path.join(work, "record")]:
        if os.path.exists(path):
            os.unlink(path)
    with Output(machine.command(guest, append, more=extra[0])) as a, \
            Output(machine.command(guest, append, more=extra[1])) as b:
        serials = [Serial(a), Serial(b)]
        serials[0].until("dirty ready", LIMIT_S)
        serials[0].until("rate ", 30)
        clients = [Lines(s) for s in sockets]
        time.sleep(2)  # a stretch of its usual life, to compare with
        begin = time.monotonic()
        blackout, claimed, total, sent = move(*clients, port, work)
        values = {"blackout_reported": blackout, "blackout_claimed": claimed, "total": total, "sent": sent}
        try:
            serials[1].until("beat ", 20)
            end = time.monotonic() + 1
            time.sleep(1.2)
            serials[1].until("rate ", 20)
            values["blackout_outside"] = silence(serials, begin, end)
            values["silence_before"] = silence(serials[:1], begin - 2, begin)
            lost = None
        except Failed as why:
            lost = "moved, but the guest does not go on: %s" % why
        for c in clients:
            c.close()
    return values, lost


def measure(guest, machines, args, work):
    """Values by row and machine, and what failed."""
    rows, failures = {}, []
    for r in range(args.runs):
        for m in machines if r % 2 == 0 else machines[::-1]:
            try:
                values, lost = once(m, guest, work)
                if lost:
                    failures.append("%s: migrate: %s" % (m.name, lost))
            except Failed as why:
                failures.append("%s: migrate: %s" % (m.name, why))
                continue
            note("migrate, run %d: %s %s" % (r + 1, m.name, values))
            for row, value in values.items():
                rows.setdefault(row, {}).setdefault(m.name, []).append(value)
    order = ("blackout_reported", "blackout_claimed", "blackout_outside", "silence_before", "total", "sent")
    return {row: rows[row] for row in order if row in rows}, failures

"""Handlers, traps, queued and blocked signals, stopped processes."""
import ctypes
import os
import select
import signal
import subprocess

from check import TICK, Check, call, child, number, read_exactly, same, wait_until


class Handler(Check):
    """A signal to another process, whose handler answers."""

    users = ("root", "bob")

    def prepare(self):
        self.answers, theirs = os.pipe()

        def body():
            count = 0

            def answer(*_):
                nonlocal count
                count += 1
                os.write(theirs, number(count))

            # Between the interpreter's look for signals and a pause(2), one would be missed.
            wake, woken = os.pipe()
            os.set_blocking(woken, False)
            signal.set_wakeup_fd(woken)
            signal.signal(signal.SIGUSR2, answer)
            os.write(theirs, number(0))
            while True:
                os.read(wake, 1)

        self.pid = child(body)
        self.count = 0
        same(number(read_exactly(self.answers, 8)), 0)

    def step(self):
        os.kill(self.pid, signal.SIGUSR2)
        self.count += 1
        same(number(read_exactly(self.answers, 8)), self.count, "signals handled")


class Trap(Check):
    """A shell script that traps, with children that come and go."""

    users = ("alice",)
    SCRIPT = "n=0; trap 'n=$((n+1)); echo trapped $n' USR1; trap '' HUP; echo ready; while :; do sleep %s; done" % TICK

    def prepare(self):
        self.shell = subprocess.Popen(["bash", "-c", self.SCRIPT], stdout=subprocess.PIPE)
        self.count = 0
        same(self.shell.stdout.readline(), b"ready\n")

    def step(self):
        self.shell.send_signal(signal.SIGHUP)  # ignored
        self.shell.send_signal(signal.SIGUSR1)
        self.count += 1
        same(self.shell.stdout.readline(), f"trapped {self.count}\n".encode())


class Queued(Check):
    """Blocked real-time signals with values: always some pending, none lost, in order."""

    users = ("bob",)
    SIGNAL = signal.SIGRTMIN + 5

    def prepare(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [self.SIGNAL])
        mask = (ctypes.c_ulong * 16)(1 << (self.SIGNAL - 1))
        self.fd = call("signalfd", -1, mask, 0)
        self.sent = self.taken = 0
        self.send(5)

    def send(self, count):
        for _ in range(count):
            call("sigqueue", os.getpid(), self.SIGNAL, ctypes.c_void_p(self.sent))
            self.sent += 1

    def step(self):
        self.send(5)
        for _ in range(5):
            info = read_exactly(self.fd, 128)
            same(int.from_bytes(info[0:4], "little"), self.SIGNAL, "signal")
            same(int.from_bytes(info[12:16], "little"), os.getpid(), "sender")
            same(int.from_bytes(info[44:48], "little"), self.taken, "its value")
            self.taken += 1


class Stopped(Check):
    """A stopped process stays stopped, and goes on when told to."""

    users = ("alice",)

    def prepare(self):
        self.steps = 0
        self.counts, theirs = os.pipe()

        def body():
            count = 0
            while True:
                os.kill(os.getpid(), signal.SIGSTOP)
                count += 1
                os.write(theirs, number(count))

        self.pid = child(body)

    def stopped(self):
        with open(f"/proc/{self.pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] == "T"

    def step(self):
        if self.steps % 5 == 0:
            wait_until(self.stopped, "the process stops itself")
            os.kill(self.pid, signal.SIGCONT)
            same(number(read_exactly(self.counts, 8)), self.steps // 5 + 1)
            wait_until(self.stopped, "the process stops itself again")
        # For a moment it may be frozen still, or traced, when its memory begins to go ahead.
        wait_until(self.stopped, "the process is stopped")
        assert not select.select([self.counts], [], [], 0)[0], "the stopped process runs"
        self.steps += 1


CHECKS = [Handler, Trap, Queued, Stopped]

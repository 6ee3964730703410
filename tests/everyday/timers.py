"""Everything that fires after a while."""
import ctypes
import os
import select
import signal
import threading
import time

from check import PATIENCE, TICK, Check, call, number, read_exactly, wait_until


class Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]


class Timer(ctypes.Structure):
    _fields_ = [("interval", Timespec), ("first", Timespec)]


class Event(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48)]


def span(seconds):
    return Timespec(int(seconds), int(seconds % 1 * 10**9))


class Ticking(Check):
    """A signal that comes all the time."""

    users = ()

    def arm(self):
        raise NotImplementedError

    def start(self):
        self.ticks = 0
        signal.signal(self.signal, self.tick)
        self.arm()

    def tick(self, *_):
        self.ticks += 1

    def step(self):
        before = self.ticks
        wait_until(lambda: self.ticks >= before + 2, "the timer ticks")


class Itimer(Ticking):
    users = ("alice",)
    signal = signal.SIGALRM

    def arm(self):
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)


class ItimerVirtual(Ticking):
    users = ("alice",)
    signal = signal.SIGVTALRM

    def arm(self):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.05, 0.05)

    def step(self):
        before, end = self.ticks, time.monotonic() + PATIENCE
        while self.ticks == before:
            assert time.monotonic() < end, "the timer does not tick"


class PosixTimer(Ticking):
    """timer_create and timer_settime."""

    users = ("bob",)
    clock = 1

    def arm(self):
        self.id = ctypes.c_void_p()
        event = Event(value=None, signal=self.signal, notify=0)
        call("timer_create", self.clock, ctypes.byref(event), ctypes.byref(self.id))
        call("timer_settime", self.id, 0, ctypes.byref(Timer(span(TICK), span(TICK))), None)

    signal = signal.SIGRTMIN + 1


class PosixTimerBoottime(PosixTimer):
    signal = signal.SIGRTMIN + 2
    clock = 7


class TimerFd(Check):
    """A quick one that repeats, and slow ones that fire once, neither early nor late."""

    users = ("root", "alice")
    SLOW = 3

    def prepare(self):
        self.quick = call("timerfd_create", 1, os.O_NONBLOCK)
        call("timerfd_settime", self.quick, 0, ctypes.byref(Timer(span(TICK), span(TICK))), None)
        self.slow = {call("timerfd_create", clock, os.O_NONBLOCK): None for clock in (1, 7)}
        self.fired = 0
        for timer in self.slow:
            self.arm(timer)

    def arm(self, timer):
        # In this order: there may be a move in between.
        self.slow[timer] = time.monotonic()
        call("timerfd_settime", timer, 0, ctypes.byref(Timer(span(0), span(self.SLOW))), None)

    def step(self):
        assert select.select([self.quick], [], [], PATIENCE)[0], "the quick timer does not fire"
        assert number(read_exactly(self.quick, 8)) > 0
        for timer, armed in self.slow.items():
            passed = time.monotonic() - armed
            try:
                os.read(timer, 8)
            except BlockingIOError:
                assert passed < self.SLOW + PATIENCE, f"a timer of {self.SLOW} s has not fired after {passed} s"
                continue
            assert passed > self.SLOW - 0.01, f"a timer of {self.SLOW} s fired after {passed} s"
            self.arm(timer)


class Sleepers(Check):
    """Threads in the middle of a wait: it must last as long as it should."""

    users = ("alice", "bob")
    LONG = 1.5

    def start(self):
        quiet, self.never = os.pipe()
        condition, lock = threading.Condition(), threading.Lock()
        lock.acquire()

        def wait_for_condition():
            with condition:
                condition.wait(self.LONG)

        waits = {
            "clock_nanosleep": lambda: time.sleep(self.LONG),
            "poll": lambda: select.select([quiet], [], [], self.LONG),
            "futex": lambda: lock.acquire(timeout=self.LONG),
            "condition": wait_for_condition,
        }
        self.fault, self.rounds = None, dict.fromkeys(waits, 0)
        for name, wait in waits.items():
            threading.Thread(target=self.sleep, args=(name, wait), daemon=True).start()
        self.checked = time.monotonic(), dict(self.rounds)

    def sleep(self, name, wait):
        while True:
            begun = time.monotonic()
            wait()
            passed = time.monotonic() - begun
            if not self.LONG - 0.01 < passed < self.LONG + PATIENCE:
                self.fault = f"{name} of {self.LONG} s took {passed} s"
            self.rounds[name] += 1

    def step(self):
        assert not self.fault, self.fault
        since, before = self.checked
        if time.monotonic() > since + PATIENCE:
            stuck = [name for name in before if before[name] == self.rounds[name]]
            assert not stuck, f"still waiting: {stuck}"
            self.checked = time.monotonic(), dict(self.rounds)


CHECKS = [Itimer, ItimerVirtual, PosixTimer, PosixTimerBoottime, TimerFd, Sleepers]

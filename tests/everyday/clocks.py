"""Clocks that must go on as if nothing had happened."""
import ctypes
import platform
import time

from check import Check, libc


CLOCK_GETTIME = {"x86_64": 228, "aarch64": 113}[platform.machine()]


class Clocks(Check):
    """Never back, never far ahead; and what the vDSO says is what the kernel says."""

    users = ("root", "alice", "bob")
    NAMES = {"MONOTONIC": 1, "MONOTONIC_COARSE": 6, "BOOTTIME": 7}

    def prepare(self):
        self.before = {name: time.clock_gettime_ns(clock) for name, clock in self.NAMES.items()}

    def step(self):
        for name, clock in self.NAMES.items():
            now = time.clock_gettime_ns(clock)
            passed = now - self.before[name]
            assert passed >= 0, f"{name} jumped back by {-passed} ns"
            # An emulated machine needs a minute or two to move all this.
            assert passed < 600e9, f"{name} jumped ahead by {passed} ns"
            self.before[name] = now
            kernel = (ctypes.c_long * 2)()
            libc.syscall(CLOCK_GETTIME, clock, kernel)  # past the vDSO
            apart = kernel[0] * 10**9 + kernel[1] - now
            assert -20e6 < apart < 600e9, f"{name}: vDSO and kernel are {apart} ns apart"
        before = time.clock_gettime(7)
        with open("/proc/uptime") as uptime:
            seen = float(uptime.read().split()[0])
        # In between it may have been moved. (/proc/uptime has hundredths.)
        after = time.clock_gettime(7)
        assert before - 0.02 <= seen <= after + 0.02, f"/proc/uptime says {seen}, BOOTTIME {before} and then {after}"


CHECKS = [Clocks]

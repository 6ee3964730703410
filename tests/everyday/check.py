"""What all checks share."""
import ctypes
import errno
import os
import signal
import time

libc = ctypes.CDLL(None, use_errno=True)
# `EVERYDAY=pipes,terminals`: these kinds of checks alone, and at leisure; for machines that are emulated.
KINDS = os.environ["EVERYDAY"].split(",") if "EVERYDAY" in os.environ else []
TICK = 1 if KINDS else 0.05  # seconds between things that happen again and again by themselves
PATIENCE = 300  # seconds for whatever needs another process: far more than any blackout, also on emulated machines


class Check:
    """One thing that must keep working. `step` is called again and again, and raises when it does not."""

    users = ("root",)

    def prepare(self):
        """First of all, as the user: may fork."""

    def start(self):
        """After all have prepared: may start threads."""

    def step(self):
        raise NotImplementedError


def call(function, *arguments):
    """A C function that returns -1 on failure; begun anew when a signal has interrupted it."""
    while True:
        result = getattr(libc, function)(*arguments)
        if result != -1:
            return result
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, f"{function}: {os.strerror(error)}")


def same(got, wanted, what="value"):
    if got != wanted:
        raise AssertionError(f"{what} is {got!r:.300}, not {wanted!r:.300}")


def of_one_host(look):
    """What `look` says when it is not interrupted: it compares device or inode numbers of two calls, and a move between these
    two changes them. There is no second move so soon."""
    try:
        return look() or look()
    except OSError:
        return look()


def wait_until(condition, what, patience=PATIENCE):
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(TICK / 25)


def child(body):
    """Forks a process that runs `body` and ends with its parent; returns its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            body()
    except BaseException as error:
        os.write(2, f"{body.__qualname__}: {error!r}\n".encode())
    finally:
        os._exit(1)


def number(n):
    """A number as 8 bytes, and back."""
    return n.to_bytes(8, "little") if isinstance(n, int) else int.from_bytes(n, "little")


def read_exactly(descriptor, length):
    got = b""
    while len(got) < length:
        piece = os.read(descriptor, length - len(got))
        if not piece:
            raise AssertionError("end of file")
        got += piece
    return got

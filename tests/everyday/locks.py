"""Locks on files: held by one, felt by the other."""
import fcntl
import os
import struct

from check import Check, child, read_exactly

F_OFD_SETLK = 37


class Locks(Check):
    """flock, fcntl and open-file-description locks that another process holds all the time."""

    users = ("root", "alice")

    def prepare(self):
        ready, tell = os.pipe()
        self.files = [os.open(name, os.O_RDWR | os.O_CREAT) for name in ("flock", "fcntl", f"/dev/shm/ofd-{os.getuid()}")]

        def body():
            flock, posix, ofd = (os.open(f"/proc/self/fd/{file}", os.O_RDWR) for file in self.files)
            fcntl.flock(flock, fcntl.LOCK_EX)
            fcntl.lockf(posix, fcntl.LOCK_EX, 100, 50)
            fcntl.lockf(posix, fcntl.LOCK_SH, 10, 200)
            fcntl.fcntl(ofd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
            os.write(tell, b"!")
            read_exactly(os.pipe()[0], 1)  # for ever

        child(body)
        read_exactly(ready, 1)

    def step(self):
        flock, posix, ofd = self.files
        self.refused(lambda: fcntl.flock(flock, fcntl.LOCK_EX | fcntl.LOCK_NB), "flock")
        self.refused(lambda: fcntl.lockf(posix, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 149), "the locked range's end")
        self.refused(lambda: fcntl.lockf(posix, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 200), "the range locked for reading")
        fcntl.lockf(posix, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 200)
        fcntl.lockf(posix, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 150)
        fcntl.lockf(posix, fcntl.LOCK_UN)
        write = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        self.refused(lambda: fcntl.fcntl(ofd, F_OFD_SETLK, write), "an open file description's lock")

    def refused(self, attempt, what):
        try:
            attempt()
        except BlockingIOError:
            return
        raise AssertionError(f"not held any more: {what}")


CHECKS = [Locks]

"""Memory of all kinds, and above all what two processes share."""
import ctypes
import fcntl
import mmap
import os
import random
import time
import zlib

from check import TICK, Check, call, child, libc, number, read_exactly, same

PAGE = mmap.PAGESIZE
libc.mmap.restype = ctypes.c_void_p


class Private(Check):
    """The heap, a mapping that must not be touched meanwhile, locked pages, a changed copy of a file's page."""

    users = ("alice", "bob")

    def prepare(self):
        self.heap = random.randbytes(8 << 20)
        self.heap_sum = zlib.crc32(self.heap)
        self.guarded = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.guarded[:] = self.heap[:64 * PAGE]
        self.protect(0)
        self.locked = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.locked[:5] = b"stays"
        call("mlock", self.address(self.locked), ctypes.c_size_t(4 * PAGE))
        with open("/bin/bash", "rb") as file:  # of a layer, or of the other's
            self.copy = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            self.original = zlib.crc32(file.read()[PAGE:])
        self.copy[:7] = b"changed"

    def address(self, mapping):
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(mapping)))

    def protect(self, how):
        call("mprotect", self.address(self.guarded), ctypes.c_size_t(64 * PAGE), how)

    def step(self):
        same(zlib.crc32(self.heap), self.heap_sum, "the heap's checksum")
        self.protect(mmap.PROT_READ | mmap.PROT_WRITE)
        same(self.guarded[:] == self.heap[:64 * PAGE], True, "guarded memory is as it was")
        self.protect(0)
        same(self.locked[:5], b"stays")
        same((self.copy[:7], zlib.crc32(self.copy[PAGE:])), (b"changed", self.original), "the changed copy")
        with open("/proc/self/status") as status:
            locked = next(line for line in status if line.startswith("VmLck"))
        assert int(locked.split()[1]) * 1024 >= 4 * PAGE, locked


class Dirty(Check):
    """Another process dirties all pages of a shared mapping without end. Now and then it pauses: then the mapping here,
    the mapping there and the file must agree about every page."""

    users = ()
    PAGES = 1024

    def open(self):
        raise NotImplementedError

    def prepare(self):
        self.file = self.open()
        os.ftruncate(self.file, self.PAGES * PAGE)
        self.mapping = mmap.mmap(self.file, self.PAGES * PAGE)
        ask, self.ask = os.pipe()
        self.answer, answer = os.pipe()

        def body():
            mapping = mmap.mmap(self.file, self.PAGES * PAGE)
            os.set_blocking(ask, False)
            written = [0] * self.PAGES
            n = 0
            while True:
                n += 1
                page = n * 7 % self.PAGES
                written[page] = n
                mapping[page * PAGE:page * PAGE + 8] = number(n)
                mapping[page * PAGE + PAGE - 8:(page + 1) * PAGE] = number(n)
                if n % 64 == 0:
                    time.sleep(TICK / 5)
                    try:
                        question = os.read(ask, 1)
                    except BlockingIOError:
                        continue
                    if not question:
                        return
                    os.write(answer, b"".join(map(number, written)))
                    os.set_blocking(ask, True)
                    os.read(ask, 1)
                    os.set_blocking(ask, False)
                    bad = [p for p in range(self.PAGES) if number(mapping[p * PAGE:p * PAGE + 8]) != written[p]]
                    os.write(answer, number(len(bad)))

        child(body)
        self.before = 0

    def step(self):
        os.write(self.ask, b"?")
        written = read_exactly(self.answer, 8 * self.PAGES)
        written = [number(written[i:i + 8]) for i in range(0, len(written), 8)]
        file = os.pread(self.file, self.PAGES * PAGE, 0)
        for name, content in ("mapping", self.mapping), ("file", file):
            for end in 0, PAGE - 8:
                there = [number(content[i + end:i + end + 8]) for i in range(0, self.PAGES * PAGE, PAGE)]
                bad = [(page, got, wanted) for page, (got, wanted) in enumerate(zip(there, written)) if got != wanted]
                same(bad, [], f"wrong pages of the {name}")
        os.write(self.ask, b"!")
        same(number(read_exactly(self.answer, 8)), 0, "wrong pages of the other's mapping")
        assert max(written) >= self.before, "the writer went back"
        self.before = max(written)


class DirtyFile(Dirty):
    users = ("root", "bob")

    def open(self):
        return os.open("mapped", os.O_RDWR | os.O_CREAT)


class DirtyDeleted(Dirty):
    users = ("root",)

    def open(self):
        file = os.open("deleted", os.O_RDWR | os.O_CREAT)
        os.unlink("deleted")
        return file


class DirtyMemFd(Dirty):
    users = ("alice",)

    def open(self):
        return os.memfd_create("dirty")


class DirtyShm(Dirty):
    users = ("bob",)

    def open(self):
        return os.open("/dev/shm/dirty", os.O_RDWR | os.O_CREAT)


class Sealed(Check):
    """A memfd that nobody may change any more."""

    users = ("bob",)

    def prepare(self):
        self.content = random.randbytes(1 << 20)
        self.file = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
        os.write(self.file, self.content)
        self.seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, self.seals)

    def step(self):
        same(os.pread(self.file, 1 << 21, 0) == self.content, True, "the content is as it was")
        same(fcntl.fcntl(self.file, fcntl.F_GET_SEALS), self.seals, "seals")
        try:
            os.pwrite(self.file, b"x", 0)
        except PermissionError:
            return
        raise AssertionError("a sealed file could be written")


class SharedAnonymous(Check):
    """Memory shared with a child without any file."""

    users = ("root", "alice")

    def prepare(self):
        self.memory = mmap.mmap(-1, 256 * PAGE)
        self.to, self.back = os.pipe(), os.pipe()
        self.n = 0

        def body():
            while True:
                n = number(read_exactly(self.to[0], 8))
                self.memory[n % 256 * PAGE:n % 256 * PAGE + 8] = number(n)
                os.write(self.back[1], b"!")

        child(body)

    def step(self):
        for _ in range(16):
            os.write(self.to[1], number(self.n))
            read_exactly(self.back[0], 1)
            self.n += 1
        for n in range(max(0, self.n - 256), self.n):
            same(number(self.memory[n % 256 * PAGE:n % 256 * PAGE + 8]), n, "shared memory")


CHECKS = [Private, DirtyFile, DirtyDeleted, DirtyMemFd, DirtyShm, Sealed, SharedAnonymous]

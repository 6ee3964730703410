"""POSIX and System V shared memory, semaphores and message queues."""
import ctypes
import mmap
import os

from check import Check, call, child, libc, number, same

libc.sem_open.restype = ctypes.c_void_p
libc.shmat.restype = ctypes.c_void_p
IPC_CREAT, IPC_STAT = 0o1000, 2


class SemaphoreOperation(ctypes.Structure):
    _fields_ = [("number", ctypes.c_ushort), ("change", ctypes.c_short), ("flags", ctypes.c_short)]


class Message(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_long), ("body", ctypes.c_char * 64)]


class PosixIpc(Check):
    """Two processes take turns at a counter in shared memory, told by named semaphores."""

    users = ("alice", "bob")

    def prepare(self):
        name = f"/everyday-{os.getuid()}"
        # shm_open is this and no more.
        memory = os.open(f"/dev/shm{name}", os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(memory, 1 << 20)
        self.memory = mmap.mmap(memory, 1 << 20)
        os.close(memory)
        self.ping, self.pong = (ctypes.c_void_p(libc.sem_open(f"{name}-{end}".encode(), os.O_CREAT, 0o600, 0)) for end in ("ping", "pong"))
        self.n = 0

        def body():
            while True:
                call("sem_wait", self.ping)
                n = number(self.memory[:8])
                self.memory[:8] = number(n + 1)
                self.memory[8 + n % 1000 * 8:16 + n % 1000 * 8] = number(n)
                call("sem_post", self.pong)

        child(body)

    def step(self):
        for _ in range(20):
            call("sem_post", self.ping)
            call("sem_wait", self.pong)
            same(number(self.memory[:8]), self.n + 1, "the counter")
            self.n += 1
        for n in range(max(0, self.n - 1000), self.n):
            same(number(self.memory[8 + n % 1000 * 8:16 + n % 1000 * 8]), n, "what was written before")


class SystemV(Check):
    """The same by key."""

    users = ("root", "alice")

    def prepare(self):
        self.key = 7000 + os.getuid()
        self.look_up()
        self.memory = ctypes.c_void_p(libc.shmat(self.ids[0], None, 0))
        self.counter = ctypes.cast(self.memory, ctypes.POINTER(ctypes.c_long))
        self.n = self.messages = 0

        def body():
            while True:
                self.semaphore(0, -1)
                self.counter[0] += 1
                self.counter[self.counter[0] % 500 + 1] = self.counter[0]
                self.semaphore(1, 1)

        child(body)
        for n in range(4):
            self.send(n)

    def look_up(self):
        mode = IPC_CREAT | 0o600
        self.ids = [call("shmget", self.key, 1 << 20, mode), call("semget", self.key, 2, mode), call("msgget", self.key, mode)]
        return self.ids

    def semaphore(self, which, change):
        call("semop", self.ids[1], ctypes.byref(SemaphoreOperation(which, change, 0)), 1)

    def send(self, n):
        call("msgsnd", self.ids[2], ctypes.byref(Message(1 + n % 2, str(n).encode())), 64, 0)

    def step(self):
        same(self.look_up(), self.ids, "identifiers")
        for _ in range(20):
            self.semaphore(0, 1)
            self.semaphore(1, -1)
            self.n += 1
            same(self.counter[0], self.n, "the counter")
        for n in range(max(1, self.n - 499), self.n + 1):
            same(self.counter[n % 500 + 1], n, "what was written before")
        # Two kinds of messages, always four in the queue.
        self.send(self.messages + 4)
        message = Message()
        call("msgrcv", self.ids[2], ctypes.byref(message), 64, 1 + self.messages % 2, 0)
        same(message.body, str(self.messages).encode(), "a message")
        self.messages += 1


CHECKS = [PosixIpc, SystemV]

"""Pipes between processes of several users, always with something inside."""
import fcntl
import hashlib
import os
import subprocess

from check import Check, child, number, read_exactly, same


def line(n):
    return f"{n} {hashlib.sha256(str(n).encode()).hexdigest()}\n".encode()


class Chain(Check):
    """alice counts, bob adds a digest, root checks."""

    users = ()

    def __init__(self, users):
        first, second = os.pipe(), os.pipe()

        def as_user(user, body):
            def run():
                os.setgroups([])
                os.setresgid(*[users[user]] * 3)
                os.setresuid(*[users[user]] * 3)
                body()

            child(run)

        def count():
            os.close(first[0])
            n = 0
            while True:
                os.write(first[1], number(n))
                n += 1

        def digest():
            os.close(first[1])
            while True:
                os.write(second[1], line(number(read_exactly(first[0], 8))))

        as_user("alice", count)
        as_user("bob", digest)
        os.close(first[0])
        os.close(first[1])
        os.close(second[1])
        self.lines, self.n = os.fdopen(second[0], "rb"), 0

    def step(self):
        for _ in range(100):
            same(self.lines.readline(), line(self.n))
            self.n += 1


class ShellPipeline(Check):
    """The same with the programs that everybody has."""

    users = ("root",)
    COMMAND = """
        setpriv --reuid=1000 --regid=1000 --clear-groups seq 1 1000000000 |
        setpriv --reuid=1001 --regid=1001 --clear-groups sed -u 's/$/ times/' |
        grep --line-buffered times | while read n rest; do echo "$rest $n"; done
    """

    def prepare(self):
        self.n = 0
        self.shell = subprocess.Popen(["bash", "-c", self.COMMAND], stdout=subprocess.PIPE)

    def step(self):
        for _ in range(20):
            self.n += 1
            same(self.shell.stdout.readline(), f"times {self.n}\n".encode())


class Fifo(Check):
    """A named pipe and a pipe of unusual size, each with something in it."""

    users = ("alice",)

    def prepare(self):
        os.mkfifo("fifo")
        reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
        sized = os.pipe()
        self.size = fcntl.fcntl(sized[1], fcntl.F_SETPIPE_SZ, 1 << 18)
        self.pipes = [(reader, os.open("fifo", os.O_WRONLY)), sized]
        self.n = 0
        for _, writer in self.pipes:
            os.write(writer, number(0))
            os.write(writer, number(1))

    def step(self):
        for reader, writer in self.pipes:
            os.write(writer, number(self.n + 2))
            same(os.read(reader, 8), number(self.n), "what comes out of the pipe")
        same(fcntl.fcntl(self.pipes[1][0], fcntl.F_GETPIPE_SZ), self.size, "the pipe's size")
        self.n += 1


CHECKS = [ShellPipeline, Fifo]

"""Terminals of which both ends are in the pod."""
import fcntl
import os
import pty
import select
import struct
import termios
import time

from check import PATIENCE, Check, child, of_one_host, same


class Session(Check):
    """An interactive shell with job control, and somebody who types."""

    users = ("alice", "bob")

    def prepare(self):
        self.master, slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))

        def body():
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for n in range(3):
                os.dup2(slave, n)
            os.closerange(3, 1000)
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], {"PS1": "", "PATH": "/usr/bin:/bin", "TERM": "dumb"})

        self.pid = child(body)
        os.close(slave)
        self.n, self.text = 0, ""
        self.type("stty -echo; set +o history; bind 'set enable-bracketed-paste off' 2>/dev/null; echo be''gin", "begin")

    def type(self, line, answer):
        os.write(self.master, line.encode() + b"\n")
        self.wait_for(answer)

    def wait_for(self, answer):
        end = time.monotonic() + PATIENCE
        while answer not in self.text:
            assert time.monotonic() < end, f"no {answer!r} but {self.text[-200:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.text += os.read(self.master, 4096).decode(errors="replace")
        self.text = self.text.split(answer, 1)[1]

    def step(self):
        self.n += 1
        self.type("n=$((n+1)); echo count $n.", f"count {self.n}.")
        if self.n % 10 == 1:
            self.type("stty size; tty", "33 111")
        if self.n % 4 == 2:
            # The foreground job gets the interrupt.
            self.type("sh -c 'echo job; exec sleep 1000'", "job")
            os.write(self.master, b"\x03")
            self.type("echo code $?.", "code 130.")
        assert os.tcgetpgrp(self.master) > 0


class Raw(Check):
    """A raw pair: settings and bytes under way stay as they are."""

    users = ("root",)

    def prepare(self):
        self.master, self.slave = pty.openpty()
        settings = termios.tcgetattr(self.slave)
        settings[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
        settings[1] &= ~termios.OPOST
        settings[6][termios.VMIN], settings[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self.slave, termios.TCSANOW, settings)
        self.settings = termios.tcgetattr(self.slave)
        self.name = os.ttyname(self.slave)
        self.n = 0

    def step(self):
        same(termios.tcgetattr(self.slave), self.settings, "settings")
        same(of_one_host(lambda: os.ttyname(self.slave)), self.name, "its name")
        for writer, reader in (self.master, self.slave), (self.slave, self.master):
            os.write(writer, b"%08d" % self.n)
            got = b""
            while len(got) < 8:
                assert select.select([reader], [], [], PATIENCE)[0], "nothing comes through the terminal"
                got += os.read(reader, 8 - len(got))
            same(got, b"%08d" % self.n)
        self.n += 1


CHECKS = [Session, Raw]

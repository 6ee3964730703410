"""Open files, deleted files, and a tree of all kinds of files."""
import hashlib
import os
import socket
import stat
import fcntl

from check import Check, child, number, of_one_host, read_exactly, same


class Deleted(Check):
    """Files that are open and have lost their name: one grows, one is only read. Another has a second name."""

    users = ("alice", "bob")

    def prepare(self):
        self.file = os.open("gone", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.unlink("gone")
        self.linked = os.open("linked", os.O_RDWR | os.O_CREAT)
        os.link("linked", "other-name")
        with open("read-me", "wb") as file:
            file.write(b"content" * 1000)
        self.readable = os.open("read-me", os.O_RDONLY)
        os.read(self.readable, 7)
        os.unlink("read-me")
        self.n = 0

    def step(self):
        os.write(self.file, number(self.n))
        content = os.pread(self.file, 1 << 24, 0)
        same(len(content), 8 * (self.n + 1), "the deleted file's length")
        same(number(content[-8:]), self.n)
        same(content[:8], number(0))
        same(os.fstat(self.file).st_nlink, 0, "its links")
        os.pwrite(self.linked, number(self.n), 0)
        with open("other-name", "rb") as other:
            same(number(other.read()), self.n, "the file under its other name")
        same(os.pread(self.readable, 7, 6993), b"content")
        same(os.lseek(self.readable, 0, os.SEEK_CUR), 7, "the offset")
        same([n for n in os.listdir() if n in ("gone", "read-me")], [], "names that were removed")
        self.n += 1


class Offsets(Check):
    """What belongs to an open file: offset, flags, and with whom they are shared."""

    users = ("root", "bob")

    def prepare(self):
        self.file = os.open("offsets", os.O_RDWR | os.O_CREAT)
        self.shared = os.dup(self.file)
        self.own = os.open("offsets", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self.own, fcntl.F_SETFD, 0)
        self.log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        ask, self.ask = os.pipe()
        self.answer, answer = os.pipe()

        def body():
            while True:
                text = read_exactly(ask, 8)
                os.write(self.file, text)  # moves the offset of everybody
                os.write(answer, b"!")

        child(body)
        os.rename("log", "log.1")
        self.n = 0
        self.flags = self.look()

    def look(self):
        return [(fcntl.fcntl(f, fcntl.F_GETFL), fcntl.fcntl(f, fcntl.F_GETFD)) for f in (self.file, self.shared, self.own, self.log)]

    def step(self):
        os.write(self.ask, number(self.n))
        read_exactly(self.answer, 1)
        os.write(self.shared, number(self.n))
        same(os.lseek(self.file, 0, os.SEEK_CUR), 16 * (self.n + 1), "the shared offset")
        same(os.read(self.own, 16), number(self.n) * 2, "what was written")
        os.write(self.log, number(self.n))
        with open("log.1", "rb") as log:
            content = log.read()
            one = of_one_host(lambda: os.path.samestat(os.fstat(log.fileno()), os.fstat(self.log)))
            same(one, True, "name and descriptor are one file")
        same(content, b"".join(map(number, range(self.n + 1))), "the log")
        same(self.look(), self.flags, "flags")
        self.n += 1


class Tree(Check):
    """All that a file system can hold, in the writable layer, over files of the layer below."""

    users = ("root",)

    def prepare(self):
        os.makedirs("tree/folder/empty")
        for user in (0, 1000, 1001):
            with open(f"tree/of-{user}", "w") as file:
                file.write(f"of {user}")
            os.chown(f"tree/of-{user}", user, user)
        os.chmod("tree/of-1000", 0o4750)
        os.chmod("tree/folder", 0o1777)
        os.symlink("of-1000", "tree/link")
        os.symlink("/nowhere/at/all", "tree/dangling")
        os.link("tree/of-1001", "tree/folder/hard-link")
        os.setxattr("tree/of-0", "user.note", b"an attribute")
        os.mkfifo("tree/fifo")
        bound = socket.socket(socket.AF_UNIX)
        bound.bind("tree/socket")
        bound.close()
        with open("tree/sparse", "wb") as file:
            file.seek(1 << 30)
            file.write(b"the end")
        with open("tree/" + "long" * 60 + "\udcff", "w") as file:
            file.write("odd name")
        for name, _ in self.walk():
            if not os.path.islink(name):
                os.utime(name, ns=(1, 1_234_567_890_123_456_789))
        # Files of the layer below: changed, removed, replaced.
        with open("/etc/hosts", "a") as hosts:
            hosts.write("10.77.0.9 everyday\n")
        os.remove("/etc/nsswitch.conf")
        os.makedirs("/usr/share/everyday")
        self.before = self.look()
        self.n = 0

    def walk(self):
        for folder, folders, files in os.walk("tree", topdown=False):
            for name in folders + files:
                path = os.path.join(folder, name)
                yield path, os.lstat(path)

    def look(self):
        look = {}
        for path, s in self.walk():
            content = ""
            if stat.S_ISLNK(s.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(s.st_mode) and s.st_size < 1 << 20:
                with open(path, "rb") as file:
                    content = hashlib.sha256(file.read()).hexdigest()
            attributes = {} if stat.S_ISLNK(s.st_mode) else {n: os.getxattr(path, n) for n in os.listxattr(path) if n.startswith("user.")}
            look[path] = (oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink, s.st_size if stat.S_ISREG(s.st_mode) else 0, s.st_mtime_ns, content, attributes)
        sparse = os.stat("tree/sparse")
        look["is sparse"] = sparse.st_blocks < 1000
        look["one file"] = os.path.samefile("tree/of-1001", "tree/folder/hard-link")
        with open("/etc/hosts") as hosts:
            look["hosts"] = hosts.read()
        look["below"] = os.path.exists("/etc/nsswitch.conf"), os.listdir("/usr/share/everyday")
        return look

    def step(self):
        now = self.look()
        for name in self.before.keys() | now.keys():
            same(now.get(name), self.before.get(name), name)
        with open("tree/sparse", "rb") as file:
            file.seek(1 << 30)
            same(file.read(), b"the end")
        # Folders that come and go.
        self.n += 1
        os.mkdir(f"passing-{self.n}")
        if self.n > 3:
            os.rmdir(f"passing-{self.n - 3}")


CHECKS = [Deleted, Offsets, Tree]

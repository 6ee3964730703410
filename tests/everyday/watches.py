"""inotify."""
import os
import select
import struct

from check import Check, call, same

MODIFY, CREATE, DELETE, MOVED_TO = 0x2, 0x100, 0x200, 0x80


class Inotify(Check):
    """Watches on folders and files, of the writable layer, of the layer below, and in shared memory."""

    users = ("root", "alice")

    def prepare(self):
        self.fd = call("inotify_init1", os.O_NONBLOCK)
        os.mkdir("watched")
        with open("watched-file", "w"):
            pass
        self.folders = ["watched", "/dev/shm"] + (["/etc", "/usr/share"] if os.getuid() == 0 else [])
        self.watches = {folder: self.watch(folder, CREATE | DELETE) for folder in self.folders}
        self.file = self.watch("watched-file", MODIFY)

    def watch(self, path, events):
        return call("inotify_add_watch", self.fd, path.encode(), events)

    def events(self, patience):
        events = []
        if select.select([self.fd], [], [], patience)[0]:
            data = os.read(self.fd, 65536)
            while data:
                watch, mask, _, length = struct.unpack("iIII", data[:16])
                events.append((watch, mask, data[16:16 + length].rstrip(b"\0").decode()))
                data = data[16 + length:]
        return events

    def expect(self, act, event):
        """CRIU drops events that nobody has read: act again if there is none, but not for ever. Others use these
        folders too."""
        for _ in range(5):
            act()
            for _ in range(20):
                if event in self.events(0.1):
                    return
        raise AssertionError(f"no event {event} in {self.watches}, {self.file}")

    def step(self):
        name = f"passing-{os.getuid()}"
        for folder in self.folders:
            path = f"{folder}/{name}"
            self.expect(lambda: self.make_anew(path), (self.watches[folder], CREATE, name))
            os.unlink(path)
        self.expect(self.modify, (self.file, MODIFY, ""))
        same(os.path.exists("watched-file"), True)

    def make_anew(self, path):
        if os.path.exists(path):
            os.unlink(path)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))

    def modify(self):
        with open("watched-file", "a") as file:
            file.write("x")


CHECKS = [Inotify]

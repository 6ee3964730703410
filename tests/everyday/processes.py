"""Processes themselves: who they are, their threads, and those that have ended."""
import ctypes
import os
import resource
import signal
import socket
import threading

from check import PATIENCE, TICK, Check, libc, same


class Zombies(Check):
    """A careless parent: 60 dead children at any time, each with its own end. (Exit codes below 128: CRIU keeps 7 bits of
    a dead process's.)"""

    users = ("root", "bob")
    KEPT = 60

    def prepare(self):
        self.n = 0
        self.dead = []
        while len(self.dead) < self.KEPT:
            self.breed()

    def breed(self):
        self.n += 1
        pid = os.fork()
        if pid == 0:
            if self.n % 5 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(self.n % 128)
        self.dead.append((pid, -9 if self.n % 5 == 0 else self.n % 128))

    def step(self):
        for _ in range(5):
            self.breed()
            pid, end = self.dead.pop(0)
            got, status = os.waitpid(pid, 0)
            same((got, os.waitstatus_to_exitcode(status)), (pid, end), "the end of a child")


class Orphans(Check):
    """Grandchildren whose parent has ended: the pod's init takes them over, and they are not left dead."""

    users = ("alice",)

    def prepare(self):
        self.reader, self.writer = os.pipe()

    def step(self):
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                while os.getppid() != 1:
                    pass
                os.write(self.writer, b"%08d" % os.getpid())
            os._exit(0)
        os.waitpid(pid, 0)
        orphan = int(os.read(self.reader, 8))
        end = PATIENCE * 100
        while os.path.exists(f"/proc/{orphan}") and end:
            threading.Event().wait(0.01)
            end -= 1
        assert end, "the pod's init does not reap"


class Identity(Check):
    """Who and where a process is, as far as it can tell."""

    users = ("root", "alice", "bob")

    def prepare(self):
        os.nice(3)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 4000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 34, 1 << 35))
        libc.prctl(15, b"everyday", 0, 0, 0)
        libc.prctl(4, 1, 0, 0, 0)
        os.umask(0o027)

    def start(self):
        # Every thread exists by the next step.
        self.before = None

    def look(self):
        look = {
            "ids": (os.getresuid(), os.getresgid(), os.getgroups(), os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0)),
            "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
            "names": (socket.gethostname(), os.uname().nodename, os.getcwd()),
            "nice": os.nice(0),
            "scheduler": (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority),
            "environment": dict(os.environ),
        }
        for name in ("cgroup", "cmdline", "comm", "environ", "oom_score_adj", "personality", "uid_map"):
            try:
                with open(f"/proc/self/{name}") as file:
                    look[name] = file.read()
            except PermissionError:
                pass
        with open("/proc/self/mounts") as mounts:  # their order depends on how they were made
            # The options of a file system are told differently by other kernels.
            look["mounts"] = "\n".join(" ".join(m.split()[:3]) for m in sorted(mounts))
        look["links"] = {name: os.readlink(f"/proc/self/{name}") for name in ("exe", "root", "cwd")}
        wanted = ("Umask", "Uid", "Gid", "Groups", "NSpid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigIgn")
        with open("/proc/self/status") as status:
            look["status"] = {key: value for key, value in (line.split(":", 1) for line in status) if key in wanted}
        interfaces = {name: open(f"/sys/class/net/{name}/address").read() for _, name in socket.if_nameindex()}
        look["network"] = interfaces
        with open("/proc/net/route") as routes:
            look["routes"] = sorted(line.split()[:8] for line in routes)
        return look

    def step(self):
        now = self.look()
        self.before = self.before or now
        for name, value in self.before.items():
            if value != now[name] and isinstance(value, str):
                gone = [line for line in value.split("\n") if line not in now[name].split("\n")]
                new = [line for line in now[name].split("\n") if line not in value.split("\n")]
                raise AssertionError(f"{name}: gone {gone}, new {new}")
            same(now[name], value, name)


class Threads(Check):
    """Threads that pass a token round; each keeps its number, its name and its own memory."""

    users = ("root", "alice")
    COUNT = 8

    def start(self):
        self.turn, self.rounds, self.fault = 0, 0, None
        self.passed = threading.Condition()
        for n in range(self.COUNT):
            threading.Thread(target=self.live, args=(n,), daemon=True).start()

    def live(self, n):
        libc.prctl(15, b"thread-%d" % n, 0, 0, 0)
        own, mine = threading.local(), libc.gettid()
        own.rounds = 0
        name = ctypes.create_string_buffer(16)
        while True:
            with self.passed:
                if not self.passed.wait_for(lambda: self.turn == n, PATIENCE):
                    self.fault = f"thread {n} waits for its turn"
                    return
                libc.prctl(16, name, 0, 0, 0)
                seen = (libc.gettid(), name.value, own.rounds)
                if seen != (mine, b"thread-%d" % n, self.rounds):
                    self.fault = f"thread {n} is {seen}, not {mine}, in round {self.rounds}"
                own.rounds += 1
                self.turn = (n + 1) % self.COUNT
                self.rounds += self.turn == 0
                self.passed.notify_all()
            threading.Event().wait(TICK / 5)

    def step(self):
        with self.passed:
            before = self.rounds
            assert self.passed.wait_for(lambda: self.rounds > before or self.fault, PATIENCE), "the token is lost"
        assert not self.fault, self.fault
        same({libc.gettid()} < {int(task) for task in os.listdir("/proc/self/task")}, True, "threads")


CHECKS = [Zombies, Orphans, Identity, Threads]

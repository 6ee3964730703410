"""Sockets within the pod: nothing that is under way may be lost or come twice."""
import array
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct

from check import PATIENCE, Check, call, child, number, read_exactly, same

LAG = 6  # messages that are always under way
SIOCGIFADDR = 0x8915


def receive_exactly(connection, length):
    return read_exactly(connection.fileno(), length)


def echo(listener):
    """Serves each connection in turn, forever."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    connections = {listener.fileno(): listener}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                if connection.family == socket.AF_UNIX:
                    # (The other way round, a listener that was restored says 0.)
                    client = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                    same(struct.unpack("3i", client)[1], os.getuid(), "the client's user")
                connections[connection.fileno()] = connection
                poll.register(connection, select.POLLIN)
            elif data := os.read(descriptor, 4096):
                os.write(descriptor, data)
            else:
                poll.unregister(descriptor)
                connections.pop(descriptor).close()


class Echo(Check):
    """A server process; one connection that lasts, and a new one each time."""

    users = ()

    def prepare(self):
        listener = socket.socket(self.family, socket.SOCK_STREAM)
        listener.bind(self.address)
        listener.listen(8)
        self.address = listener.getsockname()
        child(lambda: echo(listener))
        listener.close()
        self.connection = self.connect()
        self.n = LAG
        self.connection.sendall(b"".join(map(number, range(LAG))))

    def connect(self):
        connection = socket.socket(self.family, socket.SOCK_STREAM)
        connection.settimeout(PATIENCE)
        connection.connect(self.address)
        connection.setblocking(True)
        return connection

    def step(self):
        self.connection.sendall(number(self.n))
        same(number(receive_exactly(self.connection, 8)), self.n - LAG, "what comes back")
        self.n += 1
        with self.connect() as new:
            new.sendall(b"anew")
            same(receive_exactly(new, 4), b"anew")


class UnixPath(Echo):
    users = ("alice", "bob")
    family, address = socket.AF_UNIX, "echo.socket"


class UnixAbstract(Echo):
    users = ("root",)
    family, address = socket.AF_UNIX, "\0everyday"


class Tcp4(Echo):
    users = ("alice",)
    family, address = socket.AF_INET, ("127.0.0.1", 0)


class Tcp6(Echo):
    users = ("bob",)
    family, address = socket.AF_INET6, ("::1", 0)


class TcpAny(Echo):
    """Over the pod's own address."""

    users = ("root",)
    family, address = socket.AF_INET, ("0.0.0.0", 0)

    def connect(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            interface = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", b"eth0"))
        self.address = socket.inet_ntoa(interface[20:24]), self.address[1]
        return super().connect()


class Datagrams(Check):
    """By name, by abstract name and as a pair: borders are kept."""

    users = ("alice",)

    def prepare(self):
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        for name in ["datagram.socket", "\0datagrams"]:
            receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
            receiver.bind(name)
            sender.connect(name)
            self.pairs.append((sender, receiver))
        self.n = 0
        for n in range(LAG):
            self.send(n)

    def send(self, n):
        for sender, _ in self.pairs:
            sender.send(number(n) * (1 + n % 3))

    def step(self):
        self.send(self.n + LAG)
        for _, receiver in self.pairs:
            same(receiver.recv(100), number(self.n) * (1 + self.n % 3), "a datagram")
        self.n += 1


class PassedDescriptors(Check):
    """Files handed over a unix socket; one is always under way."""

    users = ("bob",)

    def prepare(self):
        self.here, self.there = socket.socketpair()
        self.n = 0
        self.send(0)

    def send(self, n):
        reader, writer = os.pipe()
        os.write(writer, number(n))
        self.here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reader]))])
        os.close(reader)
        os.close(writer)

    def step(self):
        self.send(self.n + 1)
        data, ancillary, _, _ = self.there.recvmsg(1, socket.CMSG_SPACE(4))
        same(data, b"x")
        received = array.array("i", ancillary[0][2])[0]
        same(number(read_exactly(received, 8)), self.n, "what is in the file")
        os.close(received)
        self.n += 1


class Udp(Check):
    """May lose a datagram, as UDP may; not three in a row, and nothing else."""

    users = ("bob",)

    def prepare(self):
        self.receiver, self.sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        self.receiver.bind(("127.0.0.1", 0))
        self.sender.connect(self.receiver.getsockname())
        self.n = 0

    def step(self):
        self.n += 1
        for _ in range(3):
            self.sender.send(number(self.n))
            if select.select([self.receiver], [], [], 2)[0]:
                break
        got = 0
        while got < self.n:
            got = number(self.receiver.recv(100))
        same(got, self.n)


class HalfClosed(Check):
    """A connection of which one direction has ended."""

    users = ("root",)

    def prepare(self):
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        self.server, _ = listener.accept()
        listener.close()
        self.client.shutdown(socket.SHUT_WR)
        self.n = 0

    def step(self):
        same(self.server.recv(10), b"", "the direction that has ended")
        self.server.sendall(number(self.n))
        same(number(receive_exactly(self.client, 8)), self.n)
        self.n += 1


class Options(Check):
    """What was set on sockets stays set."""

    users = ("root",)

    def prepare(self):
        listener = socket.create_server(("127.0.0.1", 0))
        connection = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 90_000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 33, 0))
        self.sockets = {"listener": listener, "connection": connection, "accepted": accepted}
        self.before = self.look()

    def look(self):
        names = ["SO_REUSEADDR", "SO_KEEPALIVE", "SO_RCVBUF", "SO_SNDBUF", "SO_LINGER", "SO_RCVTIMEO", "SO_ACCEPTCONN"]
        number = {"SO_RCVTIMEO": 20}
        look = {}
        for what, s in self.sockets.items():
            for name in names:
                look[what, name] = s.getsockopt(socket.SOL_SOCKET, getattr(socket, name, number.get(name)), 16)
            for name in ["TCP_NODELAY", "TCP_KEEPIDLE"]:
                look[what, name] = s.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            look[what, "address"] = s.getsockname()
            look[what, "flags"] = os.get_blocking(s.fileno()), os.get_inheritable(s.fileno())
        return look

    def step(self):
        for key, value in self.look().items():
            same(value, self.before[key], " ".join(key))


class Epoll(Check):
    """An epoll set of eventfd, signalfd, pipe and socket, level and edge triggered."""

    users = ("alice",)

    def prepare(self):
        self.event = call("eventfd", 0, os.O_NONBLOCK)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN + 9])
        mask = (ctypes.c_ulong * 16)(1 << (signal.SIGRTMIN + 8))
        self.signals = call("signalfd", -1, mask, os.O_NONBLOCK)
        self.pipe = os.pipe()
        self.pair = socket.socketpair()
        self.full = call("eventfd", 7, os.O_NONBLOCK)
        self.epoll = select.epoll()
        for descriptor in (self.event, self.signals, self.pipe[0]):
            self.epoll.register(descriptor, select.EPOLLIN)
        self.epoll.register(self.pair[0], select.EPOLLIN | select.EPOLLET)
        outer = select.epoll()  # a set in a set
        outer.register(self.epoll, select.EPOLLIN)
        self.outer = outer

    def step(self):
        same(self.epoll.poll(0), [], "ready before anything has happened")
        actions = {
            self.event: lambda: os.write(self.event, number(3)),
            self.signals: lambda: os.kill(os.getpid(), signal.SIGRTMIN + 9),
            self.pipe[0]: lambda: os.write(self.pipe[1], number(4)),
            self.pair[0].fileno(): lambda: self.pair[1].send(number(5)),
        }
        for descriptor, act in actions.items():
            act()
            same(self.outer.poll(PATIENCE), [(self.epoll.fileno(), select.EPOLLIN)], "the outer set")
            same(self.epoll.poll(PATIENCE), [(descriptor, select.EPOLLIN)], "the inner set")
            os.read(descriptor, 128)
        same(number(os.read(self.full, 8)), 7, "what waits in an eventfd")
        os.write(self.full, number(7))


CHECKS = [UnixPath, UnixAbstract, Tcp4, Tcp6, TcpAny, Datagrams, PassedDescriptors, Udp, HalfClosed, Options, Epoll]

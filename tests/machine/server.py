"""A web server with threads and timers, in a pod that moves between kernels. GET /small says that it is still here;
GET /counts says how often each of its clocks has fired, and what went wrong; and how many bytes of restartable sequences it has registered."""
import ctypes
import json
import queue
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What the C library has registered with the kernel; 0 if nothing. Absent before glibc 2.35.
RSEQ_BYTES = ctypes.c_uint.in_dll(ctypes.CDLL(None), "__rseq_size").value
clocks = dict.fromkeys(["thread", "timer", "itimer", "passed"], 0)
faults = []


def sleeper():
    """A thread in the middle of a sleep, which must not be cut short."""
    while True:
        begun = time.monotonic()
        time.sleep(0.2)
        if time.monotonic() - begun < 0.19:
            faults.append(f"a sleep of 0.2 s took {time.monotonic() - begun} s")
        clocks["thread"] += 1


def timer():
    clocks["timer"] += 1
    threading.Timer(0.1, timer).start()


def tick(*_):
    clocks["itimer"] += 1


def passer(mine, other):
    """Threads that wait for each other without a time limit."""
    while True:
        token = mine.get()
        if token != clocks["passed"]:
            faults.append(f"token {token}, not {clocks['passed']}")
        clocks["passed"] += 1
        time.sleep(0.05)
        other.put(token + 1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = json.dumps({"clocks": clocks, "faults": faults, "rseq": RSEQ_BYTES}) if self.path == "/counts" else "still here"
        body = (text + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


a, b = queue.Queue(), queue.Queue()
for action in (sleeper, lambda: passer(a, b), lambda: passer(b, a)):
    threading.Thread(target=action, daemon=True).start()
a.put(0)
timer()
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()

"""What ordinary programs do all day, by three users, checking itself all the time.

Run as root in a pod that moves. Prints `ok USER ROUND` after each round in which all checks of a user passed, and
`FAIL USER CHECK: why` where one did not; that check is then left out, so that the others still speak.
Each check is a class in a module of its own kind; see check.py.
"""
import os
import select
import sys
import time
import traceback

import clocks
import files
import ipc
import locks
import memory
import pipes
import processes
import signals
import sockets
import terminals
import timers
import watches
from check import KINDS

USERS = {"root": 0, "alice": 1000, "bob": 1001}
PAUSE = 1 if KINDS else 0.02  # seconds between rounds
STUCK = 900  # seconds for one round, also on emulated machines


def become(user):
    number = USERS[user]
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    os.chdir(f"/var/tmp/everyday/{user}")


def work(user, checks, report):
    """The life of one user's worker."""
    def say(text):
        os.write(report, (text + "\n").encode())

    def attempt(check, action):
        say(f"at {type(check).__name__}")
        try:
            action()
            return True
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            say(f"FAIL {user} {type(check).__name__}: {error!r} ({os.path.basename(where.filename)}:{where.lineno})")
            return False

    become(user)
    checks = [check for check in checks if attempt(check, check.prepare)]
    checks = [check for check in checks if attempt(check, check.start)]
    number = 0
    while True:
        checks = [check for check in checks if attempt(check, check.step)]
        number += 1
        say(f"ok {user} {number} {len(checks)}")
        time.sleep(PAUSE)


def main():
    os.umask(0o022)
    os.makedirs("/var/tmp/everyday", exist_ok=True)
    chain = pipes.Chain(USERS)  # its processes are of several users, so root makes it
    modules = [clocks, files, ipc, locks, memory, pipes, processes, signals, sockets, terminals, timers, watches]
    modules = [module for module in modules if module.__name__ in KINDS or not KINDS]
    reports = {}
    for user, number in USERS.items():
        os.makedirs(f"/var/tmp/everyday/{user}", exist_ok=True)
        os.chown(f"/var/tmp/everyday/{user}", number, number)
        checks = [check() for module in modules for check in module.CHECKS if user in check.users]
        checks += [chain] if user == "root" else []
        mine, theirs = os.pipe()
        worker = os.fork()
        if worker == 0:
            os.close(mine)
            work(user, checks, theirs)
        os.close(theirs)
        reports[mine] = [user, b"", "start", time.monotonic(), worker]
    while True:
        ready, _, _ = select.select(list(reports), [], [], 5)
        for descriptor, state in reports.items():
            if descriptor in ready:
                said = os.read(descriptor, 65536)
                if not said:
                    _, status = os.waitpid(state[4], 0)
                    print(f"FAIL {state[0]} {state[2]}: its worker has ended, status {status}", flush=True)
                    sys.exit(1)
                state[1] += said
                *lines, state[1] = state[1].split(b"\n")
                for line in map(bytes.decode, lines):
                    if line.startswith("at "):
                        state[2] = line[3:]
                        continue
                    state[3] = time.monotonic()
                    print(line, flush=True)
            if time.monotonic() > state[3] + STUCK:
                print(f"FAIL {state[0]} {state[2]}: does not come to an end", flush=True)
                sys.exit(1)


main()

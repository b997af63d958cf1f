"""A process tree: a child in the same session, one in a session of its own with a grandchild, one per process group."""

import os
import time

from rounds import rounds

r, w = os.pipe()


def identity() -> bytes:
    return f"{os.getpid()} {os.getppid()} {os.getsid(0)} {os.getpgid(0)}".encode()


def report_for_ever(name: bytes) -> None:
    while True:
        os.write(w, name + b" " + identity() + b"\n")
        time.sleep(0.01)


if os.fork() == 0:
    report_for_ever(b"same")
if os.fork() == 0:
    os.setpgid(0, 0)
    report_for_ever(b"group")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        report_for_ever(b"grandchild")
    report_for_ever(b"session")

lines = os.fdopen(r)
known: dict[str, str] = {"parent": identity().decode()}
while len(known) < 5:
    who, _, what = lines.readline().strip().partition(" ")
    known[who] = what


def check(number: int) -> None:
    assert identity().decode() == known["parent"]
    seen = set()
    while seen != set(known) - {"parent"}:
        who, _, what = lines.readline().strip().partition(" ")
        assert known[who] == what, f"{who} was {known[who]}, is {what}"
        seen.add(who)


rounds(check)

"""Eight threads with names, thread-local values and native ids; one holds a lock, one waits on a condition."""

import threading
import time

from rounds import rounds

local = threading.local()
counts = [0] * 8
bad: list[str] = []
turn = threading.Condition()


def run(number: int) -> None:
    local.number = number
    tid = threading.get_native_id()
    while True:
        if local.number != number or threading.get_native_id() != tid:
            bad.append(f"thread {number} is {local.number}, {threading.get_native_id()}")
        with turn:
            turn.wait(0.01)
            counts[number] += 1


for number in range(8):
    threading.Thread(target=run, args=(number,), daemon=True).start()


def check(number: int) -> None:
    assert not bad, bad
    before = list(counts)
    while any(now <= then for now, then in zip(counts, before, strict=True)):
        with turn:
            turn.notify_all()
        time.sleep(0.001)


rounds(check)

"""A program that would notice being stopped or continued: `unstopped.py MIB`.

A child touches its memory in no order, all the time. Both count the SIGCONT that they get, the parent asks whether the
child was stopped or continued, and a thread that no signal can reach sleeps in a call that a stop ends with EINTR
(signal(7)).
"""

import ctypes
import errno
import mmap
import os
import random
import select
import signal
import sys
import threading
import time

from rounds import rounds

PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
size = int(sys.argv[1]) << 20
board = mmap.mmap(-1, PAGE)  # shared: how often each was continued
CHILD, PARENT, INTERRUPTED, READY = range(4)


def count(place: int) -> None:
    board[place] = min(board[place] + 1, 255)


def touch() -> None:
    """Be the child."""
    signal.signal(signal.SIGCONT, lambda *_: count(CHILD))
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    places = list(range(0, size, PAGE))
    for place in places:
        memory[place] = place // PAGE % 251
    order = random.Random(4711)
    board[READY] = 1
    while True:
        order.shuffle(places)
        for place in places:
            assert memory[place] == place // PAGE % 251


def sleep() -> None:
    """Be the thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    poll = select.epoll()
    room = ctypes.create_string_buffer(64)
    while True:
        if libc.epoll_wait(poll.fileno(), room, 1, 50) < 0 and ctypes.get_errno() == errno.EINTR:
            count(INTERRUPTED)


signal.signal(signal.SIGCONT, lambda *_: count(PARENT))
if (child := os.fork()) == 0:
    touch()
threading.Thread(target=sleep, daemon=True).start()
while not board[READY]:
    time.sleep(0.01)


def check(number: int) -> None:
    """See that nothing was noticed."""
    assert os.waitpid(child, os.WNOHANG | os.WUNTRACED | os.WCONTINUED) == (0, 0), "the child was stopped"
    assert not board[CHILD], f"the child was continued {board[CHILD]} times"
    assert not board[PARENT], f"the parent was continued {board[PARENT]} times"
    assert not board[INTERRUPTED], f"a call was interrupted {board[INTERRUPTED]} times"


rounds(check)

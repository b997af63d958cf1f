"""Two processes with System V IPC: shared memory with and without a key, semaphores, a queue with messages in it.

Both see in each round that all of it is as it was, ids and rights included, and pass a token through it.
"""

import ctypes
import os
import sys
from pathlib import Path

from rounds import rounds

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
IPC_RMID, IPC_CREAT, IPC_EXCL, IPC_NOWAIT, GETVAL, SETVAL, KEY = 0, 0o1000, 0o2000, 0o4000, 12, 16, 0x5034
SIZE = int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 20


class Message(ctypes.Structure):
    _fields_ = (("type", ctypes.c_long), ("text", ctypes.c_char * 64))


class Operation(ctypes.Structure):
    _fields_ = (("number", ctypes.c_ushort), ("value", ctypes.c_short), ("flags", ctypes.c_short))


def sure(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def memory(key: int) -> "tuple[int, ctypes.Array[ctypes.c_char]]":
    number = sure(libc.shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0o640))
    return number, (ctypes.c_char * SIZE).from_address(libc.shmat(number, None, 0))


def operate(value: int) -> None:
    sure(libc.semop(semaphores, ctypes.byref(Operation(1, value, 0)), 1))


named, shared = memory(KEY)
removed, private = memory(0)
sure(libc.shmctl(removed, IPC_RMID, None))  # it goes with its last user
for place in range(0, SIZE, 4096):
    private[place] = shared[place] = place // 4096 % 251
semaphores = sure(libc.semget(KEY, 3, IPC_CREAT | IPC_EXCL | 0o600))
for member, value in enumerate((7, 0, 9)):
    sure(libc.semctl(semaphores, member, SETVAL, value))
queue = sure(libc.msgget(KEY, IPC_CREAT | IPC_EXCL | 0o600))
for kind in (3, 1, 2):
    sure(libc.msgsnd(queue, ctypes.byref(Message(kind, b"kept %d" % kind)), 64, 0))

if os.fork() == 0:
    while True:  # the other process: waits for the token, counts, and gives it back as a message
        operate(-1)
        shared[1] = (ord(shared[1]) + 1) % 256
        sure(libc.msgsnd(queue, ctypes.byref(Message(9, shared[1])), 64, 0))


def check(number: int) -> None:
    assert (sure(libc.shmget(KEY, 0, 0)), sure(libc.semget(KEY, 0, 0)), sure(libc.msgget(KEY, 0))) == (
        named,
        semaphores,
        queue,
    )
    rows = [line.split()[:3] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    assert [row[1:] for row in rows] == [[str(named), "640"], [str(removed), "1640"]], rows
    for place in range(0, SIZE, 4096):
        assert ord(private[place]) == ord(shared[place]) == place // 4096 % 251, place
    operate(1)
    answer = Message()
    sure(libc.msgrcv(queue, ctypes.byref(answer), 64, 9, 0))
    assert answer.text == bytes([number % 256]).rstrip(b"\0"), (answer.text, number)
    assert [sure(libc.semctl(semaphores, member, GETVAL)) for member in range(3)] == [7, 0, 9]
    for kind in (3, 1, 2):  # in their order: the first of any kind comes back to the end
        sure(libc.msgrcv(queue, ctypes.byref(answer), 64, 0, IPC_NOWAIT))
        assert answer.text == b"kept %d" % kind, answer.text
        sure(libc.msgsnd(queue, ctypes.byref(answer), 64, 0))


rounds(check)

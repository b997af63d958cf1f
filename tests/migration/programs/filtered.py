"""Counts, under a seccomp filter that has it killed for a close(2) or a munmap(2) that it does not mean to make."""

import ctypes
import struct
import sys
import time

NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2  # prctl(2)
CLOSE, MUNMAP = 3, 11  # x86-64
ALLOW, KILL = 0x7FFF0000, 0x80000000  # <linux/seccomp.h>
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # <linux/bpf_common.h>

code = b"".join(
    struct.pack("=HBBI", *one)
    for one in (
        (LOAD, 0, 0, 0),  # the call's number
        (EQUAL, 2, 0, CLOSE),
        (EQUAL, 1, 0, MUNMAP),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    )
)
held = ctypes.create_string_buffer(code)
program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SET_SECCOMP, FILTER, program, 0, 0) == 0
number = 0
while True:
    number += 1
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()
    time.sleep(0.01)

"""Counts, under a seccomp filter that has it killed for calls that it does not mean to make: `filtered.py [FILES]`.

They are close(2), munmap(2) and restart_syscall(2). With FILES, that is its limit of open files.
"""

import ctypes
import resource
import struct
import sys

NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2  # prctl(2)
CLOSE, MUNMAP, RESTART_SYSCALL = 3, 11, 219  # x86-64
ALLOW, KILL = 0x7FFF0000, 0x80000000  # <linux/seccomp.h>
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # <linux/bpf_common.h>

code = b"".join(
    struct.pack("=HBBI", *one)
    for one in (
        (LOAD, 0, 0, 0),  # the call's number
        (EQUAL, 3, 0, CLOSE),
        (EQUAL, 2, 0, MUNMAP),
        (EQUAL, 1, 0, RESTART_SYSCALL),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    )
)
held = ctypes.create_string_buffer(code)
program = struct.pack("=HxxxxxxQ", len(code) // 8, ctypes.addressof(held))
libc = ctypes.CDLL(None, use_errno=True)
if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
print("ready", flush=True)
assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(SET_SECCOMP, FILTER, program, 0, 0) == 0
number = 0
while True:
    number += 1
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()
    libc.poll(None, 0, 50)

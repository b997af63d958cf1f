"""A program, or only its worker process, of some user, in a directory that it may not write to, or that is gone.

Both have resource limits of their own, and see in each round that all of it is as it was.
"""

import os
import resource
import sys
from pathlib import Path

from rounds import rounds

who, user, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
LIMITS = [getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]


def where() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return "deleted"


def state() -> tuple[object, ...]:
    ids = (os.getresuid(), os.getresgid(), os.getgroups())
    mask = os.umask(0o077)
    os.umask(mask)
    return (*ids, where(), [resource.getrlimit(limit) for limit in LIMITS], mask)


def become_user() -> None:
    """Change to the directory as root, then to the user."""
    os.chdir(directory)
    if directory.endswith("deleted"):
        Path(directory).rmdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
    resource.setrlimit(resource.RLIMIT_CPU, (1000, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    os.umask(0o077)
    if user:
        os.setgroups([4, 24])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


# In the machine's proc, over which another one lies during a dump.
uptime = os.open("/proc/uptime", os.O_RDONLY)


def check(_: int) -> None:
    assert os.pread(uptime, 100, 0)
    assert state() == before, (state(), before)
    if who == "worker":
        assert os.read(from_worker, 1) == b"."


if who == "worker":
    from_worker, to_main = os.pipe()
    if os.fork() == 0:
        become_user()
        known = state()
        while state() == known:
            os.write(to_main, b".")
        os._exit(1)  # which the reader hears of
    os.close(to_main)
else:
    become_user()
before = state()
rounds(check)

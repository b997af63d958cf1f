"""Open files: deleted ones, offsets, append mode, locks of three kinds, memory maps private, shared and anonymous."""

import errno
import fcntl
import mmap
import os
import struct
import sys
import tempfile
from pathlib import Path

from rounds import rounds

folder = Path(sys.argv[1])


def temporary(name: str, content: bytes = b"") -> int:
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, content)
    return fd


ghost = temporary("ghost", b"ghost" * 1000)
(folder / "ghost").unlink()
linked = temporary("linked", b"linked")
os.link(folder / "linked", folder / "other name")
(folder / "linked").unlink()
unnamed = os.open(folder, os.O_TMPFILE | os.O_RDWR)
os.write(unnamed, b"never had a name")
data = temporary("data", b"0123456789")
os.lseek(data, 4, os.SEEK_SET)
append = os.open(folder / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
pinned = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
removed_folder = tempfile.mkdtemp(dir=folder)
gone = os.open(removed_folder, os.O_RDONLY | os.O_DIRECTORY)
Path(removed_folder).rmdir()

flocked = temporary("flock")
fcntl.flock(flocked, fcntl.LOCK_EX)
posix = temporary("posix", b"x" * 100)
fcntl.lockf(posix, fcntl.LOCK_EX, 10, 20)
ofd = temporary("ofd", b"x" * 100)
F_OFD_SETLK = 37
fcntl.fcntl(ofd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0))

page = mmap.PAGESIZE
mapped = temporary("mapped", bytes(page))
shared = mmap.mmap(mapped, page)
private = mmap.mmap(mapped, page, mmap.MAP_PRIVATE)
private[:7] = b"private"
anonymous = mmap.mmap(-1, page)  # shared with the child
memory = os.memfd_create("scratch")
os.write(memory, b"in memory")
sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
os.write(sealed, b"sealed")
fcntl.fcntl(sealed, 1033, 0x2)  # F_ADD_SEALS, F_SEAL_SHRINK

ask_r, ask_w = os.pipe()
answer_r, answer_w = os.pipe()


def can_lock(name: str, how: str) -> bool:
    fd = os.open(folder / name, os.O_RDWR)
    try:
        if how == "flock":
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif how == "posix":
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 29)
        else:
            fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 9, 1, 0))
        return True
    except OSError as ex:
        assert ex.errno in (errno.EAGAIN, errno.EACCES), ex
        return False
    finally:
        os.close(fd)


if os.fork() == 0:  # a stranger who tries the locks, and writes to shared memory
    os.close(flocked)
    os.close(ofd)
    while True:
        os.read(ask_r, 1)
        anonymous[0] = (anonymous[0] + 1) % 256
        got = [n for n in ("flock", "posix", "ofd") if can_lock(n, n)]
        os.write(answer_w, (" ".join(got) or "-").encode())


def check(number: int) -> None:
    assert os.pread(ghost, 6000, 0) == b"ghost" * 1000
    assert not (folder / "ghost").exists()
    assert os.fstat(ghost).st_nlink == 0
    assert os.pread(linked, 100, 0) == b"linked"
    assert (folder / "other name").read_bytes() == b"linked"
    assert os.pread(unnamed, 100, 0) == b"never had a name"
    assert os.lseek(data, 0, os.SEEK_CUR) == 4
    os.write(append, b"%d\n" % number)
    assert (folder / "append").read_bytes().count(b"\n") == number
    assert "data" in os.listdir(pinned)  # noqa: PTH208 (by descriptor)
    os.fstat(gone)
    shared[:4] = struct.pack("<I", number)
    assert os.pread(mapped, 4, 0) == struct.pack("<I", number)
    assert private[:7] == b"private"
    assert os.pread(memory, 100, 0) == b"in memory"
    assert fcntl.fcntl(sealed, 1034) == 2  # F_GET_SEALS
    before = anonymous[0]
    os.write(ask_w, b"?")
    assert os.read(answer_r, 100) == b"-", "somebody else got a lock"
    assert anonymous[0] == (before + 1) % 256
    fcntl.lockf(posix, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)  # still ours


rounds(check)

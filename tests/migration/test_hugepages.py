"""Collapsing a running program's memory into huge pages changes how it is mapped, and not one byte of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration.transfer.hugepages import HUGE, Area, collapse, dense_ranges, parse_smaps

PROGRAM = """
import hashlib, mmap, os, sys
memory = mmap.mmap(-1, 32 << 20)
memory[:] = os.urandom(1 << 20) * 32
print(hashlib.sha256(memory).hexdigest(), flush=True)
for line in sys.stdin:
    print(hashlib.sha256(memory).hexdigest(), flush=True)
"""
SMAPS = """\
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                8000 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac
7f0001000000-7f0001800000 r--p 00000000 fe:00 77                         /usr/lib/x.so
Rss:                8192 kB
VmFlags: rd mr
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  20 kB
VmFlags: rd wr
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    """Run a program with 32 MiB that says their checksum on every line."""
    command = ["/usr/bin/python3", "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def huge_bytes(pid: int) -> int:
    """Return how much anonymous memory of a process is in huge pages."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if "AnonHuge" in line)


def test_memory_stays_what_it_is(program: subprocess.Popen[str]) -> None:
    """What is said to be in huge pages is, and the program's checksum is the same."""
    assert program.stdin is not None
    assert program.stdout is not None
    before = program.stdout.readline()
    done = collapse([program.pid], 20)
    assert huge_bytes(program.pid) >= done
    print("now", file=program.stdin, flush=True)
    assert program.stdout.readline() == before


def test_who_is_gone_has_nothing(program: subprocess.Popen[str]) -> None:
    """No time, or no process: nothing is done."""
    assert program.stdout is not None
    program.stdout.readline()
    assert collapse([program.pid], -1) == 0
    program.kill()
    program.wait()
    assert collapse([program.pid], 1) == 0


def test_smaps_are_read() -> None:
    """Only writable anonymous memory counts, and not the stack."""
    assert list(parse_smaps(SMAPS)) == [Area(0x7F0000000000, 0x7F0000800000, 8000 << 10, 2 << 20)]


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 26), st.integers(0, 1 << 26), st.integers(0, 1 << 26))
def test_ranges_lie_within_their_area(start: int, size: int, resident: int, huge: int) -> None:
    """Every huge page that is asked for is aligned and lies within its area."""
    area = Area(start * 4096, start * 4096 + size // 4096 * 4096, resident, huge)
    for at in dense_ranges([area]):
        assert at % HUGE == 0
        assert area.start <= at
        assert at + HUGE <= area.end

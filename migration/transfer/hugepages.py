"""Huge pages for a program that is about to be frozen, so that the freeze is not as long as its memory is large.

A dump for post-copy copies no page, but it goes through all of them three times: /proc/PID/smaps, the page map, and the
pages' references for the pipes. With pages of 2 MiB that takes a fraction of the time. So, while the program still
runs, dense areas are collapsed into huge pages (process_madvise, MADV_COLLAPSE, Linux 6.1); where the program touches
one that is being copied, it waits for that copy. Where the kernel cannot, nothing is lost but this time.

Only areas that are nearly full are touched: collapsing fills gaps with zeros, which would take memory.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HUGE = 2 << 20
MADV_COLLAPSE = 25
SYS_PROCESS_MADVISE = 440
# Of an area's pages, so many must be there.
DENSE = 0.8
_IOVEC = struct.Struct("@PN")  # struct iovec
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Area:
    """An area of anonymous memory, and how much of it is there and how much of that in huge pages."""

    start: int
    end: int
    resident: int
    huge: int


def parse_smaps(text: str) -> Iterator[Area]:
    """Yield the private, writable, anonymous areas of a /proc/PID/smaps."""
    head: re.Match[str] | None = None
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        if found := _HEAD.fullmatch(line):
            head, sizes = found, {}
            continue
        name, _, value = line.partition(":")
        if name in ("Rss", "AnonHugePages"):
            sizes[name] = int(value.split()[0]) << 10
        elif name == "VmFlags" and head is not None:
            start, end, rights, inode, path = head.groups()
            if rights == "rw-p" and inode == "0" and not path.startswith(("[stack", "[v")):
                yield Area(int(start, 16), int(end, 16), sizes.get("Rss", 0), sizes.get("AnonHugePages", 0))


def dense_ranges(areas: Iterable[Area]) -> Iterator[int]:
    """Yield where huge pages could begin in what is worth collapsing."""
    for area in areas:
        start, end = -(-area.start // HUGE) * HUGE, area.end // HUGE * HUGE
        if end <= start or area.resident < DENSE * (area.end - area.start) or area.huge >= end - start:
            continue
        yield from range(start, end, HUGE)


def collapse(pids: Iterable[int], seconds: float) -> int:
    """Collapse the dense memory of processes, for about so long at most; return the bytes now in huge pages."""
    deadline = time.monotonic() + seconds
    done = 0
    for pid in pids:
        try:
            areas = list(parse_smaps(Path(f"/proc/{pid}/smaps").read_text()))
            process = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            for start in dense_ranges(areas):
                if time.monotonic() > deadline:
                    return done
                # It fails for a range without a page, and on kernels that cannot.
                vector = _IOVEC.pack(start, HUGE)
                if _libc.syscall(SYS_PROCESS_MADVISE, process, vector, 1, MADV_COLLAPSE, 0) >= 0:
                    done += HUGE
        finally:
            os.close(process)
    return done

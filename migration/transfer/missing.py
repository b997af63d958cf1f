"""Which pages of a post-copy are still missing, and asking for them from outside.

A page that is touched is asked for, whoever touches it: process_vm_readv(2) will do. (Reading /proc/PID/mem will not:
the kernel does not wait there, and fails.)
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import messages, tree
from ..images import split

PAGE = os.sysconf("SC_PAGE_SIZE")
PE_LAZY = 1 << 1  # CRIU's pagemap_entry.flags
_PATTERN = "pagemap-*.img"
_IOVEC = struct.Struct("@PN")  # struct iovec
_libc = ctypes.CDLL(None, use_errno=True)
_ENTRY = 8  # bytes of /proc/PID/pagemap for a page; the highest byte of each:
_THERE = bytes(int(byte & 0xC0 != 0) for byte in range(256))  # bit 63 present, bit 62 swapped


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses from `start` to before `end`."""

    start: int
    end: int


Ranges = dict[int, list[Range]]


def lazy_ranges(images: Path) -> Ranges:
    """Return what of each process, by its PID inside, an image leaves to be fetched later."""
    pagemap = messages.load(messages.PAGEMAP)
    found: Ranges = {}
    for path in images.glob(_PATTERN):
        number = path.stem.partition("-")[2]
        if not number.isdigit():  # shared memory, which is in the image
            continue
        _, (_, *entries) = split(path.read_bytes())
        ranges = found.setdefault(int(number), [])
        for message in entries:
            entry = pagemap.pagemap_entry.FromString(message)
            if entry.flags & PE_LAZY:
                pages = entry.nr_pages or entry.compat_nr_pages
                ranges.append(Range(entry.vaddr, entry.vaddr + pages * PAGE))
    return found


def mappings(pid: int) -> list[Range]:
    """List the areas of a process that have memory; none if it is gone."""
    found = []
    for line in tree.read_or_empty(tree.PROC / str(pid) / "maps").splitlines():
        area, _, path = line.partition(" ")
        if "[v" not in path:  # [vdso], [vvar], [vsyscall]
            start, _, end = area.partition("-")
            found.append(Range(int(start, 16), int(end, 16)))
    return found


def overlaps(ranges: Iterable[Range], areas: list[Range]) -> Iterator[Range]:
    """Yield what of ranges lies in areas, cut where an area ends; both are sorted."""
    at = 0
    for one in ranges:
        while at < len(areas) and areas[at].end <= one.start:
            at += 1
        for area in areas[at:]:
            if area.start >= one.end:
                break
            yield Range(max(one.start, area.start), min(one.end, area.end))


class Missing:
    """What the copies of an image's processes have not got yet."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._all = sorted({one for each in ranges.values() for one in each})
        self.total = sum(one.end - one.start for each in ranges.values() for one in each)
        """Bytes that were missing at first."""

    def count(self, pids: Iterable[int]) -> int:
        """Return how many pages of processes are missing; what was unmapped counts."""
        return sum(there.count(0) for pid in pids for _, there in _presence(pid, self._of(pid)))

    def touch_all(self, pids: Iterable[int]) -> bool:
        """Ask for all missing pages that may be read; return True if none is missing now."""
        pids = list(pids)
        for pid in pids:
            _touch(pid, _absent(pid, overlaps(self._of(pid), mappings(pid))))
        return not any(True for pid in pids for _ in _absent(pid, overlaps(self._of(pid), mappings(pid))))

    def _of(self, pid: int) -> list[Range]:
        """Return the ranges of a process; one that was forked meanwhile has some of those that there are."""
        return self._ranges.get(tree.inside(pid), self._all)


def _presence(pid: int, ranges: Iterable[Range]) -> Iterator[tuple[int, bytes]]:
    """Yield the start of each range and, for each page, a byte: 1 if it is there. Nothing if the process has ended."""
    try:
        pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for one in ranges:
            size = (one.end - one.start) // PAGE * _ENTRY
            entries = os.pread(pagemap, size, one.start // PAGE * _ENTRY)
            yield one.start, entries[_ENTRY - 1 :: _ENTRY].translate(_THERE)
    finally:
        os.close(pagemap)


def _absent(pid: int, ranges: Iterable[Range]) -> Iterator[int]:
    """Yield the addresses of the pages that are not there."""
    for start, there in _presence(pid, ranges):
        at = there.find(0)
        while at >= 0:
            yield start + at * PAGE
            at = there.find(0, at + 1)


def userfaultfds(pid: int) -> list[tree.OpenFile]:
    """List the descriptors of a process with which it fills in others' pages."""
    return [file for file in tree.open_files([pid]) if file.target == "anon_inode:[userfaultfd]"]


def _touch(pid: int, addresses: Iterable[int]) -> None:
    """Read a byte at each address of a process, as far as there is one that may be read."""
    byte = ctypes.create_string_buffer(1)
    here = _IOVEC.pack(ctypes.addressof(byte), 1)
    for address in addresses:
        _libc.process_vm_readv(pid, here, 1, _IOVEC.pack(address, 1), 1, 0)

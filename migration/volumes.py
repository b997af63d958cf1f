"""Working files that move with their program: a directory that every host has for itself.

Hosts share the machine's file systems. A volume makes an exception: a bind mount, in the host's mount namespace, of a
folder that belongs to this host only, filled at first with what the directory has. A migration copies it to the
destination's folder, first while the program runs, then, in the freeze, only what has changed since (`Mirror`). Then
the source's is taken away, or, if the program goes back, the destination's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from . import tree
from .errors import MigrationError
from .model import App, Host, Volume
from .slowness import scaled

# Of an overlay's bookkeeping, what belongs to the content. (The rest names inodes.)
_OVERLAY, _OPAQUE = "trusted.overlay.", "trusted.overlay.opaque"
# A file that was written this shortly before it was looked at may change again without a new time stamp.
RACY_NS = 100_000_000
COPIES = "its files are copies: device and inode numbers, change times and access times of folders are others (stat(2))"
"""What a program can find of that."""


def folder_of(volume: Volume, host: Host) -> Path:
    """Return where a host keeps its files of a volume."""
    return volume.store / host.name / quote(str(volume.directory), safe="")


def covers(volumes: Iterable[Volume], path: str) -> bool:
    """Say whether a path is that of a volume, or below one."""
    return any(Path(path).is_relative_to(volume.directory) for volume in volumes)


def in_use(volume: Volume, host: Host) -> bool:
    """Say whether a program on the host has the volume."""
    return folder_of(volume, host).exists()


def create(volume: Volume, host: Host) -> None:
    """Give a host its own files of a volume, with what the directory has; raises MigrationError."""
    if not volume.directory.is_dir():
        raise MigrationError(f"the volume {volume.directory} is not a directory")
    if in_use(volume, host):
        raise MigrationError(f"the volume {volume.directory} is in use on {host.name} by another program")
    try:
        attach(volume, host)
        Mirror(volume.directory, folder_of(volume, host)).sync()
    except (MigrationError, OSError) as ex:
        detach(volume, host)
        raise MigrationError(f"the volume {volume.directory} cannot be made on {host.name}: {ex}") from ex


def attach(volume: Volume, host: Host) -> None:
    """Mount a host's folder onto the directory, in its mount namespace."""
    if Path(f"/proc/{host.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
        raise MigrationError(f"{host.name} has no mounts of its own")
    folder = folder_of(volume, host)
    folder.mkdir(parents=True)
    _in_mounts(host, "mount", "--bind", str(folder), str(volume.directory))


def detach(volume: Volume, host: Host) -> None:
    """Take a host's mount and files of a volume away; what is not there is no error."""
    folder = folder_of(volume, host)
    if folder.exists():
        with contextlib.suppress(MigrationError):
            _in_mounts(host, "umount", "--lazy", str(volume.directory))
        shutil.rmtree(folder, ignore_errors=True)


def _in_mounts(host: Host, *command: str) -> None:
    enter = ["nsenter", f"--mount=/proc/{host.pid}/ns/mnt", *command]
    done = subprocess.run(enter, capture_output=True, text=True, timeout=scaled(10.0))
    if done.returncode != 0:
        raise MigrationError(done.stderr.strip() or f"{command[0]} failed")


class VolumeCopy:
    """A program's volumes on their way."""

    def __init__(self, app: App, destination: Host) -> None:
        self._volumes, self._source, self._destination = tuple(app.volumes), app.host, destination
        self._pid = app.pid
        self._attached: list[Volume] = []
        self._mirrors: list[Mirror] = []

    def first_pass(self) -> None:
        """While the program runs: copy everything."""
        for volume in self._volumes:
            attach(volume, self._destination)
            self._attached.append(volume)
            here, there = folder_of(volume, self._source), folder_of(volume, self._destination)
            self._mirrors.append(Mirror(here, there, volume.directory))
            self._mirrors[-1].sync(fleeting=True)

    def final_pass(self) -> int:
        """While the program is frozen: copy what has changed; return its bytes."""
        if not self._volumes:
            return 0
        mapped = frozenset(tree.shared_maps(tree.processes(self._pid)))
        return sum(mirror.sync(mapped) for mirror in self._mirrors)

    def close(self, has_moved: bool) -> None:
        """Take the files away at the source, or, if the program stays, at the destination."""
        for volume in self._attached:
            detach(volume, self._source if has_moved else self._destination)
        self._attached.clear()


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells that a file has changed."""

    mode: int
    owner: tuple[int, int]
    size: int
    modified: int
    inode: int

    @staticmethod
    def of(status: os.stat_result) -> Stamp:
        """Take it from what lstat says."""
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        owner = (status.st_uid, status.st_gid)
        return Stamp(status.st_mode, owner, size, status.st_mtime_ns, status.st_ino)


class Mirror:
    """Makes one folder like another, over and over; `known_as` is what programs call the folder."""

    def __init__(self, source: Path, copy: Path, known_as: Path | None = None) -> None:
        self._source, self._copy, self._known_as = source, copy, known_as or source
        self._stamps: dict[str, Stamp] = {}

    def sync(self, always: frozenset[str] = frozenset(), *, fleeting: bool = False) -> int:
        """Copy what has changed and remove what is gone; return the bytes copied.

        `always` are files that change without a sign (shared mappings). `fleeting`: files may vanish meanwhile.
        """
        begin = time.time_ns()
        found: dict[str, Stamp] = {}
        links: dict[int, str] = {}
        read: dict[str, int] = {}
        copied = 0
        for name in self._names():
            try:
                status = os.lstat(self._source / name)
                stamp = Stamp.of(status)
                if self._stamps.get(name) != stamp or str(self._known_as / name) in always:
                    copied += self._bring(name, status, links)
            except FileNotFoundError:
                if not fleeting:
                    raise
                remove(self._copy / name)  # it may have been copied already, and nobody would know of it
                continue
            if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                links.setdefault(status.st_ino, name)
            found[name], read[name] = stamp, status.st_atime_ns
        for name in sorted(self._stamps.keys() - found.keys(), reverse=True):
            remove(self._copy / name)
        for name in reversed(found):  # times of directories, once nothing is put into them any more
            if stat.S_ISDIR(found[name].mode):
                os.utime(self._copy / name, ns=(read[name], found[name].modified))
        self._stamps = {
            n: s for n, s in found.items() if s.modified < begin - RACY_NS or stat.S_ISDIR(s.mode)
        }
        # What is too young to be trusted is copied again next time, but must be known to be removed.
        self._stamps |= {n: Stamp(0, (0, 0), 0, 0, 0) for n in found.keys() - self._stamps.keys()}
        return copied

    def _names(self) -> list[str]:
        """List everything below the source, directories before what is in them."""
        names = ["."]
        for folder, folders, files in os.walk(self._source):
            place = os.path.relpath(folder, self._source)
            names += [os.path.normpath(f"{place}/{name}") for name in (*folders, *files)]
        return names

    def _bring(self, name: str, status: os.stat_result, links: dict[int, str]) -> int:
        here, there = self._source / name, self._copy / name
        mode, size = status.st_mode, 0
        if not (stat.S_ISDIR(mode) and there.is_dir() and not there.is_symlink()):
            remove(there)
        if stat.S_ISDIR(mode):
            there.mkdir(exist_ok=True)
        elif stat.S_ISLNK(mode):
            there.symlink_to(here.readlink())
        elif not stat.S_ISREG(mode):
            os.mknod(there, mode, status.st_rdev)
        elif status.st_ino in links:
            os.link(self._copy / links[status.st_ino], there)
        else:
            copy_content(here, there)
            size = status.st_size
        os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            there.chmod(stat.S_IMODE(mode))
            _copy_attributes(here, there)
        os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
        return size


def copy_content(here: Path, there: Path) -> None:
    """Copy a file with its holes; it does not become one that has been read."""
    with contextlib.ExitStack() as stack:
        source = os.open(here, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME | os.O_NOFOLLOW)
        stack.callback(os.close, source)
        copy = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, copy)
        size = os.fstat(source).st_size
        os.ftruncate(copy, size)
        for begin, end in _data_of(source, size):
            os.lseek(copy, begin, os.SEEK_SET)
            while begin < end and (sent := os.sendfile(copy, source, begin, end - begin)):
                begin += sent


def _data_of(file: int, size: int) -> Iterator[tuple[int, int]]:
    """List where a file has data and no holes (lseek(2))."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
        except OSError as ex:
            if ex.errno != errno.ENXIO:  # nothing but a hole is left
                raise
            return
        end = min(os.lseek(file, begin, os.SEEK_HOLE), size)
        yield begin, end


def _copy_attributes(here: Path, there: Path) -> None:
    """Copy extended attributes (file capabilities, what an overlay hides) as far as the file systems have them."""
    try:
        names = os.listxattr(here, follow_symlinks=False)
    except OSError as ex:
        if ex.errno != errno.ENOTSUP:
            raise
        return
    for name in names:
        if not name.startswith(_OVERLAY) or name == _OPAQUE:
            with contextlib.suppress(OSError):
                os.setxattr(
                    there, name, os.getxattr(here, name, follow_symlinks=False), follow_symlinks=False
                )


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

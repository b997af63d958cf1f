"""An engine's restore that was begun before the program stands still, and waits for its image.

Most of an engine's restore is its own: making the container's place, starting shim or conmon, runc, and CRIU. Only then
CRIU opens the image, the inventory first. So the folder that the engine is given has a FIFO of that name, at which CRIU
waits; when the image is complete, the rest is put there and the FIFO gets its content. (Docker copies the folder to one
of its own first, the FIFO included. So the folder that counts is the one that the waiting process has open.)

runc reads one file earlier, descriptors.json: where the first process's standard streams lead to. It is known before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import tree
from ..criu import waits_at_gate
from ..errors import MigrationError
from ..images import INVENTORY_IMAGE
from ..slowness import scaled
from .calls import kill
from .cgroup import group_of, processes_of
from .image import DESCRIPTORS

MARKER = "p4ferry-"
ANY = f"{MARKER}*"
PATIENCE = scaled(30.0)  # seconds until the engine has come to the image
SETTLE_TIMEOUT = scaled(2.0)
_POLL = 0.002


def streams_of(pid: int) -> list[str]:
    """Return where a container's standard streams lead to, as runc writes it."""
    return [
        str(link.readlink()) if (link := Path(f"/proc/{pid}/fd/{fd}")).is_symlink() else "/dev/null"
        for fd in range(3)
    ]


class Gate:
    """The image folder of a restore to come, and CRIU at its gate."""

    def __init__(self, folder: Path, identity: str, streams: Sequence[str]) -> None:
        """Make the folder."""
        self.mark = MARKER + identity
        self.pid = 0
        self._process = self._folder = -1
        self._group: Path | None = None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (
            folder / self.mark
        ).touch()  # also makes its content unlike any other: Docker refuses to store one twice
        (folder / DESCRIPTORS).write_text(json.dumps(list(streams)))
        os.mkfifo(folder / INVENTORY_IMAGE, 0o600)

    def wait(self, is_over: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Wait until CRIU stands at the gate; say whether it does."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and not is_over():
            for pid in waiting():
                if (folder := _folder_with(pid, self.mark)) is not None:
                    self._folder = folder
                    self._process = os.pidfd_open(pid)
                    self.pid, self._group = pid, group_of(pid)
                    return True
            time.sleep(_POLL)
        return False

    @property
    def place(self) -> Path:
        """The folder behind the gate."""
        return Path(f"/proc/self/fd/{self._folder}")

    def open(self, inventory: bytes) -> None:
        """Let CRIU go on; raises MigrationError if it is gone."""
        try:
            fd = os.open(INVENTORY_IMAGE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError as ex:
            raise MigrationError("CRIU does not wait for the image any more") from ex
        with os.fdopen(fd, "wb", buffering=0) as pipe:
            pipe.write(inventory)

    def wait_for_end(self, timeout: float) -> bool:
        """Wait until CRIU has ended; say whether it has."""
        return tree.wait_for_death(self._process, timeout)

    def copy(self) -> int:
        """Return the first process of what was restored, which stands still; 0 if there is none."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while self._group is not None and time.monotonic() < deadline:
            for pid in processes_of(self._group):
                if tree.inside(pid) == 1 and is_stopped(pid):
                    return pid
            if not processes_of(self._group):
                return 0
            time.sleep(0.001)
        return 0

    def half_built(self) -> list[int]:
        """List what there is in the copy's control group."""
        return [] if self._group is None else [pid for pid in processes_of(self._group) if pid != self.pid]

    def end(self) -> None:
        """End CRIU."""
        if self._process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)

    def close(self) -> None:
        """Forget the process, and remove the folders that containerd has made."""
        remove_copies(self.mark)
        remove_dumps(self.mark)
        if self._folder >= 0:
            os.close(self._folder)
        if self._process >= 0:
            os.close(self._process)
        self._folder = self._process = -1


def remove_copies(mark: str = ANY) -> None:
    """Remove the folders that containerd has made of ours, for restores, and leaves in its temporary directory."""
    _remove_marked("ctrd-checkpoint*", mark)


def remove_dumps(mark: str = ANY) -> None:
    """Remove the folders of dumps in whose middle containerd was killed: it removes only what it has packed."""
    _remove_marked("ctd-checkpoint*", mark)


def _remove_marked(folders: str, mark: str) -> None:
    for folder in Path("/tmp").glob(folders):
        if any(folder.glob(mark)):
            shutil.rmtree(folder, ignore_errors=True)


def is_stopped(pid: int) -> bool:
    """Say whether a process was stopped by a signal, and everything that descends from it, unless it has ended."""
    try:
        states = [tree.state(one) for one in tree.processes(pid)]
    except OSError:  # one of them is gone: it was told to go on, or killed
        return False
    return states[0] == "T" and all(state in "TZ" for state in states)


def waiting() -> list[int]:
    """List the processes that wait for the other end of a FIFO."""
    found = []
    for folder in tree.PROC.iterdir():
        if folder.name.isdigit() and waits_at_gate(int(folder.name)):
            found.append(int(folder.name))
    return found


def end_waiting() -> None:
    """End every CRIU that waits at a gate of ours: the controller that would have opened it was killed."""
    for pid in waiting():
        if _at_gate(pid):
            kill(pid)


def _at_gate(pid: int) -> bool:
    for fd in _descriptors(pid):
        with contextlib.suppress(OSError):
            if any(name.startswith(MARKER) for name in os.listdir(f"/proc/{pid}/fd/{fd}")):  # noqa: PTH208
                return True
    return False


def _folder_with(pid: int, name: str) -> int | None:
    """Open the folder that a process has open and in which a file is."""
    for fd in _descriptors(pid):
        if os.path.exists(f"/proc/{pid}/fd/{fd}/{name}"):  # noqa: PTH110
            with contextlib.suppress(OSError):
                return os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def _descriptors(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:
        return []

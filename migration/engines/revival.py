"""The way back of a container whose original has ended: the engine restores it from its own checkpoint.

The container itself is still there, with its files as they were when it ended; its image is changed as little as a
restore at the same place needs: its processes are built stopped, so that the new PID can be noted before one runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import tree, uncarried
from ..arrival import end_waiting
from ..errors import MigrationError
from ..images import FILES_IMAGE, rewrite_files
from ..inet import Relocation
from ..journal import Note
from ..memberships import Places
from ..model import Host
from ..slowness import scaled
from ..streams import inner_streams
from .driver import Contained, Driver
from .gate import MARKER, remove_copies
from .image import as_stopped, replace
from .standing import Standing

END_TIMEOUT = scaled(10.0)
# Podman's "stopped" comes before: until its cleanup has run it restores nothing ("is running or paused").
OVER = ("exited", "dead")


@dataclass(frozen=True, slots=True)
class Messages:
    """What is in CRIU's images, as the CRIU in use has it (pycriu.images)."""

    core: Any
    cgroup: Any
    pstree: Any
    fdinfo: Any
    tcp_stream: Any


def revive(driver: Driver, found: Contained, host: Host, messages: Messages, folder: Path, note: Note) -> int:
    """Restore an ended container where it was; return its process, noted before it runs.

    In the migration's folder is what CRIU does not carry of it.
    """
    mark = f"{MARKER}{folder.name}-back"
    images = driver.images_of(found)
    for path in images.glob("core-*.img"):
        replace(path, as_stopped(path.read_bytes(), messages.core))
    stay = Relocation(host.address, host.address, {})
    files = rewrite_files((images / FILES_IMAGE).read_bytes(), stay, messages.fdinfo, frozenset())
    replace(images / FILES_IMAGE, files.image)
    sockets = files.before
    for name, content in inner_streams(images, sockets, host.address, messages.tcp_stream).items():
        replace(images / name, content)
    end_waiting(sockets, host)
    (images / mark).touch()  # Docker stores no content twice
    wait_until_over(driver, found)
    try:
        driver.restore(found.id)
    finally:
        remove_copies(mark)
    again = driver.find(found.id)
    if again is None or again.pid == 0:
        raise MigrationError(f"{driver.name} has restored {found.user_name}, and it ended at once")
    uncarried.read_back(folder).give(tree.processes(again.pid), Places(), folder)
    note(again.pid)
    Standing.noted(folder).let_go(again.pid)
    driver.forget_checkpoint(again)
    return again.pid


def wait_until_over(driver: Driver, found: Contained) -> None:
    """Wait until the engine knows that a container has ended, and has taken its place apart."""
    deadline = time.monotonic() + END_TIMEOUT
    while (now := driver.find(found.id)) is not None and now.status not in OVER:
        if time.monotonic() > deadline:
            raise MigrationError(f"{driver.name} does not notice that {found.user_name} has ended")
        time.sleep(0.02)
    if now is None:
        raise MigrationError(f"{driver.name} has removed {found.user_name}")

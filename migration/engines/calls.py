"""An engine at work: calls that take their time, and CRIU under them.

An engine's checkpoint is not over when CRIU has written the image: Docker packs it, stores it, and unpacks it
elsewhere. Nothing of that changes it. So the image is taken from the folder that CRIU writes it to, when CRIU has
ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .. import tree
from ..deadline import Deadline
from ..freezer import end_silently
from ..images import INVENTORY_IMAGE
from ..slowness import scaled
from .driver import EngineSilent
from .image import DESCRIPTORS, copy

END_TIMEOUT = scaled(10.0)
_POLL = 0.001


class Call:
    """A call of an engine's that takes its time, in a thread of its own."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as ex:
            self._error = ex

    def is_over(self) -> bool:
        """Say whether it has returned or failed."""
        return not self._thread.is_alive()

    def wait(self, timeout: float) -> None:
        """Wait for its end; raises what it raised, or EngineSilent if it is late."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise EngineSilent("the engine has not answered in time")
        if self._error is not None:
            raise self._error


def kill(pid: int) -> None:
    """Kill a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def see_untraced(pid: int) -> None:
    """Wait until no CRIU has a process in its hands; one that does not let go is ended."""
    deadline = time.monotonic() + END_TIMEOUT
    while (tracer := tree.tracer(pid)) != 0:
        if time.monotonic() > deadline:
            kill(tracer)
            deadline = time.monotonic() + 1.0
        time.sleep(0.005)


def end_copy(pid: int) -> None:
    """Kill a copy without a word to its peers, and see it gone."""
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            end_silently([pid], kill)
            tree.wait_for_death(process, END_TIMEOUT)
        finally:
            os.close(process)


def take(pid: int, is_over: Callable[[], bool], folder: Path, mark: str, deadline: Deadline) -> bool:
    """Wait until the CRIU that dumps a process has ended, and link its image into a folder; say whether it is there.

    It is not if the call was over first, or CRIU has failed. The folder that CRIU writes to gets a file called `mark`:
    an engine that is killed leaves it, with the program's memory in it.
    """
    while (tracer := tree.tracer(pid)) == 0:
        if is_over():
            return False
        deadline.check()
        time.sleep(_POLL)
    try:
        criu = os.pidfd_open(tracer)
    except ProcessLookupError:
        return False
    written = _image_folder(tracer)
    try:
        if written is None:
            return False
        os.close(os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=written))
        if not tree.wait_for_death(criu, deadline.left()):
            return False
        source = Path(f"/proc/self/fd/{written}")
        if not (source / INVENTORY_IMAGE).exists():
            return False
        copy(source, folder)
        return True
    finally:
        os.close(criu)
        if written is not None:
            os.close(written)


def _image_folder(criu: int) -> int | None:
    """Open the folder that a CRIU writes an image to: runc has put a file there before it was started."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{criu}/fd"):  # noqa: PTH208
            if os.path.exists(f"/proc/{criu}/fd/{fd}/{DESCRIPTORS}"):  # noqa: PTH110
                return os.open(f"/proc/{criu}/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None

"""What nobody has read of a FIFO is there once after a move, whichever FIFO the copy has."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, says, wait_until
from transferring import managed

from migration import messages
from migration.fifos import emptied
from migration.images import BadImage, join
from migration.report import Outcome
from migration.transfer.modes import Mode, Wish

HEADER = b"12345678"

# Leaves something in two FIFOs, one of which has no name any more; reads them when it is asked to.
PROGRAM = """
import fcntl, os, signal, sys
kept, gone = (os.open(path, os.O_RDWR | os.O_NONBLOCK) for path in sys.argv[1:3])
os.unlink(sys.argv[2])
fcntl.fcntl(kept, 1031, 1 << 14)
os.write(kept, b"kept " * int(sys.argv[3]))
os.write(gone, b"gone")
if len(sys.argv) > 4:
    fcntl.flock(lock := os.open(sys.argv[4], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
for fd in kept, gone:
    print("read", os.read(fd, 1 << 20).decode().strip(), fcntl.fcntl(fd, 1032), flush=True)
print("done", flush=True)
signal.pause()
"""


def entry(pipe_id: int, content: bytes) -> bytes:
    """Return what a fifo-data.img has of a FIFO."""
    made = messages.load(messages.PIPE_DATA).pipe_data_entry(pipe_id=pipe_id, bytes=len(content), size=65536)
    return join(b"", [made.SerializeToString()]) + content


def test_only_some_are_emptied() -> None:
    """The others' content stays behind their entries."""
    module = messages.load(messages.PIPE_DATA)
    image = HEADER + entry(1, b"one") + entry(2, b"") + entry(3, b"three")
    assert emptied(image, set(), module) == image
    assert emptied(image, {1, 2}, module) == HEADER + entry(1, b"") + entry(2, b"") + entry(3, b"three")
    for broken in (b"123", image[:-1], HEADER + b"\1", HEADER + struct.pack("=I", 9)):
        with pytest.raises(BadImage):
            emptied(broken, {1}, module)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with managed(tmp_path_factory.mktemp("fifos")) as built:
        yield built


@pytest.mark.net
@pytest.mark.parametrize(
    ("mode", "words", "lock"),
    [("stop", 3, False), ("lazy", 3, False), ("stop", 3276, False), ("stop", 3, True)],
)
def test_content_is_there_once(scene: Stage, tmp_path: Path, mode: str, words: int, lock: bool) -> None:
    """A little of it, a FIFO full of it, and with a file lock, for which the original ends before the copy is built."""
    paths = [str(tmp_path / name) for name in ("kept", "gone")]
    for path in paths:
        os.mkfifo(path)
    log = tmp_path / "log"
    arguments = [*paths, str(words), *([str(tmp_path / "lock")] if lock else [])]
    app = scene.runtime.launch("fifos", scene.hosts["B"], [PYTHON, "-c", PROGRAM, *arguments], log)
    wait_until(lambda: says(log, "ready"), "its deed")
    for host in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[host], wish=Wish(Mode(mode)))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    os.kill(app.pid, signal.SIGUSR1)
    wait_until(lambda: says(log, "done"), "its reading")
    assert log.read_text().splitlines()[1:3] == [
        f"read {' '.join(['kept'] * words)} 16384",
        "read gone 65536",
    ]
    scene.runtime.terminate(app)

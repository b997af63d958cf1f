"""What of a run's files are our own logs, and keeping those of the last run after its folder is gone.

Only what we write ourselves is here: logs of switches, controller, keeper, runc and CRIU, journals and traces of
migrations, the report. Never what programs print (*.out), their files (volumes, writable layers), their command lines
(state.json), or an image of their memory: files are named one by one or by a pattern that only we write to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from topo import paths

REPORT = "report.json"
TRACES = "traces"
CHECKPOINTS = "images"
"""The part of a run's folder in memory that has its checkpoint images; programs write into other parts."""
KEPT_REPORTS = 100  # of a run's last migrations
KEPT_TRACES = 20
TAIL = 1 << 20  # bytes of each log
# In a migration's folder of images, all beginning with what wrote them: migration/criu.py, migration/transfer/.
_CRIU_LOGS = ("dump.log", "restore.log", "pre-dump.log", "page-server.log", "lazy-pages.log")
_ALONE = (REPORT, "controller.log", "keeper.log", "switches.json")


@dataclass(frozen=True)
class RunLog:
    """One of our own files: where it is, and what it is called in a copy."""

    path: Path
    name: str

    def tail(self, limit: int = TAIL) -> bytes:
        """Read its end; b"" if it is gone."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
            size = os.fstat(fd).st_size
            if size <= limit:
                return file.read(limit)
            file.seek(size - limit)
            return file.read(limit).partition(b"\n")[2]


def logs_of(run: Path, images: Path | None = None) -> Iterator[RunLog]:
    """List a run's own logs, the most telling first; `images` is its folder of checkpoint images."""
    alone = [run / name for name in _ALONE]
    switches = sorted(p for p in _glob(run, "*.log") if p not in alone)
    for path in (*alone, *switches, *_glob(run, "journals/*.jsonl")):
        yield from _file(path, run)
    if images is not None:
        for path in _glob(images / CHECKPOINTS, "**/*.log"):
            if path.name in _CRIU_LOGS:
                yield from _file(path, images / CHECKPOINTS, "criu/")
    runc = [path for path in _glob(run, "containers/*/*/runc.log") if path.parent.parent.name != "volumes"]
    yield from (log for path in runc for log in _file(path, run))
    newest = sorted(_glob(run, f"{TRACES}/*.log"), key=_changed, reverse=True)[:KEPT_TRACES]
    yield from (log for path in newest for log in _file(path, run))


def keep(run: Path, images: Path, into: Path = paths.STATE / "last-run") -> None:
    """Copy a run's own logs before its folder is removed, in place of those of the run before.

    A bug report is written after the run. What cannot be copied is no reason for anything to fail.
    """
    logs = [(log, log.tail()) for log in logs_of(run, images)]
    if not any(content for _, content in logs) or not into.parent.is_dir():
        return
    with contextlib.suppress(OSError):
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(mode=0o700)
        owner = into.parent.stat()
        made = {into}
        for log, content in logs:
            path = into / log.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            made |= {path, path.parent}
        for path in made:  # as all of the checkout, they belong to whoever set it up
            os.chown(path, owner.st_uid, owner.st_gid)


def _file(path: Path, root: Path, prefix: str = "") -> Iterator[RunLog]:
    if path.is_file() and not path.is_symlink():
        yield RunLog(path, f"{prefix}{path.relative_to(root)}")


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:  # not ours to read
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

"""What one run of a testbed owns, written down so that a later one can clean up after a crash.

A run is a folder below /run/p4ferry, named by the process's id and start time (together they are never used twice
until reboot). While the run lives the folder holds its logs, journals and switch configuration; `run.json` in it lists
the links in the root namespace. Its processes are recognised by the environment variable that all of them inherit,
and keep through a checkpoint: P4FERRY_RUN=<the run's name>. `clean_up` ends exactly those and removes exactly that.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from topo import paths
from topo.errors import AlreadyRunning, TestbedError
from topo.waiting import wait_until

MARKER = "P4FERRY_RUN"
_KILL_TIMEOUT = 5.0  # seconds until processes that were killed must be gone


@dataclass(frozen=True)
class Left:
    """What cleaning found of a dead run, and removed."""

    run: str
    processes: int
    links: tuple[str, ...]


class Run:
    """This process's run; a context manager that forgets it at the end."""

    def __init__(self, root: Path = paths.RUNS, images: Path = paths.IMAGES) -> None:
        """Claim the machine's switch names and ports; raises AlreadyRunning."""
        self.name = _name(os.getpid())
        for other in _runs(root):
            if other.name != self.name and _alive(other.name):
                pid = other.name.split("-")[0]
                raise AlreadyRunning(f"another testbed is running (process {pid}): leave it first")
        self.folder = root / self.name
        self.images = images / self.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.images.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as ex:
            raise TestbedError(f"cannot make {ex.filename}: {ex.strerror}") from ex
        os.environ[MARKER] = self.name
        self.record_links([])

    def record_links(self, links: list[str]) -> None:
        """Write down the root namespace's links that this run is about to make."""
        partial = self.folder / "run.json.partial"
        partial.write_text(json.dumps({"links": links}))
        partial.rename(self.folder / "run.json")

    def close(self) -> None:
        """Remove the run's folders."""
        os.environ.pop(MARKER, None)
        shutil.rmtree(self.images, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def clean_up(root: Path = paths.RUNS, images: Path = paths.IMAGES) -> list[Left]:
    """Remove everything that runs which ended without cleaning have left; living runs are not touched."""
    left = []
    for run in _runs(root):
        if _alive(run.name):
            continue
        processes = _end_processes(run.name)
        links = tuple(_delete_links(_recorded_links(run)))
        shutil.rmtree(images / run.name, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        left.append(Left(run.name, processes, links))
    return left


def processes_of(run: str) -> list[int]:
    """List the living processes that belong to a run, this one excepted."""
    marker = f"{MARKER}={run}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # gone, or a kernel thread
                continue
            if marker in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def _runs(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def _name(pid: int) -> str:
    return f"{pid}-{_start_time(pid)}"


def _start_time(pid: int) -> str:
    """Return a process's start time in clock ticks since boot (proc(5), field 22), or "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _alive(name: str) -> bool:
    pid, _, started = name.partition("-")
    return pid.isdigit() and _start_time(int(pid)) == started != ""


def _end_processes(run: str) -> int:
    pids = processes_of(run)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not processes_of(run), _KILL_TIMEOUT)
    return len(pids)


def _recorded_links(run: Path) -> list[str]:
    try:
        links = json.loads((run / "run.json").read_text())["links"]
    except (OSError, ValueError, KeyError):
        return []
    return [str(link) for link in links]


def _delete_links(names: list[str]) -> Iterator[str]:
    """Delete links of the root namespace; yields those that were there."""
    with IPRoute() as ip:
        for name in names:
            for index in ip.link_lookup(ifname=name):
                try:
                    ip.link("del", index=index)
                except NetlinkError:  # its peer went, and it with it
                    continue
                yield name

"""What one run of a testbed owns, written down so that a later one can clean up after a crash.

A run is a folder below /run/p4ferry, named by the process's id and start time (together they are never used twice
until reboot). While the run lives the folder holds its logs, journals and switch configuration; `run.json` in it names
the process that owns the run and lists the links in the root namespace. The run's processes are recognised by the
environment variable that all of them inherit, and keep through a checkpoint: P4FERRY_RUN=<the run's name>.

A run whose owner is dead is either taken over by another process (`Run.take_over`), which becomes its owner, or
removed: `clean_up` ends exactly its processes and removes exactly what it wrote down.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from migration import ownaddress
from migration.transfer.pipelimit import put_back
from topo import fast_journals, paths, run_logs
from topo.errors import AlreadyRunning, TestbedError
from topo.processes import ProcessName
from topo.waiting import wait_until

MARKER = "P4FERRY_RUN"
JOURNALS = "journals"
SCRATCH = "scratch"
_KILL_TIMEOUT = 5.0  # seconds until processes that were killed must be gone


@dataclass(frozen=True)
class Left:
    """What cleaning found of a dead run, and removed."""

    run: str
    processes: int
    links: tuple[str, ...]
    containers: int = 0
    silent_engines: tuple[str, ...] = ()
    """Container engines that may have containers of the run and did not answer."""


class Run:
    """This process's run; a context manager that forgets it at the end."""

    def __init__(self, root: Path = paths.RUNS, images: Path = paths.IMAGES) -> None:
        """Claim the machine's switch names and ports; raises AlreadyRunning."""
        self._open(root, images, str(ProcessName.of(os.getpid())))
        self.record_links([])

    @classmethod
    def take_over(cls, folder: Path, images: Path = paths.IMAGES) -> Run:
        """Become the owner of a dead run; raises AlreadyRunning."""
        self = cls.__new__(cls)
        self._open(folder.parent, images, folder.name)
        self.was_taken_over = True
        self.record_links(_recorded(folder)["links"])
        return self

    def _open(self, root: Path, images: Path, name: str) -> None:
        self.name = name
        self.was_taken_over = False
        for other in _runs(root):
            owner = _owner(other)
            if owner.is_alive and owner.pid != os.getpid():
                raise AlreadyRunning(f"another testbed is running (process {owner.pid}): leave it first")
        self.folder = root / self.name
        self.images = images / self.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.images.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.scratch.mkdir(exist_ok=True)
            fast_journals.prepare(self.folder / JOURNALS)
        except OSError as ex:
            raise TestbedError(f"cannot make {ex.filename}: {ex.strerror}") from ex
        os.environ[MARKER] = self.name

    @property
    def scratch(self) -> Path:
        """A folder in memory for whatever need not outlive the run."""
        return self.images / SCRATCH

    def record_links(self, links: list[str]) -> None:
        """Write down the root namespace's links that this run is about to make, and whose run it is."""
        self._record(str(ProcessName.of(os.getpid())), links)

    def _record(self, owner: str, links: list[str]) -> None:
        partial = self.folder / "run.json.partial"
        partial.write_text(json.dumps({"owner": owner, "links": links}))
        partial.rename(self.folder / "run.json")

    def leave(self) -> None:
        """Leave the run as it is, without an owner: it can be taken over or cleaned up."""
        os.environ.pop(MARKER, None)
        self._record("", _recorded(self.folder)["links"])

    def close(self) -> None:
        """Remove the run's folders."""
        os.environ.pop(MARKER, None)
        if self.was_taken_over:
            # What the process before us had started besides (a measuring client) has nobody else to end it.
            _end_processes(self.name)
        _remove_cgroups(self.name)
        run_logs.keep(self.folder, self.images)
        shutil.rmtree(self.images, ignore_errors=True)
        _remove_folder(self.folder)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def clean_up(root: Path = paths.RUNS, images: Path = paths.IMAGES) -> list[Left]:
    """Remove everything that runs which ended without cleaning have left; living runs are not touched."""
    from topo.containers.leftovers import ENGINES, remove_containers

    left = []
    for run in _runs(root):
        if _owner(run).is_alive:
            continue
        containers, silent = remove_containers(run)
        processes = _end_processes(run.name)
        _remove_cgroups(run.name)
        links = tuple(_delete_links(_recorded(run)["links"]))
        run_logs.keep(run, images / run.name)
        shutil.rmtree(images / run.name, ignore_errors=True)
        _remove_folder(run, ENGINES if silent else "")  # the next cleaning asks silent engines again
        left.append(Left(run.name, processes, links, containers, tuple(silent)))
    if left:
        put_back()
    return left


def dead_runs(root: Path = paths.RUNS) -> list[Path]:
    """List the folders of runs whose owner has ended without cleaning, oldest first."""
    found = [run for run in _runs(root) if not _owner(run).is_alive]
    return sorted(found, key=lambda run: run.stat().st_mtime)


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


def _owner(run: Path) -> ProcessName:
    """Return the process that owns a run: the one that it is named by, unless another took it over."""
    return ProcessName.parse(_recorded(run)["owner"])


def _remove_folder(run: Path, keep: str = "") -> None:
    """Remove a run's folder, or all that is in it but one entry."""
    fast_journals.remove(run / JOURNALS)
    if not keep:
        shutil.rmtree(run, ignore_errors=True)
        return
    for entry in run.iterdir():
        if entry.name == keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _end_processes(run: str) -> int:
    pids = processes_of(run)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: not processes_of(run), _KILL_TIMEOUT)
    return len(pids)


def _remove_cgroups(run: str, root: Path = Path("/sys/fs/cgroup")) -> None:
    """Remove the control groups of a run's containers, which have ended, in every hierarchy.

    A process leaves its group a little later than its memory, by which `processes_of` knows it; until then the group
    is busy.
    """

    for group in (g for p in (f"p4ferry-{run}-*", f"*/p4ferry-{run}-*") for g in root.glob(p)):
        ownaddress.detach(group)

    def are_gone() -> bool:
        groups = [g for p in (f"p4ferry-{run}-*", f"*/p4ferry-{run}-*") for g in root.glob(p)]
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        return not any(group.exists() for group in groups)

    wait_until(are_gone, _KILL_TIMEOUT)


def _recorded(run: Path) -> dict[str, Any]:
    """Return a run's owner and its links, as far as it has written them down."""
    try:
        data = json.loads((run / "run.json").read_text())
        return {"owner": str(data.get("owner", run.name)), "links": [str(link) for link in data["links"]]}
    except (OSError, ValueError, KeyError):
        return {"owner": run.name, "links": []}


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

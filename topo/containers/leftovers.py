"""Whose containers are whose: every container carries the name of the run that made it, and is found again by that.

A run's folder has a file for each engine that the run has used (`engines/docker`, holding the engine's address),
written before the first container is made. Cleaning up after a dead run asks those engines, and no others, for the
run's containers. A network that is no part of a testbed takes a run of its own for as long as it has containers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mininet.log import error

from topo import paths
from topo.containers.engine import Engine, connect
from topo.errors import TestbedError
from topo.runs import MARKER, Run, clean_up

ENGINES = "engines"


class Membership:
    """A share in this process's run; one that is nobody's ends with the last share."""

    _own: Run | None = None
    _shares = 0

    def __init__(self) -> None:
        """Join the run that there is, or begin one; raises AlreadyRunning."""
        if MARKER not in os.environ:
            clean_up()
            Membership._own = Run()
        Membership._shares += 1
        self.run = os.environ[MARKER]
        self._is_over = False

    def uses(self, engine: Engine) -> None:
        """Write down that the run's containers are an engine's."""
        folder = paths.RUNS / self.run / ENGINES
        folder.mkdir(parents=True, exist_ok=True)
        (folder / engine.name).write_text(engine.address)

    def end(self, remove: Callable[[str], None], id: str) -> None:
        """Remove a container or a pod, if it was made, and give the share back.

        If the engine cannot remove it the share is kept: the run goes on to own it, and the next one cleans up.
        """
        try:
            if id:
                remove(id)
        except TestbedError as ex:
            error(f"*** {ex}\n")
        else:
            self.leave()

    def leave(self) -> None:
        """Give the share back; once."""
        if self._is_over:
            return
        self._is_over = True
        Membership._shares -= 1
        if Membership._own is not None and Membership._shares == 0:
            run, Membership._own = Membership._own, None
            remove_containers(run.folder)  # what was being made when Ctrl-C came
            run.close()


def remove_containers(run: Path) -> tuple[int, list[str]]:
    """Remove the containers of the run in a folder; returns how many there were, and which engines did not answer."""
    removed, silent = 0, []
    for file in _used(run):
        name, address = file.name, file.read_text()
        try:
            removed += connect(name, address).remove_run(run.name)
        except TestbedError:
            if _may_come_back(address):
                silent.append(name)
    return removed, silent


def _used(run: Path) -> list[Path]:
    folder = run / ENGINES
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _may_come_back(address: str) -> bool:
    """Say whether an engine that does not answer may have containers: not if its socket is gone, and it with that."""
    kind, _, path = address.partition("://")
    return kind != "unix" or Path(path).exists()

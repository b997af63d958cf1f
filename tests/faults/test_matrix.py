"""Every fault at every point of a migration: one instance runs at the end, its connection lives, the report is true.

The reduced matrix by default; `make fault-matrix` plays all of it and prints a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from migration.recovery import Verdict
from tests.faults import cells
from tests.faults.cells import Cell, cells_of_crews, chosen_cells, chosen_cells_of_crews, every_cell
from tests.faults.conftest import FULL
from tests.faults.results import RESULTS
from tests.faults.scene import Scene, check_instance, check_nothing_left
from tests.topo.crash import doomed
from topo import paths
from topo.runs import clean_up, processes_of
from topo.testbed import Testbed

pytestmark = pytest.mark.net
CELLS = [*every_cell(), *cells_of_crews()] if FULL else [*chosen_cells(), *chosen_cells_of_crews()]


class Stage:
    """The scene that cells share, built when it is needed, and anew after a cell that failed."""

    def __init__(self) -> None:
        self._scene: Scene | None = None
        self._crew = ""

    def scene(self, crew: str) -> Scene:
        if self._scene is not None and crew != self._crew:
            self.close()
        if self._scene is None:
            self._scene, self._crew = Scene(crew).__enter__(), crew
        return self._scene

    def close(self) -> None:
        scene, self._scene = self._scene, None
        if scene is not None:
            scene.__exit__()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """Give the scene, and see at the end that the machine is as before."""
    clean_up()
    made = Stage()
    yield made
    made.close()
    assert not any(paths.RUNS.iterdir())
    assert not any(paths.IMAGES.iterdir())


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault(cell: Cell, stage: Stage) -> None:
    """Play a cell."""
    RESULTS[cell] = None
    if cell.fault == cells.CONTROLLER:
        stage.close()
        RESULTS[cell] = kill_controller(cell)
        return
    try:
        RESULTS[cell] = stage.scene(cell.crew).play(cell)
    except BaseException:
        stage.close()
        raise


def kill_controller(cell: Cell) -> tuple[str, str]:
    """Let a testbed's process kill itself at a cell's point, take the testbed over, and migrate once more."""
    with doomed(cell.step, cell.when) as (testbed, caller):
        testbed.migrate()
        with Testbed.recover() as net:
            (found,) = net.recovered
            is_finished = found.verdict is Verdict.FINISHED
            assert found.verdict is not Verdict.LOST, found
            assert is_finished == (cell.at > Cell(cell.fault, "release", "before").at), found
            assert found.reason is None, found
            check_instance(net, "h3" if is_finished else "h2")
            caller.call()
            check_nothing_left(net)
            assert net.migrate("echo", "h2" if is_finished else "h3").outcome == "completed"
            caller.call()
            name = net.folder.name
    assert processes_of(name) == []
    return cells.COMPLETED if is_finished else cells.ROLLED_BACK, f"process {testbed.process.pid}"


@pytest.mark.parametrize(
    ("method", "verdict"),
    [("end_source", Verdict.REVIVED), ("resume", Verdict.FINISHED)],
)
def test_the_controller_is_killed_within_the_release(method: str, verdict: Verdict, stage: Stage) -> None:
    """After it has ended the original, or let the copy go: the connection lives on where the program does."""
    stage.close()
    with doomed(f"passage.{method}", "after") as (testbed, caller):
        testbed.migrate()
        with Testbed.recover() as net:
            (found,) = net.recovered
            assert (found.verdict, found.reason) == (verdict, None)
            check_instance(net, "h3" if verdict is Verdict.FINISHED else "h2")
            caller.call()
            check_nothing_left(net)


def test_the_matrix_is_whole() -> None:
    """Every step and every fault, before and after: at least a hundred cells that have something to hit."""
    every = every_cell()
    points = {(c.fault, c.step, c.when) for c in every if c.when != cells.DURING}
    assert len(points) == len(cells.FAULTS) * len(cells.STEPS) * 2 >= 100
    assert set(chosen_cells()) < set(every)
    assert os.environ.get("P4FERRY_FAULT_MATRIX") in (None, "full")

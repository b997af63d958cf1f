"""System V IPC: each program and each group has a namespace of its own, which goes along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, wait_for_rounds
from transferring import managed

from migration import tree
from migration.report import Outcome
from migration.transfer.modes import Mode, Via, Wish

pytestmark = pytest.mark.net

PROGRAM = str(Path(__file__).parent / "programs" / "sysv.py")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with managed(tmp_path_factory.mktemp("ipc")) as built:
        yield built


@pytest.mark.parametrize("mode", [Mode.STOP, Mode.LAZY])
@pytest.mark.parametrize("via", [Via.SHARED, Via.NETWORK])
def test_all_of_it_goes_along(scene: Stage, mode: Mode, via: Via) -> None:
    """Ids, keys, rights, values, messages in their order; two programs may use the same key."""
    names = [f"{mode}-{via}-{number}" for number in range(2)]
    apps = [
        scene.runtime.launch(name, scene.hosts["B"], [PYTHON, PROGRAM], scene.folder / f"{name}.log")
        for name in names
    ]
    for app in apps:
        wait_for_rounds(scene, app)
    assert len({tree.namespace(pid, "ipc") for pid in (apps[0].pid, apps[1].pid, "self")}) == 3
    for number in range(4):
        for app in apps:
            to = scene.hosts["CB"[number % 2]]
            report = scene.migrator().migrate(app, to, wish=Wish(mode, via))
            assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
            wait_for_rounds(scene, app)
    for app in apps:
        scene.runtime.terminate(app)


def test_what_has_none_costs_nothing(scene: Stage) -> None:
    """CRIU works in the program's own namespace, which is empty, and carries none."""
    log = scene.folder / "none.log"
    command = [PYTHON, "-c", "import time\nwhile True: print('ok', flush=True); time.sleep(0.01)"]
    app = scene.runtime.launch("none", scene.hosts["B"], command, log)
    before = tree.namespace(app.pid, "ipc")
    images: list[str] = []

    def look(event: object) -> None:
        images.extend(path.name for path in scene.folder.rglob("ipcns-*.img"))

    report = scene.migrator().migrate(app, scene.hosts["C"], look)
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert images == []
    assert tree.namespace(app.pid, "ipc") not in (before, tree.namespace("self", "ipc"))
    scene.runtime.terminate(app)

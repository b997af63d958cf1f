"""What a single program may consist of: real programs that check themselves move there and back.

Each is a script below programs/ that prints one line a round and stops at the first thing that is not as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_for_rounds

from migration.errors import MigrationError
from migration.model import App
from migration.report import Outcome

pytestmark = pytest.mark.net

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("programs")) as built:
        yield built


def start(scene: Stage, name: str, host: str = "B", *arguments: str) -> App:
    """Start one of the programs in a folder of its own, and wait until it has checked itself a few times."""
    folder = scene.folder / name
    folder.mkdir(exist_ok=True)
    command = [PYTHON, str(PROGRAMS / f"{name}.py"), *(arguments or [str(folder)])]
    app = scene.runtime.launch(name, scene.hosts[host], command, scene.folder / f"{name}.log")
    wait_for_rounds(scene, app)
    return app


@pytest.mark.parametrize("name", ["tree", "threads", "files", "events", "pipes"])
def test_program_moves_there_and_back(scene: Stage, name: str) -> None:
    """Whatever the program consists of is as it was."""
    app = start(scene, name)
    for host in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        wait_for_rounds(scene, app)
    scene.runtime.terminate(app)


@pytest.mark.parametrize("where", [("restore", "before"), ("restore", "after"), ("switch over", "after")])
def test_file_locks_survive_a_way_back(scene: Stage, where: tuple[str, str]) -> None:
    """The copy can have a lock only when the original is gone: the way back is from the image then."""

    def fail(step: str, when: str) -> None:
        if (step, when) == where:
            raise MigrationError("injected")

    shutil.rmtree(scene.folder / "files", ignore_errors=True)
    (scene.folder / "files.log").unlink(missing_ok=True)
    app = start(scene, "files")
    report = scene.migrator(fault=fail).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected"), report.reason
    assert app.host.name == "B"
    wait_for_rounds(scene, app)
    scene.runtime.terminate(app)
    assert not [path for path in (scene.folder / "files").iterdir() if ".cr." in path.name]

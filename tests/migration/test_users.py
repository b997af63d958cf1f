"""Programs of any user, in any working directory, move there and back, and see no difference."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_for_rounds

from migration import preload, tree
from migration.errors import MigrationError
from migration.groups import Party
from migration.model import App
from migration.report import Outcome

NOBODY = 65534
PROGRAM = Path(__file__).parent / "programs" / "users.py"
DIRECTORIES = ("own", "shared", "foreign", "deleted", "kernel", "root")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("users")) as built:
        yield built


def make_directory(folder: Path, kind: str, user: int) -> Path:
    """Make a working directory of some kind for a user."""
    if kind in ("kernel", "root"):
        return Path("/sys/kernel" if kind == "kernel" else "/")
    folder.chmod(0o755)
    path = folder / kind
    path.mkdir()
    path.chmod({"own": 0o700, "shared": 0o1777, "foreign": 0o700, "deleted": 0o755}[kind])
    if kind == "own":
        os.chown(path, user, user)
    return path


def start(scene: Stage, folder: Path, kind: str, who: str, user: int) -> App:
    """Start a program of a user."""
    folder.mkdir(exist_ok=True)
    name = f"{kind}-{who}-{user}"
    directory = make_directory(folder, kind, user)
    command = [PYTHON, str(PROGRAM), who, str(user), str(directory)]
    log = scene.folder / f"{name}.log"
    log.unlink(missing_ok=True)  # of another test's program of the same kind: rounds are counted from 1
    app = scene.runtime.launch(name, scene.hosts["B"], command, log)
    wait_for_rounds(scene, app)
    return app


@pytest.mark.net
@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize("who", ["program", "worker"])
@pytest.mark.parametrize("kind", DIRECTORIES)
def test_program_moves_there_and_back(scene: Stage, tmp_path: Path, kind: str, who: str, user: int) -> None:
    """User, groups, limits, mask and working directory are as they were, and nothing is left in the directory."""
    tmp_path.chmod(0o755)
    app = start(scene, tmp_path / "work", kind, who, user)
    for host in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        wait_for_rounds(scene, app)
    scene.runtime.terminate(app)
    left = tmp_path / "work" / kind
    assert not left.exists() or list(left.iterdir()) == []


@pytest.mark.net
@pytest.mark.parametrize(
    "where", [("restore", "before"), ("switch over", "before"), ("switch over", "after")]
)
def test_program_sees_the_machines_proc_after_a_way_back(
    scene: Stage, tmp_path: Path, where: tuple[str, str]
) -> None:
    """What is laid over /proc for the dump is gone when the program runs on, and the next move succeeds."""

    def fail(step: str, when: str) -> None:
        if (step, when) == where:
            raise MigrationError("injected")

    app = start(scene, tmp_path / "work", "shared", "program", NOBODY)
    machine = Path("/proc").stat().st_dev
    report = scene.migrator(fault=fail).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected")
    assert Path(f"/proc/{app.pid}/root/proc").stat().st_dev == machine
    wait_for_rounds(scene, app)
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome == Outcome.COMPLETED
    assert Path(f"/proc/{app.pid}/root/proc").stat().st_dev == machine
    wait_for_rounds(scene, app)
    scene.runtime.terminate(app)


@pytest.mark.net
def test_ten_programs_move_at_once_from_one_directory(scene: Stage, tmp_path: Path) -> None:
    """No dump needs anything in the working directory, so none is in another's way."""
    (tmp_path / "work").mkdir()
    directory = make_directory(tmp_path / "work", "shared", NOBODY)
    apps: list[App] = []
    for number in range(10):
        command = [PYTHON, str(PROGRAM), "program", str(NOBODY), str(directory)]
        log = scene.folder / f"many{number}.log"
        apps.append(scene.runtime.launch(f"many{number}", scene.hosts["B"], command, log))
    for app in apps:
        wait_for_rounds(scene, app)
    report = scene.migrator().migrate(Party(apps), scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    for app in apps:
        wait_for_rounds(scene, app)
        scene.runtime.terminate(app)


def read_limits(pid: int) -> list[tuple[int, int]]:
    """Ask as CRIU does, by prlimit(2) in a process that has loaded the library."""
    script = (
        "import resource, sys; print([resource.prlimit(int(sys.argv[1]), number) for number in range(16)])"
    )
    command = [PYTHON, "-c", script, str(pid)]
    environment = {**os.environ, **preload.environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [(soft, hard) for soft, hard in ast.literal_eval(done.stdout)]


@pytest.mark.parametrize("user", [0, NOBODY])
def test_limits_are_read_of_every_user(user: int) -> None:
    """They are those that the process itself sees, "unlimited" among them."""
    expected = [resource.getrlimit(number) for number in range(16)]
    expected[resource.RLIMIT_NOFILE] = (77, 99)
    expected[resource.RLIMIT_CORE] = (0, expected[resource.RLIMIT_CORE][1])
    ready_r, ready_w = os.pipe()
    end_r, end_w = os.pipe()
    if (child := os.fork()) == 0:
        for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
            resource.setrlimit(number, expected[number])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        os.write(ready_w, b".")
        os.close(end_w)
        os.read(end_r, 1)
        os._exit(0)
    try:
        os.read(ready_r, 1)
        assert read_limits(child) == expected
    finally:
        os.close(end_w)
        os.waitpid(child, 0)
        for fd in (ready_r, ready_w, end_r):
            os.close(fd)


@pytest.mark.parametrize(("user", "group"), [(0, 0), (NOBODY, 0), (0, NOBODY), (NOBODY, NOBODY)])
def test_who_is_root(user: int, group: int) -> None:
    """Limits of what is not root's in every ID need a capability that root may lack."""
    process = subprocess.Popen(["sleep", "60"], user=user, group=group, extra_groups=[])
    try:
        assert tree.is_of_root(process.pid) == (user == group == 0)
    finally:
        process.kill()
        process.wait()
    assert tree.is_of_root(process.pid)


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, which is the reason of the refusal."""
    monkeypatch.setattr(preload, "STORE", tmp_path / "lib")
    monkeypatch.setattr(preload, "COMPILERS", ("no-such-compiler",))
    preload.library.cache_clear()
    try:
        with pytest.raises(preload.CannotMake, match="no-such-compiler is installed"):
            preload.library()
        assert list((tmp_path / "lib").iterdir()) == []
    finally:
        preload.library.cache_clear()


def test_a_compiler_that_takes_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said to be missing."""
    slow = tmp_path / "slow-compiler"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(preload, "STORE", tmp_path / "lib")
    monkeypatch.setattr(preload, "COMPILERS", (str(slow),))
    monkeypatch.setattr(preload, "_COMPILE_TIMEOUT", 0.5)
    preload.library.cache_clear()
    try:
        with pytest.raises(preload.CannotMake, match="slow-compiler was not through after"):
            preload.library()
    finally:
        preload.library.cache_clear()

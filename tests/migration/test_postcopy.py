"""Post-copy: the memory that arrives is that of the frozen original, and no program is ended by it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, says, wait_until
from transferring import managed

from migration import tree
from migration.model import App
from migration.report import Outcome
from migration.transfer.modes import Mode, Via, Wish

pytestmark = pytest.mark.net

PROGRAMS = Path(__file__).parent / "programs"
WAYS = [(mode, via) for mode in (Mode.STOP, Mode.LAZY) for via in Via]
RSEQ = 32  # bytes of struct rseq


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        yield built


def start(scene: Stage, name: str, *arguments: object, word: str = "ready") -> App:
    """Start one of our programs on B, and wait until it says a word."""
    log = scene.folder / f"{name}.log"
    command = [PYTHON, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]
    app = scene.runtime.launch(name, scene.hosts["B"], command, log)
    wait_until(lambda: says(log, word), f"{name} being ready", timeout=30)
    return app


def writable_memory(pid: int) -> dict[int, bytes]:
    """Read the private, writable memory of a process, by the addresses of its areas."""
    found = {}
    with (tree.PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
        for line in (tree.PROC / str(pid) / "maps").read_text().splitlines():
            area, rights, *_ = line.split()
            begin, _, end = area.partition("-")
            if rights.startswith("rw") and rights.endswith("p"):
                memory.seek(int(begin, 16))
                found[int(begin, 16)] = memory.read(int(end, 16) - int(begin, 16))
    return found


def differences(here: dict[int, bytes], there: dict[int, bytes]) -> list[int]:
    """List the addresses at which two memories differ."""
    assert {at: len(content) for at, content in here.items()} == {
        at: len(content) for at, content in there.items()
    }
    found = []
    for at, content in here.items():
        if content != there[at]:
            found += [at + i for i, (a, b) in enumerate(zip(content, there[at], strict=True)) if a != b]
    return found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program knows x86-64's system calls")
@pytest.mark.parametrize(("mode", "via"), WAYS)
def test_memory_is_that_of_the_frozen_original(scene: Stage, mode: Mode, via: Via) -> None:
    """Byte for byte, with threads, robust mutexes and asynchronous I/O: the kernel writes there when a process ends."""
    app = start(scene, "kernel_writes", 30)
    areas = [int(word) for word in app.log.read_text().split()[1:]]
    assert len(areas) == 9
    memory: dict[str, dict[int, bytes]] = {}

    def look(step: str, when: str) -> None:
        if (step, when) == ("release", "before"):
            memory["original"] = writable_memory(app.pid)

    for to in ("C", "B", "C"):
        report = scene.migrator(fault=look).migrate(app, scene.hosts[to], wish=Wish(mode, via))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        wrong = [
            at
            for at in differences(memory["original"], writable_memory(app.pid))
            if not any(area <= at < area + RSEQ for area in areas)
        ]
        assert wrong == []

"""In a container of runc's a program finds itself as it was, too; see test_fidelity.py for programs without one.

`make fidelity` has more ways to move, and what is refused and warned of.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Iterator, Sequence

import pytest
from contained import ContainerStage, container_stage

from migration.namespaces import in_netns
from migration.report import Outcome, Report
from migration.transfer.modes import Mode, Via, Wish
from tests.fidelity import plan as plans
from tests.fidelity.entries import CONTAINER_LOST, GROUPS_INSIDE, REFUSED_INSIDE, WARNED, Entry
from tests.fidelity.inside import (
    Inside,
    Readings,
    add_program,
    check_entry,
    check_options,
    skip_if_not_had,
    there_and_back,
)
from tests.roots import build_root, need_runc

pytestmark = pytest.mark.net

PEER, OWN = ("10.77.1.2", 7100), "10.77.2.2"
IS_FULL = os.environ.get("P4FERRY_FIDELITY") == "full"
MODES = {"stop": Mode.STOP} | ({"lazy": Mode.LAZY} if IS_FULL else {})
LOCKS = "locks of files and records"
ENTRIES = [entry for group in GROUPS_INSIDE.values() for entry in group]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerStage]:
    need_runc()
    root = add_program(build_root(tmp_path_factory.mktemp("root")))
    with (
        container_stage(tmp_path_factory.mktemp("fidelity"), root) as built,
        in_netns(built.hosts["A"].pid, lambda: socket.create_server(PEER)),
    ):
        yield built


def start(scene: ContainerStage, name: str, entries: Sequence[Entry], *, options: bool = False) -> Inside:
    """Start a program in a container on B."""
    clients: list[socket.socket] = []

    def connect() -> None:
        for port in (7000, 7005)[len(clients) :]:
            address = (OWN, port)
            one = in_netns(
                scene.hosts["A"].pid, functools.partial(socket.create_connection, address, timeout=5)
            )
            clients.append(one)

    plan = plans.plan(entries, PEER, OWN, options=options)
    told = Inside(lambda argv: scene.run(name, "B", argv), name, plan, connect)
    told.clients = clients
    return told


def end(scene: ContainerStage, told: Inside) -> None:
    """End a program, and its connections."""
    for client in told.clients:
        client.close()
    scene.runtime.terminate(told.app, 0.1)


@pytest.fixture(scope="module", params=MODES)
def readings(request: pytest.FixtureRequest, scene: ContainerStage) -> Iterator[Readings]:
    entries = [entry for entry in ENTRIES if request.param == "stop" or entry.name != LOCKS]
    told = start(scene, f"all-{request.param}", entries, options=True)
    wish = Wish(mode=MODES[request.param], via=Via.SHARED)
    try:
        yield there_and_back(
            told, lambda host: scene.migrator().migrate(told.app, scene.hosts[host], wish=wish), "CB"
        )
    finally:
        end(scene, told)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_state_is_the_same(readings: Readings, entry: Entry) -> None:
    """Or the report says what is not."""
    if entry.name not in readings.first:
        pytest.skip(f"{entry.name}: whoever holds locks is not moved in mode lazy")
    check_entry(readings, entry, CONTAINER_LOST)


@pytest.mark.parametrize("name", plans.KINDS)
def test_options_are_the_same(readings: Readings, name: str) -> None:
    """What sockopts.py calls carried is as it was."""
    check_options(readings, name)


def move_with(scene: ContainerStage, entry: Entry) -> Report:
    """Move a container with one entry, and end it; skips, with the reason, what it cannot have."""
    told = start(scene, re.sub(r"\W+", "-", entry.name), [entry])
    try:
        skip_if_not_had(told.failed, entry)
        return scene.migrator().migrate(told.app, scene.hosts["C"])
    finally:
        end(scene, told)


@pytest.mark.fidelity
@pytest.mark.parametrize("entry", REFUSED_INSIDE, ids=lambda entry: entry.name)
def test_what_would_be_lost_is_refused(scene: ContainerStage, entry: Entry) -> None:
    """It is said by name, and the program was not touched."""
    report = move_with(scene, entry)
    assert report.outcome is Outcome.REFUSED, report.reason
    assert report.reason is not None
    assert re.search(entry.words, report.reason), report.reason
    assert report.criu.frozen_ms == 0


@pytest.mark.fidelity
@pytest.mark.parametrize("entry", WARNED, ids=lambda entry: entry.name)
def test_what_is_lost_is_warned_of(scene: ContainerStage, entry: Entry) -> None:
    """The report says it by name."""
    report = move_with(scene, entry)
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert re.search(entry.words, "\n".join(report.warnings)), report.warnings

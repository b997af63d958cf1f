"""In a container of Docker's or Podman's a program finds itself as it was, or is told what is not: `make fidelity`.

See tests/migration/test_fidelity.py for programs without a container, test_fidelity_runc.py for runc's.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from migration.namespaces import in_netns
from migration.report import Outcome
from tests.fidelity import plan as plans
from tests.fidelity.entries import (
    DOCKER_LOST,
    ENGINE_REFUSED,
    GROUPS_INSIDE,
    PODMAN_LOST,
    REFUSED_INSIDE,
    STOPPED,
    TERMINALS,
    WARNED,
    Entry,
)
from tests.fidelity.inside import (
    Inside,
    Readings,
    add_program,
    check_entry,
    check_options,
    skip_if_not_had,
    there_and_back,
)
from tests.roots import build_root
from tests.topo.containers.engine_scene import Faults, stopped_containers
from topo.runs import clean_up
from topo.testbed import LoadBalancerNetwork, Testbed

pytestmark = [pytest.mark.net, pytest.mark.fidelity]

LOST = {"docker": DOCKER_LOST, "podman": PODMAN_LOST}
IMAGE = "p4ferry-test/fidelity"
PEER, OWN = ("10.0.1.1", 7100), "10.0.2.2"
ENTRIES = [
    entry
    for group, entries in GROUPS_INSIDE.items()
    for entry in entries
    if group not in ENGINE_REFUSED and entry is not STOPPED
]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a root file system with the program."""
    root = add_program(build_root(tmp_path_factory.mktemp("root")))
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as made:
        made.add(root, ".")
    return path


@dataclass
class Scene:
    """A network of an engine's pods, with the peer of the programs' connections in h1."""

    net: Testbed
    engine: str
    faults: Faults
    clients: list[socket.socket] = field(default_factory=list)

    def start(self, name: str, entries: Sequence[Entry], *, options: bool = False) -> Inside:
        """Start a program in a container on h2."""
        ports = [7000, 7005]
        place = self.net.hosts["h1"].pid

        def connect() -> None:
            while ports:
                address = (OWN, ports[0])
                one = in_netns(place, functools.partial(socket.create_connection, address, timeout=5))
                self.clients.append(one)
                ports.pop(0)

        plan = plans.plan(entries, PEER, OWN, options=options)
        return Inside(lambda argv: self.net.run(name, "h2", argv, image=IMAGE).app, name, plan, connect)

    def end(self, told: Inside) -> None:
        """End a program, and the connections with it."""
        self.net.stop(told.app.name)
        for client in self.clients:
            client.close()
        self.clients.clear()


@pytest.fixture(scope="module", params=["docker", "podman"])
def scene(request: pytest.FixtureRequest, archive: Path) -> Iterator[Scene]:
    engine = request.param
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed (make setup CONTAINERS=1)")
    place = request.getfixturevalue("dockerd" if engine == "docker" else "podman_storage")
    setting = "DOCKER_HOST" if engine == "docker" else "CONTAINERS_STORAGE_CONF"
    faults = Faults()
    clean_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(setting, str(place))
        subprocess.run([engine, "import", archive, IMAGE], check=True, capture_output=True)
        with (
            Testbed(LoadBalancerNetwork(hosts=3), hosts=engine, fault=faults) as net,
            in_netns(net.hosts["h1"].pid, lambda: socket.create_server(PEER)),
        ):
            yield Scene(net, engine, faults)
        subprocess.run([engine, "rmi", "--force", IMAGE], check=True, capture_output=True)


@pytest.fixture(scope="module")
def readings(scene: Scene) -> Readings:
    told = scene.start("all", ENTRIES, options=True)
    try:
        return there_and_back(told, lambda host: scene.net.migrate("all", host), ("h3", "h2"))
    finally:
        scene.end(told)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_state_is_the_same(scene: Scene, readings: Readings, entry: Entry) -> None:
    """Or the report says what is not."""
    check_entry(readings, entry, LOST[scene.engine])


@pytest.mark.parametrize("name", plans.KINDS)
def test_options_are_the_same(readings: Readings, name: str) -> None:
    """What sockopts.py calls carried is as it was."""
    check_options(readings, name)


def refused(scene: Scene, entry: Entry, words: str) -> None:
    """See that a program is refused by name, untouched."""
    name = re.sub(r"\W+", "-", entry.name)
    told = scene.start(name, [entry])
    try:
        skip_if_not_had(told.failed, entry)
        report = scene.net.migrate(name, "h3")
        assert report.outcome == Outcome.REFUSED, report.reason
        assert report.reason is not None
        assert re.search(words, report.reason), report.reason
        assert report.criu.frozen_ms == 0
    finally:
        scene.end(told)


@pytest.mark.parametrize("entry", REFUSED_INSIDE, ids=lambda entry: entry.name)
def test_what_would_be_lost_is_refused(scene: Scene, entry: Entry) -> None:
    """It is said by name, and the program was not touched."""
    refused(scene, entry, f"{entry.words}|{ENGINE_REFUSED['terminals']}")


def test_terminals_are_refused(scene: Scene) -> None:
    """Nobody carries what is between their ends."""
    refused(scene, TERMINALS[0], ENGINE_REFUSED["terminals"])


def test_a_stopped_child_stays_so(scene: Scene) -> None:
    """Or it is refused, where its control group is of version 1; nobody hears of a stop."""
    entries = [STOPPED, *(entry for entry in ENTRIES if entry.name == "signals that have come")]
    told = scene.start("stopped", entries)
    try:
        told.ask()
        first = told.ask()
        report = scene.net.migrate("stopped", "h3")
        if report.outcome == Outcome.REFUSED:
            assert re.search("is stopped, and cannot be traced while", report.reason or ""), report.reason
            pytest.skip(f"{report.reason}")
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert told.ask() == first
    finally:
        scene.end(told)


@pytest.mark.parametrize("entry", WARNED, ids=lambda entry: entry.name)
def test_what_is_lost_is_warned_of(scene: Scene, entry: Entry) -> None:
    """The report says it by name; of a terminal, the refusal does."""
    name = re.sub(r"\W+", "-", entry.name)
    told = scene.start(name, [entry])
    try:
        skip_if_not_had(told.failed, entry)
        report = scene.net.migrate(name, "h3")
        if report.outcome == Outcome.REFUSED:
            assert re.search(ENGINE_REFUSED["terminals"], report.reason or ""), report.reason
            return
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert re.search(entry.words, "\n".join(report.warnings)), report.warnings
    finally:
        scene.end(told)


def test_what_is_restored_from_its_image_is_the_same(scene: Scene) -> None:
    """When the copy has died for which the original has ended, the engine's restore gives all that a copy gets."""
    entries = list(ENTRIES)
    told = scene.start("back", entries, options=True)
    told.ask()
    first, pid = told.ask(), told.app.pid

    def kill_copy() -> None:
        copies = stopped_containers(told.app)
        assert copies
        for copy in copies:
            os.kill(copy, signal.SIGKILL)

    scene.faults.at, scene.faults.action = ("release", "before"), kill_copy
    try:
        report = scene.net.migrate("back", "h3")
        assert report.outcome == Outcome.ROLLED_BACK, report.reason
        assert told.app.pid != pid
        back = told.ask()
        names = [entry.name for entry in entries if entry.name not in {*LOST[scene.engine], *told.failed}]
        assert {name: back[name] for name in names} == {name: first[name] for name in names}
    finally:
        scene.end(told)

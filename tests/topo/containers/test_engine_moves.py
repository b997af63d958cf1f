"""Containers of Docker's and Podman's that move under an open connection, and everything that may go wrong meanwhile.

All on one network for each engine; see test_engine_deaths.py for what needs one of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migration.engines import gate
from migration.engines.driver import TWIN
from tests.topo.containers.conftest import TOOLS
from tests.topo.containers.engine_scene import Scene, command_of, processes, serving, stopped_containers
from tests.topo.machine import assert_as, leftovers
from topo.containers.engine import connect
from topo.runs import clean_up
from topo.waiting import wait_until

pytestmark = pytest.mark.net
REMOVE = {"docker": ["docker", "rm", "-f"], "podman": ["podman", "rm", "-f", "-t", "0"]}


@pytest.fixture(scope="module", params=["docker", "podman"])
def shared(request: pytest.FixtureRequest, _settings: None) -> Iterator[Scene]:
    """A network for all tests with an engine; at its end the machine is as before."""
    clean_up()
    before = leftovers()
    with serving(connect(request.param)) as scene:
        for host in ("h3", "h2"):  # what the first moves make stays: the load balancer's queues, for example
            assert scene.net.migrate("echo", host).outcome == "completed"
        yield scene
    assert_as(before)


def with_mounts_counted() -> dict[str, Any]:
    """Describe the machine; what is mounted for a container has another name for each copy."""
    found = leftovers()
    return {**found, "mounts": len(found["mounts"])}


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """The network with the container on h2; a test leaves nothing but the container, perhaps elsewhere."""
    if shared.app.host.name != "h2":
        assert shared.net.migrate("echo", "h2").outcome == "completed"
    shared.connection.ask()
    before = with_mounts_counted()
    yield shared
    assert_as(before, with_mounts_counted)
    shared.check_place(shared.app.host.name)


def test_what_a_container_prints_is_in_its_log(scene: Scene) -> None:
    """Every line once and in order, also those of the time in which its copy is made."""
    net = scene.net
    count = "i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done"
    net.run("count", "h2", ["sh", "-c", count], image=TOOLS)
    for destination in ("h3", "h2", "h3"):
        report = net.migrate("count", destination)
        assert report.outcome == "completed", report.reason
        assert not any("log" in warning for warning in report.warnings)
    before = len(net.output("count"))
    assert wait_until(lambda: len(net.output("count")) > before, 10.0)
    printed = net.output("count").split()
    assert printed == [str(number) for number in range(len(printed))]
    assert len(printed) > 20
    net.stop("count")


def test_moves_and_ways_back(scene: Scene) -> None:
    """To and fro, then a failure behind every step: the connection, the file and the name stay what they are."""
    faults, net, app, connection = scene.faults, scene.net, scene.app, scene.connection
    for destination in ("h3", "h2"):
        report = net.migrate("echo", destination)
        assert (report.outcome, report.runtime) == ("completed", scene.engine.name), report.reason
        assert (report.connections.established, report.connections.broken) == (1, 0)
        connection.ask()
        scene.check_place(destination)
    root = Path(f"/proc/{app.pid}/root")
    assert (root / "words").read_text().split() == connection.words
    assert not (root / "old").exists()  # removed behind a move: a whiteout came along
    assert net.output("echo") == "ready\n"  # printed before the moves

    for step in ("prepare", "hold", "checkpoint", "transfer", "restore", "switch over"):
        faults.fail(step, "after")
        report = net.migrate("echo", "h3")
        assert (report.outcome, report.reason) == ("rolled_back", f"injected after {step}")
        connection.ask()
        scene.check_place("h2")
    faults.fail("release", "after")  # the copy has run by then: it comes back by another migration
    report = net.migrate("echo", "h3")
    assert report.outcome == "rolled_back", report.reason
    connection.ask()
    scene.check_place("h2")
    assert (Path(f"/proc/{app.pid}/root") / "words").read_text().split() == connection.words


def test_what_dies_midway(scene: Scene) -> None:
    """CRIU at its gate, the copy before it runs, and the copy after its original has ended."""
    faults, net, app, connection = scene.faults, scene.net, scene.app, scene.connection

    def kill_restore() -> None:
        (waiting,) = gate.waiting()
        os.kill(waiting, signal.SIGKILL)

    def kill_copy() -> None:
        copies = stopped_containers(app)
        for pid in copies:
            os.kill(pid, signal.SIGKILL)
        assert copies
        assert wait_until(lambda: not stopped_containers(app), 5.0)

    def kill_command() -> None:
        restoring = "container\0restore\0"
        pids = [pid for pid in processes() if pid != os.getpid() and restoring in command_of(pid)]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    cases = [(("transfer", "before"), kill_restore), (("release", "before"), kill_copy)]
    if scene.engine.name == "podman":
        cases.append((("restore", "before"), kill_command))
    for at, action in cases:
        faults.at, faults.action = at, action
        report = net.migrate("echo", "h3")
        assert report.outcome == "rolled_back", (at, report.reason)
        connection.ask()
        scene.check_place("h2")
    report = net.migrate("echo", "h3")
    assert report.outcome == "completed", report.reason
    connection.ask()


def test_refusals(scene: Scene, tmp_path: Path) -> None:
    """By name, before anything is touched."""
    engine, net, app, connection = scene.engine, scene.net, scene.app, scene.connection
    node = net.host("h2")
    assert app.engine is not None

    def refused(container: str, reason: str) -> None:
        known, pid = app.engine.id, app.pid  # type: ignore[union-attr]
        app.engine.id, app.pid = container, engine.pid(container)  # type: ignore[union-attr]
        report = net.migrate("echo", "h3")
        app.engine.id, app.pid = known, pid  # type: ignore[union-attr]
        assert report.outcome == "refused" and reason in str(report.reason), report.reason
        subprocess.run([*REMOVE[engine.name], container], capture_output=True, check=True)

    option = ["--pod", node.pod] if engine.name == "podman" else ["--network", f"container:{node.pod}"]
    runtime = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"] if engine.name == "podman" else []
    shared = ["--volume", f"{tmp_path}:/shared"]
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

    def run(*options: str) -> str:
        command = [
            engine.name,
            *runtime,
            "run",
            "--detach",
            *option,
            *limits,
            *options,
            TOOLS,
            "sleep",
            "99",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    refused(run("-t"), "it has a terminal")
    refused(run("--rm"), "it was started with --rm")
    refused(run("--restart", "always"), "it has a restart policy")
    refused(run("--health-cmd", "true"), "it has a health check")
    other = run("--name", "other", *shared)
    refused(run(*shared), f"its volume {tmp_path} is shared with other")
    subprocess.run([*REMOVE[engine.name], other], capture_output=True, check=True)
    taken = run("--name", f"mn.echo{TWIN}")
    report = net.migrate("echo", "h3")
    assert (report.outcome, report.reason) == (
        "refused",
        f"echo cannot be moved: the name mn.echo{TWIN}, which its copy is to have, is taken",
    )
    subprocess.run([*REMOVE[engine.name], taken], capture_output=True, check=True)
    report = net.migrate("echo", "h3", mode="lazy")
    assert (report.outcome, str(report.reason)) == (
        "refused",
        f"echo cannot be moved in mode lazy by {engine.name}: ask for mode stop",
    )
    connection.ask()
    scene.check_place("h2")

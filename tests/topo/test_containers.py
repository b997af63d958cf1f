"""Containers in a testbed, started by runc: what a script, the CLI and the main program do with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration.groups import members
from migration.recovery import Verdict
from tests.roots import ECHO, build_root, need_runc
from tests.topo.crash import VIP, doomed
from tests.topo.machine import load_report
from tests.topo.test_volumes import WRITER
from topo import images, paths
from topo.cli import parse_run
from topo.errors import BadApp
from topo.measure import Load, MeasuringClient
from topo.runs import clean_up
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
SERVER = ["python3", ECHO, "server"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_runc()
    made = build_root(tmp_path_factory.mktemp("root"))
    (made / "work").mkdir()
    for folder in ("data", "work"):
        (made / folder / "given").write_text("from the start")
    return made


@pytest.fixture
def net(leaves_nothing: None) -> Iterator[Testbed]:
    with Testbed(LoadBalancerNetwork(hosts=3)) as bed:
        yield bed


def known_to_runc(net: Testbed, host: str) -> list[str]:
    """List the containers that runc knows of a host."""
    command = ["runc", "--root", str(net.folder / "containers" / host / "runc"), "list", "--quiet"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_a_service_in_a_container_moves(net: Testbed, root: Path, tmp_path: Path) -> None:
    """Behind a VIP, under its client, over the management network, to and fro; then it is stopped."""
    running = net.run("echo", "h2", SERVER, service=VIP, image=root)
    assert str(running).startswith("echo runs on h2")
    with MeasuringClient(net.host("h1").pid, VIP, Load(connections=4), tmp_path) as client:
        net.measure = client.measure
        for host in ("h3", "h2", "h3"):
            report = net.migrate("echo", host)
            assert (report.outcome, report.runtime) == ("completed", "runc"), report.reason
            assert (report.connections.kept, report.connections.broken) == (4, 0)
            assert report.transfer is not None and report.transfer["via"] == "network"
            assert known_to_runc(net, host) == ["echo"]
        net.measure = None
        result = client.stop()
    assert [result[key] for key in ("lost_bytes", "duplicated_bytes", "resets", "retransmits")] == [0] * 4
    assert net.apps()[0]["command"] == " ".join(SERVER)
    net.stop("echo")
    assert known_to_runc(net, "h3") == []
    assert net.apps() == []


@pytest.mark.parametrize("volumes", [[], ["/data"]])
def test_files_at_work_move(net: Testbed, root: Path, volumes: list[str]) -> None:
    """Descriptors, a shared mapping, a deleted file and files that come and go, in the writable layer or a volume."""
    net.run(
        "writer",
        "h2",
        ["python3", "-c", WRITER, "/data" if volumes else "/work"],
        image=root,
        volumes=volumes,
    )
    for host in ("h3", "h2", "h3"):
        count = len(net.output("writer").split())
        assert wait_until(lambda count=count: len(net.output("writer").split()) > count + 5, 10.0)  # type: ignore[misc]
        report = net.migrate("writer", host)
        assert report.outcome == "completed", (report.reason, net.output("writer")[-800:])
    count = len(net.output("writer").split())
    assert wait_until(lambda: len(net.output("writer").split()) > count + 5, 10.0), net.output("writer")


def test_late_memory(net: Testbed, root: Path, tmp_path: Path) -> None:
    """Post-copy carries a container as it does a process."""
    net.run("echo", "h2", SERVER, service=VIP, image=root)
    with MeasuringClient(net.host("h1").pid, VIP, Load(connections=2), tmp_path) as client:
        for host in ("h3", "h2"):
            report = net.migrate("echo", host, mode="lazy")
            assert report.outcome == "completed", report.reason
            assert report.transfer is not None and report.transfer["mode"] == "lazy"
        result = client.stop()
    assert [result[key] for key in ("lost_bytes", "duplicated_bytes", "resets")] == [0] * 3


def test_processes_and_containers_of_one_host_move_together(net: Testbed, root: Path) -> None:
    """A container and a plain process, connected over localhost."""
    net.run("echo", "h2", SERVER, service=VIP, image=root)
    talker = [sys.executable, str(paths.CHECKOUT / "apps/tcp_echo.py"), "client", "--rate", "100"]
    status = net.folder / "talker.status"
    net.run("talker", "h2", [*talker, "--connect", "127.0.0.1:7000", "--status", str(status)])
    assert wait_until(status.exists, 5.0)
    for host in ("h3", "h2"):
        report = net.migrate(["echo", "talker"], host)
        assert (report.outcome, report.connections.broken) == ("completed", 0), report.reason
    assert {app["state"] for app in net.apps()} == {"running"}


@pytest.mark.parametrize(
    ("step", "when", "verdict"),
    [
        ("prepare", "after", Verdict.UNDONE),
        ("transfer", "after", Verdict.UNDONE),
        ("restore", "after", Verdict.UNDONE),
        ("release", "after", Verdict.FINISHED),
        ("verify", "after", Verdict.FINISHED),
    ],
)
def test_the_controller_is_killed(root: Path, step: str, when: str, verdict: Verdict) -> None:
    """Its successor finishes or undoes the migration; runc knows the container where it is, and nowhere else."""
    with doomed(step, when, "stop", root) as (testbed, caller):
        testbed.migrate()
        with Testbed.recover() as net:
            (found,) = net.recovered
            assert found.verdict is verdict, found
            caller.call()
            here, there = ("h3", "h2") if verdict is Verdict.FINISHED else ("h2", "h3")
            assert known_to_runc(net, here) == ["echo"]
            assert not (net.folder / "containers" / there / "echo").exists()
            for host in (there, here):
                report = net.migrate("echo", host)
                assert report.outcome == "completed", report.reason
                caller.call()
            assert [member.host.name for member in members(found.app)] == [here]


def test_cleaning_after_a_crash(root: Path) -> None:
    """Of a killed run with a container nothing is left, its control groups included."""
    with doomed(root=root) as (testbed, _):
        testbed.kill()
        (left,) = clean_up()
        assert left.processes > 0


def test_mistakes_get_one_sentence(net: Testbed, root: Path) -> None:
    """Images that are not there, and what containers cannot have."""
    with pytest.raises(BadApp, match="there is no root file system at /no/such"):
        net.run("x", "h2", ["true"], image="/no/such")
    with pytest.raises(BadApp, match="a container can have neither a group nor a cwd"):
        net.run("x", "h2", ["true"], image=root, group="g")
    with pytest.raises(BadApp, match=r"x could not be started on h2: .*no/such"):
        net.run("x", "h2", ["/no/such"], image=root)
    with pytest.raises(BadApp, match="x ended at once"):
        net.run("x", "h2", ["sh", "-c", "echo so; exit 3"], image=root, service=VIP)
    assert net.apps() == []
    assert known_to_runc(net, "h2") == []


def test_the_cli_names_images() -> None:
    asked = parse_run("echo h2 --image tcp-echo --service 10.0.0.100:7000 --volume /data")
    assert asked == {
        "name": "echo",
        "host": "h2",
        "argv": [],
        "image": "tcp-echo",
        "service": "10.0.0.100:7000",
        "volumes": ["/data"],
    }
    with pytest.raises(ValueError, match="usage: run"):
        parse_run("echo h2 --service 10.0.0.100:7000")
    assert images.reference_of("redis") == "localhost/p4ferry/redis:latest"
    assert images.reference_of("localhost/mine:1") == "localhost/mine:1"


@pytest.mark.engines
def test_the_demo_in_containers(tmp_path: Path) -> None:
    """`--hosts runc --demo echo`, from the images of `make images`."""
    need_runc()
    build = [str(paths.CHECKOUT / "scripts" / "images")]
    for image in ("tcp-echo", "redis", "app"):
        build += ["--only", image]
    subprocess.run(build, check=True, capture_output=True, timeout=240)
    out = tmp_path / "out.json"
    lb = [sys.executable, str(paths.CHECKOUT / "topo" / "lb.py"), "--http-port", "5097", "--hosts", "runc"]
    for demo in ("echo", "redis"):
        done = subprocess.run(
            [*lb, "--demo", demo, "--json", str(out)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        kinds = {migration["app"]: migration["runtime"] for migration in load_report(out)}
        assert kinds[demo] == "runc"

"""While containers of Docker's and Podman's move, whoever moves them dies: this process, its controller, or dockerd."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from migration.engines import criuconf
from migration.engines.docker import DockerDriver
from migration.engines.driver import EngineSilent
from migration.engines.passage import EnginePassage
from migration.migrator import Migrator
from migration.tree import is_running
from tests.topo.containers.conftest import TOOLS, apart, containers, own_dockerd
from tests.topo.containers.engine_scene import SERVER, Connection, Faults, check_place, serving, temporary
from topo.containers.engine import Engine
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]


def test_the_controller_dies(engine: Engine) -> None:
    """At a step, for good: its thread never goes on, and another migrator settles what the journal says."""
    ever = threading.Event()
    cases = [(step, "after", "undone") for step in ("prepare", "checkpoint", "transfer", "restore")]
    cases += [("resume", "before", "finished"), ("release", "after", "finished")]
    with serving(engine) as scene, pytest.MonkeyPatch.context() as patch:
        faults, net, app, connection = scene.faults, scene.net, scene.app, scene.connection
        migrator = net._migrator
        for step, when, verdict in cases:
            reached = threading.Event()

            def die(reached: threading.Event = reached) -> None:
                reached.set()
                ever.wait()

            if step == "resume":  # the original has been ended, the copy has not run
                patch.setattr(EnginePassage, "resume", lambda passage, releasing, die=die: die())
            faults.at, faults.action = (step, when), die
            source, destination = app.host.name, "h3" if app.host.name == "h2" else "h2"
            arguments = (replace(app, engine=replace(app.engine)), net.hosts[destination])  # type: ignore[type-var]
            threading.Thread(target=migrator.migrate, args=arguments, daemon=True).start()
            assert reached.wait(20)
            patch.undo()
            successor = Migrator(
                net.controller.steering, net.runtime, images=migrator.images, journals=migrator.journals
            )
            (recovered,) = successor.recover()
            assert recovered.verdict.value == verdict, (step, recovered)
            app.host, app.pid, app.engine = recovered.app.host, recovered.app.pid, recovered.app.engine
            migrator._moving.clear()
            criuconf._SHARED._users = 0  # the dead one's
            connection.ask()
            scene.check_place(source if verdict == "undone" else destination)


def test_kill_9_in_the_middle(engine: Engine) -> None:
    """Of a migration whose copy has been built: the run is taken over, and the program is where it was."""
    code = (
        "import os, signal, sys\n"
        "from topo.testbed import LoadBalancerNetwork, Testbed\n"
        "def fault(step, when):\n"
        "    if (step, when) == ('restore', 'after'): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with Testbed(LoadBalancerNetwork(hosts=3), hosts={engine.name!r}, fault=fault) as net:\n"
        f"    net.run('echo', 'h2', {SERVER!r}, service='10.0.0.100:7000', image={TOOLS!r})\n"
        "    print(net.hosts['h1'].pid, flush=True); sys.stdin.readline()\n"
        "    net.migrate('echo', 'h3')"
    )
    before = temporary()
    with apart(code) as process:
        assert process.stdout is not None
        connection = Connection(int(process.stdout.readline()))
        connection.ask()
        process.communicate("go\n", timeout=30)
    assert process.returncode == -signal.SIGKILL
    with Testbed.recover() as net:
        (recovered,) = net.recovered
        assert recovered.verdict.value == "undone"
        connection.ask()
        assert net.migrate("echo", "h3").outcome == "completed"
        connection.ask()
        connection.close()
        check_place(net, engine, net._apps["echo"].app, "h3")
    assert containers(engine) == []
    assert temporary() == before


def test_a_docker_that_cannot(installed: None, tmp_path: Path) -> None:
    """Without `experimental`, and with nobody at home."""
    with own_dockerd(tmp_path) as (address, _):
        assert 'was started without "experimental"' in str(DockerDriver(address).check())
    with pytest.raises(EngineSilent, match="Docker does not answer at"):
        DockerDriver(address).check()


def test_dockerd_is_killed(
    installed: None, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the restore: the container runs on where it was, and when Docker is back nothing is left."""
    before = temporary()
    with own_dockerd(tmp_path, experimental=True, **{"live-restore": True}) as (address, start):
        monkeypatch.setenv("DOCKER_HOST", address)
        subprocess.run(["docker", "import", images[TOOLS], TOOLS], check=True, capture_output=True)
        faults = Faults()
        with Testbed(LoadBalancerNetwork(hosts=3), hosts="docker", fault=faults) as net:
            app = net.run("echo", "h2", SERVER, service="10.0.0.100:7000", image=TOOLS).app
            connection = Connection(net.hosts["h1"].pid)
            connection.ask()

            def kill() -> None:
                pid = int((tmp_path / "pid").read_text())
                os.kill(pid, signal.SIGKILL)
                assert wait_until(lambda: not is_running(pid), 5.0)

            faults.at, faults.action = ("restore", "before"), kill
            report = net.migrate("echo", "h3")
            assert report.outcome == "rolled_back", report.reason
            connection.ask()
            report = net.migrate("echo", "h3")
            assert report.outcome == "refused" and "Docker does not answer" in str(report.reason)
            start()
            connection.ask()
            # Docker 20.10 cannot checkpoint what has outlived its daemon; what it was spared is done all the same.
            report = net.migrate("echo", "h3")
            assert report.outcome == "completed" or "invalid task checkpoint option" in str(report.reason)
            connection.ask()
            connection.close()
            names = {host: [m.name for m in net.host(host).containers()] for host in ("h2", "h3")}
            assert names == {host: ["mn.echo"] if host == app.host.name else [] for host in names}
        assert temporary() == before
        shims = ["pgrep", "--full", f"containerd-shim.*{tmp_path}"]
        assert wait_until(lambda: subprocess.run(shims, capture_output=True).stdout == b"", 5.0, 0.1)

"""The switch's process in a container, with real engines: it serves, is started again, taken over, and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topo.containers.conftest import apart, containers
from tests.topo.crash import SERVER, VIP, Caller
from topo import paths
from topo.containers.engine import Engine
from topo.containers.switch import container_of
from topo.errors import SwitchFailed
from topo.network_api import NetworkAPI
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]


def is_inside(net: Testbed) -> bool:
    """Say whether s1's process sees other files than this one."""
    process = net.mininet["s1"].process
    return Path(f"/proc/{process.pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()


def test_a_switch_in_a_container(engine: Engine) -> None:
    """Connections through it survive a migration, and its own end, after which the supervisor starts another one."""
    with Testbed(LoadBalancerNetwork(hosts=3), switch_container=engine.name) as net:
        assert len(containers(engine)) == 1
        first = net.mininet["s1"].process.pid
        assert engine.pid("mn.s1") == first and is_inside(net)
        assert (net.folder / "s1.log").stat().st_size > 0
        net.run("echo", "h2", SERVER, service=VIP)
        caller = Caller(net.hosts["h1"].pid)
        try:
            caller.call()
            report = net.migrate("echo", "h3")
            assert (report.outcome, report.connections.kept) == ("completed", 1), report.reason
            os.kill(first, signal.SIGKILL)
            caller.call()
            assert wait_until(lambda: engine.pid("mn.s1") not in (0, first), 15.0, 0.1)
            assert wait_until(lambda: any(s["name"] == VIP for s in net.services()), 15.0, 0.1)
            assert wait_until(lambda: net.migrate("echo", "h2").outcome == "completed", 15.0, 0.2)
            caller.call()
            assert is_inside(net) and len(containers(engine)) == 1
        finally:
            caller.close()
    assert containers(engine) == []


def test_it_is_taken_over(engine: Engine) -> None:
    """After kill -9 the switch goes on in its container, and ends with the run that has taken it over."""
    code = (
        "import json, sys; from topo.testbed import LoadBalancerNetwork, Testbed\n"
        f"with Testbed(LoadBalancerNetwork(hosts=3), switch_container={engine.name!r}) as net:\n"
        f"    net.run('echo', 'h2', {SERVER!r}, service={VIP!r})\n"
        "    print(net.hosts['h1'].pid, flush=True); sys.stdin.readline()"
    )
    process = apart(code)
    assert process.stdout is not None
    caller = Caller(int(process.stdout.readline()))
    try:
        process.kill()
        process.communicate()
        caller.call()
        pid = engine.pid("mn.s1")
        with Testbed.recover() as net:
            assert net.mininet["s1"].process.pid == pid and is_inside(net)
            caller.call()
            assert net.migrate("echo", "h3").outcome == "completed"
            caller.call()
    finally:
        process.kill()
        caller.close()
    assert containers(engine) == []


def test_the_main_program_on_bmv2s_names(engine: Engine, tmp_path: Path) -> None:
    """`--switch-container`, with a switch program that lies outside /usr; here its name stands for our own."""
    for name, module in (("simple_switch_grpc", "dataplane.switch"), ("p4c-bm2-ss", "dataplane.compiler")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text("h1 ping -c 1 -W 2 10.0.2.2\n")
    # fmt: off
    lb = [sys.executable, str(paths.CHECKOUT / "topo" / "lb.py"), "--http-port", "5095", "--target", "bmv2",
          "--switch-container", engine.name, "--script", str(script)]
    # fmt: on
    done = subprocess.run(
        lb,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0% packet loss" in done.stderr


def test_a_switch_that_ends_at_once_is_reported(engine: Engine) -> None:
    """With the last thing that it said, and without its container."""
    with NetworkAPI() as net:
        net.switch_container = engine.name
        net.addP4RuntimeSwitch("s1", p4_src=paths.P4SRC / "forward.p4", cpu_port=70000)
        net.addHost("h1")
        net.addLink("h1", "s1")
        with pytest.raises(SwitchFailed, match=r"s1: .*70000"):
            net.startNetwork()
    assert containers(engine) == []


def test_what_is_mounted(tmp_path: Path) -> None:
    """Nothing can be written but the folders that are named, and the cache of compiled programs."""
    spec = container_of("host", [sys.executable, "-m", "x"], [tmp_path])
    mounts = {volume.split(":")[0]: volume.rsplit(":", 1)[1] for volume in spec.volumes}
    assert mounts["/usr"] == mounts[str(paths.CHECKOUT)] == "ro"
    writable = {path for path, mode in mounts.items() if mode == "rw"}
    assert str(tmp_path) in writable and len(writable) == 2

"""A testbed whose process was killed: its programs run on, and another process takes them over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from migration.recovery import Verdict
from tests.topo.crash import SERVER, VIP, doomed
from tests.topo.machine import load_report
from topo import paths
from topo.errors import AlreadyRunning, CannotRecover
from topo.runs import dead_runs
from topo.state import KEEPER_SOCKET, RunState
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
LB = paths.CHECKOUT / "topo" / "lb.py"


def lb(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the main program without a terminal."""
    command = [sys.executable, str(LB), "--http-port", "5098", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )


def test_a_testbed_outlives_its_process() -> None:
    """Killed between migrations: connections work at once, and everything works after the take-over."""
    with doomed() as (testbed, caller):
        testbed.kill()
        caller.call()
        with Testbed.recover() as net:
            assert net.recovered == []
            assert [(a["name"], a["host"], a["state"]) for a in net.apps()] == [("echo", "h2", "running")]
            assert [s["name"] for s in net.services()] == [VIP]
            caller.call()
            for host in ("h3", "h2"):
                report = net.migrate("echo", host)
                assert (report.outcome, report.connections.kept) == ("completed", 1), report
                caller.call()
            net.run("second", "h3", [*SERVER, "--port", "7001"], service="10.0.0.100:7001")
            assert "0% packet loss" in net.host("h1").cmd("ping -c 1 -W 2 10.0.3.3")
            assert net.host("h1").cmd("pwd").strip() == str(Path.cwd())
            net.stop("echo")


def test_it_can_be_killed_again() -> None:
    """What has been taken over can be taken over once more; a living run cannot."""
    with doomed("restore", "after") as (testbed, caller):
        testbed.migrate()
        (run,) = dead_runs()
        # fmt: off
        code = ("import sys; from topo.testbed import Testbed\n"
                "with Testbed.recover() as bed: print('up', flush=True); sys.stdin.readline()")
        second = subprocess.Popen([sys.executable, "-c", code], cwd=paths.CHECKOUT, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        # fmt: on
        assert second.stdout is not None and second.stdout.readline() == "up\n"
        caller.call()
        with pytest.raises(CannotRecover, match="there is no run to recover"):
            Testbed.recover()
        with pytest.raises(AlreadyRunning, match=rf"process {second.pid}\)"), Testbed.recover(run):
            pass
        second.kill()
        second.communicate()
        with Testbed.recover() as net:
            caller.call()
            assert net.migrate("echo", "h3").outcome == "completed"
            caller.call()


def test_the_switch_was_killed_as_well() -> None:
    """What it had forgotten is written again: the connection goes on."""
    with doomed() as (testbed, caller):
        testbed.kill()
        (run,) = dead_runs()
        os.kill(RunState.load(run).switches["s1"].pid, signal.SIGKILL)
        with Testbed.recover() as net:
            caller.call()
            assert [s["name"] for s in net.services()] == [VIP]
            assert net.migrate("echo", "h3").outcome == "completed"
            caller.call()


@pytest.mark.parametrize(
    ("step", "when", "verdict"),
    [
        ("restore", "before", Verdict.UNDONE),
        ("restore", "after", Verdict.UNDONE),
        ("release", "after", Verdict.FINISHED),
    ],
)
def test_post_copy_goes_on_without_its_controller(step: str, when: str, verdict: Verdict) -> None:
    """Before the commit the original goes on; after it, what serves the last pages is left to do so."""
    with doomed(step, when, "lazy") as (testbed, caller):
        testbed.migrate()
        with Testbed.recover() as net:
            (found,) = net.recovered
            assert found.verdict is verdict, found
            caller.call()
            assert net.migrate("echo", "h2" if verdict is Verdict.FINISHED else "h3").outcome == "completed"
            caller.call()


def test_a_run_that_cannot_be_taken_over_stays_as_it_is() -> None:
    """Something in the way (here: the keeper is busy with somebody else) costs nothing."""
    with doomed() as (testbed, caller):
        testbed.kill()
        (run,) = dead_runs()
        hidden = (run / KEEPER_SOCKET).rename(run / "hidden")
        with pytest.raises(CannotRecover, match="no keeper answers"), Testbed.recover():
            pass
        caller.call()
        hidden.rename(run / KEEPER_SOCKET)
        with Testbed.recover():
            caller.call()


def test_without_hosts_there_is_nothing_to_recover() -> None:
    """The keeper was killed as well: hosts and programs are gone; said in one sentence, and cleaned up."""
    with doomed() as (testbed, _):
        testbed.kill()
        (run,) = dead_runs()
        holder = RunState.load(run).holders["h1"].pid
        parent = int(Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        assert wait_until(lambda: not RunState.load(run).holders["h1"].is_alive, 5.0)
        done = lb("--recover")
        assert done.returncode == 1
        assert "its host h1 is gone, and all its programs with it" in done.stderr
        assert "Traceback" not in done.stderr
        assert lb("--clean").stdout.startswith(f"run {run.name}: ")


def test_the_main_program_goes_on_with_a_killed_run(tmp_path: Path) -> None:
    """`--recover` between migrations; in the middle of one it does so by itself."""
    script, out = tmp_path / "script", tmp_path / "out.json"
    script.write_text("apps\nmigrate echo h3\n")
    with doomed() as (testbed, _):
        testbed.kill()
        done = lb("--recover", "--script", str(script), "--json", str(out))
        assert done.returncode == 0, done.stderr
        assert "was killed and is taken over: echo running on h2" in done.stdout
        assert [m["outcome"] for m in load_report(out)] == ["completed"]
    with doomed("restore", "before") as (testbed, _):
        testbed.migrate()
        refused = lb("--demo", "echo")
        assert refused.returncode == 1
        assert "killed in the middle of a migration: the demo needs a network of its own" in refused.stderr
        done = lb("--script", str(script))
        assert done.returncode == 0, done.stderr
        assert "migration m1 of echo was undone: it runs on h2" in done.stdout
        assert "echo h2 -> h3: completed" in done.stdout
    done = lb("--recover")
    assert (done.returncode, done.stderr) == (
        1,
        "lb.py: there is no run to recover: none was killed, or it was cleaned up\n",
    )


def test_a_new_testbed_removes_what_a_killed_one_left() -> None:
    """Without a migration under way the next run starts from nothing, as ever."""
    with doomed() as (testbed, _):
        testbed.kill()
        with Testbed(LoadBalancerNetwork(hosts=3)) as net:
            assert net.apps() == []
            assert len(dead_runs()) == 0

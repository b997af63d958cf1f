"""The main program, run as a user runs it: its demos, scripts, mistakes, interruptions, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topo.machine import load_report
from topo import paths

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
LB = paths.CHECKOUT / "topo" / "lb.py"
ECHO = paths.CHECKOUT / "apps" / "tcp_echo.py"


def lb(*arguments: str, timeout: float = 120, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the main program without a terminal."""
    # fmt: off
    return subprocess.run([sys.executable, str(LB), "--http-port", "5099", *arguments], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout, check=False, **options)  # type: ignore[call-overload]
    # fmt: on


def _assert_untouched(migrations: list[dict], connections: int) -> None:
    for migration in migrations:
        assert migration["outcome"] == "completed", migration
        assert migration["connections"] == {"established": connections, "kept": connections, "broken": 0}
        client = migration["client"]
        assert [client[k] for k in ("lost_bytes", "duplicated_bytes", "resets")] == [0, 0, 0], client


@pytest.mark.parametrize("topology", ["single", "triangle"])
@pytest.mark.parametrize("connections", [1, 64])
def test_a_live_connection_survives_the_move_of_its_server(
    topology: str, connections: int, tmp_path: Path
) -> None:
    """h2 -> h3 -> h2 under traffic: nothing lost, doubled, reset or broken."""
    out = tmp_path / "out.json"
    arguments = [
        "--topology",
        topology,
        "--connections",
        str(connections),
        "--demo",
        "echo",
        "--json",
        str(out),
    ]
    done = lb(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    migrations = load_report(out)
    assert [(m["source"], m["destination"]) for m in migrations] == [("h2", "h3"), ("h3", "h2")]
    _assert_untouched(migrations, connections)
    for (
        migration
    ) in migrations:  # a pause beyond TCP's smallest time-out (200 ms) is a slow machine's, not the hold's
        assert migration["client"]["retransmits"] == 0 or migration["client"]["gap_ms"] > 200, migration


@pytest.mark.long
def test_bulk_streams_arrive_whole(tmp_path: Path) -> None:
    """Full speed in both directions through 20 migrations: the hashes of both ends are equal."""
    out = tmp_path / "out.json"
    done = lb("--demo", "echo", "--bulk", "--count", "20", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    migrations = load_report(out)
    assert len(migrations) == 20
    _assert_untouched(migrations, 1)
    assert all(m["client"]["hashes_equal"] for m in migrations)
    assert migrations[0]["client"]["bytes"] > 100e6


def test_without_the_hold_the_client_notices(tmp_path: Path) -> None:
    """The control arm: packets are lost, so the client's kernel must send again; nothing breaks all the same."""
    out = tmp_path / "out.json"
    done = lb("--demo", "echo", "--no-hold", "--connections", "32", "--count", "4", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    migrations = load_report(out)
    _assert_untouched(migrations, 32)
    assert sum(m["client"]["retransmits"] for m in migrations) > 0
    assert statistics.median(m["client"]["gap_ms"] for m in migrations) > 0


def test_bmv2s_names_are_called_for_the_other_target(tmp_path: Path) -> None:
    """`--target bmv2` calls p4c-bm2-ss and simple_switch_grpc from PATH; here these names stand for our own."""
    for name, module in (("simple_switch_grpc", "dataplane.switch"), ("p4c-bm2-ss", "dataplane.compiler")):
        script = tmp_path / name
        log = tmp_path / f"{name}.called"
        script.write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {sys.executable} -m {module} "$@"\n')
        script.chmod(0o755)
    out = tmp_path / "out.json"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = lb("--target", "bmv2", "--demo", "echo", "--json", str(out), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    _assert_untouched(load_report(out), 1)
    assert json.loads(out.read_text())["target"] == "bmv2"
    assert "--grpc-server-addr 127.0.0.1:9559" in (tmp_path / "simple_switch_grpc.called").read_text()
    assert "--p4runtime-files" in (tmp_path / "p4c-bm2-ss.called").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--target", "bmv2"], 1, "simple_switch_grpc is not on PATH: install BMv2, or use --target ebpf"),
        (["--demo", "pod"], 1, "--demo pod needs hosts that are pods: --hosts docker or --hosts podman"),
        (["--script", "/no/such/file"], 1, "--script /no/such/file: there is no such file"),
        (["--json", "/no/such/folder/x"], 1, "--json /no/such/folder/x: a file cannot be written there"),
        (["--trace", "/proc/x"], 1, "--trace /proc/x: files cannot be written there"),
        (["--pcap", "/dev/null"], 1, "--pcap /dev/null: files cannot be written there"),
        (["--workers", "0"], 2, "'0' is not a number from 1 up"),
        (["--count", "0"], 2, "'0' is not a number from 1 up"),
        (["--topology", "ring"], 2, "invalid choice: 'ring'"),
        (["--http-port", "70000"], 2, "'70000' is not a port from 1 to 65535"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], status: int, words: str) -> None:
    """And a status that scripts notice; never a traceback."""
    done = lb(*arguments, env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_of_commands(tmp_path: Path) -> None:
    """The CLI's own commands, Mininet's, and comments."""
    script, out = tmp_path / "script", tmp_path / "out.json"
    script.write_text(
        f"# as a user would\nh1 ping -c 1 -W 2 h2\nrun echo h2 --service 10.0.0.100:7000 -- python3 {ECHO} server\n"
        "apps\nservices\nbackends\nconnections\nmigrate echo h4\nmigrations\npingall\n"
    )
    kept = ["--trace", str(tmp_path / "traces"), "--pcap", str(tmp_path / "pcaps")]
    done = lb("--script", str(script), "--json", str(out), "--workers", "1", *kept)
    assert done.returncode == 0, done.stdout + done.stderr
    (migration,) = load_report(out)
    assert [p.name for p in (tmp_path / "traces").iterdir()] == ["m1.log"]
    captures = sorted(p.name for p in (tmp_path / "pcaps").iterdir())
    assert captures == ["m1-destination-h4.pcap", "m1-source-h2.pcap"]
    assert (migration["destination"], migration["outcome"]) == ("h4", "completed")
    assert "echo h2 -> h4: completed" in done.stdout
    assert "0% dropped (12/12 received)" in done.stderr  # Mininet's own output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("migrate echo h3", "there is no app echo (there are: none)"),
        ("migrate echo", "usage: migrate APP… HOST"),
        ("run echo h9 -- sleep 1", "there is no host h9 (there are: h1, h2, h3, h4)"),
        ("run echo h2", "usage: run NAME HOST"),
        ("run echo h2 -- /no/such/program", "/no/such/program"),
        ("run echo h2 --service 10.0.0.100 -- sleep 9", "'10.0.0.100' is not VIP:PORT"),
        ("run echo h2 --service 10.0.2.2:80 -- sleep 9", "10.0.2.2 is a host's address"),
        ("run echo h2 --service 10.0.0.100:7000 -- false", "echo ended at once"),
        ("frobnicate", "there is no command or node 'frobnicate'"),
    ],
)
def test_a_script_fails_at_its_first_mistake(command: str, words: str, tmp_path: Path) -> None:
    """With the mistake's sentence and its line."""
    script = tmp_path / "script"
    script.write_text(f"{command}\nnodes\n")
    done = lb("--script", str(script))
    assert done.returncode == 1
    assert words in done.stderr
    assert f"{script}:1: failed: {command}" in done.stderr
    assert "Traceback" not in done.stderr
    assert "nodes" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals) -> None:
    """Ctrl-C in the middle of migrations."""
    with _running_demo() as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, output + errors
    assert "interrupted" in errors and "Traceback" not in errors


def test_the_next_run_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    """kill -9 in the middle; then a run that works, and nothing of the first is left."""
    with _running_demo() as process:
        process.kill()
        process.communicate(timeout=30)
    assert list(paths.RUNS.iterdir())
    script = tmp_path / "script"
    script.write_text("nodes\n")
    done = lb("--script", str(script))
    assert done.returncode == 0, done.stderr


def test_two_testbeds_do_not_get_in_each_others_way() -> None:
    """The second is refused, and the first runs on."""
    with _running_demo() as process:
        done = lb("--demo", "echo")
        assert done.returncode == 1
        assert f"another testbed is running (process {process.pid})" in done.stderr
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=30)


def _running_demo() -> subprocess.Popen[str]:
    """Start a long demo, and return when its first migration is through."""
    process = subprocess.Popen(
        [sys.executable, "-u", str(LB), "--http-port", "5099", "--demo", "echo", "--count", "500"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "h2 -> h3" in line:
            return process
    process.kill()
    raise AssertionError(process.communicate())


def test_the_doctor_finds_what_is_needed(tmp_path: Path) -> None:
    """On a machine that was set up nothing needed is missing; it tries CRIU and the kernel's verifier for real."""
    done = lb("--doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert "dumps and restores a TCP connection" in answers["CRIU"]
    assert "passes the verifier" in answers["eBPF"]

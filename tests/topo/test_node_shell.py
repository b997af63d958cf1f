"""A node's shell that ends is an error with its name, its command and its exit status; nothing waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from topo import paths
from topo.errors import ShellEnded
from topo.node_shell import GuardedHost

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.timeout(20),
]


def broken(folder: Path, program: str, script: str) -> str:
    """Return a PATH on which a program is a given shell script."""
    file = folder / program
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("program", "script", "expected"),
    [
        ("bash", "exit 1", "ended with exit status 1"),
        (
            "bash",
            "echo no terminal here >&2; exit 3",
            "ended with exit status 3 (it printed: no terminal here)",
        ),
        ("bash", "kill -9 $$", "was ended by SIGKILL"),
        ("mnexec", "exit 7", "ended with exit status 7"),
        ("env", "exit 0", "ended with exit status 0"),
    ],
)
def test_shell_that_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, script: str, expected: str
) -> None:
    """Whatever of its command line ends, with and without last words."""
    monkeypatch.setenv("PATH", broken(tmp_path, program, script))
    before = set(Path("/proc/self/fd").iterdir())
    began = time.monotonic()
    with pytest.raises(ShellEnded) as caught:
        GuardedHost("h7", inNamespace=True)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert message.startswith(f"the shell of h7 {expected}; it was started as: mnexec -cdn env bash ")
    assert message.endswith("mininet:h7")
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_shell_that_shows_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended when its time is over."""
    monkeypatch.setattr("topo.node_shell.PROMPT_TIMEOUT", 1.0)
    monkeypatch.setenv("PATH", broken(tmp_path, "bash", "exec sleep 55.5"))
    with pytest.raises(ShellEnded, match="the shell of h7 showed no prompt within 1 s"):
        GuardedHost("h7", inNamespace=True)


def test_shell_that_ends_in_a_command() -> None:
    """A command whose shell is gone raises; one before it has its whole output."""
    host = GuardedHost("h7", inNamespace=True)
    try:
        assert host.cmd("echo one; echo two").split() == ["one", "two"]
        assert len(host.cmd("seq 1 5000").split()) == 5000
        with pytest.raises(ShellEnded, match="the shell of h7 ended with exit status 5"):
            host.cmd("exit 5")
    finally:
        host.terminate()


def test_main_program_says_so(tmp_path: Path) -> None:
    """`lb.py` ends with one sentence, and leaves nothing."""
    env = {**os.environ, "PATH": broken(tmp_path, "mnexec", "exit 9"), "P4FERRY_RUNS": str(tmp_path / "runs")}
    command = [
        sys.executable,
        str(paths.CHECKOUT / "topo" / "lb.py"),
        "--http-port",
        "5093",
        "--demo",
        "echo",
    ]
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=15, check=False
    )
    assert done.returncode == 1
    assert "ended with exit status 9" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []

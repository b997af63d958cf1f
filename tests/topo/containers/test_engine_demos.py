"""The demos whose programs are containers of Docker's and Podman's, as users start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.topo.containers.conftest import containers
from tests.topo.machine import load_report
from topo import paths
from topo.containers.engine import Engine

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
IMAGES = ("tcp-echo", "redis", "app")


@pytest.fixture(scope="module")
def our_images() -> None:
    """Let `make images` build what the demos start."""
    only = [word for name in IMAGES for word in ("--only", name)]
    subprocess.run(
        [paths.CHECKOUT / "scripts" / "images", *only], check=True, capture_output=True, timeout=240
    )


def demo(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a main program without a terminal, in which case it leaves after its scenario."""
    command = [sys.executable, str(paths.CHECKOUT / "topo" / script), "--http-port", "5094", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
    )


def test_a_pod_moves(engine: Engine, our_images: None, tmp_path: Path) -> None:
    """Redis and its backend, connected over localhost, to and fro; the client has noticed a pause and nothing else."""
    out = tmp_path / "out.json"
    done = demo("pods.py", "--engine", engine.name, "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none missing" in done.stdout and "WRONG" not in done.stdout
    moved = [(m["app"], m["destination"], m["outcome"], m["runtime"]) for m in load_report(out)]
    assert moved == [("redis,app", host, "completed", engine.name) for host in ("h3", "h2")]
    assert containers(engine) == []


def test_the_echo_demo(engine: Engine, our_images: None, tmp_path: Path) -> None:
    """Behind a VIP, under its client, with the switch in a container as well."""
    out = tmp_path / "out.json"
    arguments = [
        "--hosts",
        engine.name,
        "--switch-container",
        engine.name,
        "--demo",
        "echo",
        "--json",
        str(out),
    ]
    done = demo("lb.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    for migration in load_report(out):
        assert (migration["outcome"], migration["runtime"]) == ("completed", engine.name), migration
        wrong = ("lost_bytes", "duplicated_bytes", "resets")
        assert [migration["client"][key] for key in wrong] == [0, 0, 0]
    assert containers(engine) == []

"""Daemons that can move containers, and one that cannot: real ones, each with storage of its own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.topo.containers.conftest import _unmount
from topo import paths
from topo.containers.docker_engine import DockerEngine
from topo.errors import MissingTool
from topo.kinds import HostKind
from topo.ready import check
from topo.switches import die_with_parent
from topo.waiting import wait_until

pytestmark = pytest.mark.net
PLAIN = ["dockerd", "--bridge", "none", "--iptables=false", "--ip6tables=false"]


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[tuple[DockerEngine, int]]:
    """Run a daemon on storage of its own; yields what it answers to, and its PID."""
    address = f"unix://{folder}/docker.sock"
    (folder / "daemon.json").write_text("{}")
    # fmt: off
    words = [*command, "--host", address, "--config-file", f"{folder}/daemon.json", "--pidfile", f"{folder}/pid",
             "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    # fmt: on
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(words, stdout=log, stderr=log, preexec_fn=die_with_parent)
    try:
        assert wait_until((folder / "docker.sock").exists, 30.0, 0.05), (folder / "log").read_text()[-2000:]
        yield DockerEngine(address), daemon.pid
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        finally:
            daemon.kill()
            _unmount(folder)


def test_our_daemon_can_checkpoint(installed: None, tmp_path: Path) -> None:
    """`scripts/dockerd` takes dockerd's options, has experimental features, and finds the CRIU of set-up first."""
    with running([str(paths.CHECKOUT / "scripts" / "dockerd")], tmp_path) as (engine, pid):
        assert engine.why_no_checkpoints() is None
        assert "cannot move" not in engine.describe()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert f"PATH={paths.CHECKOUT}/.p4ferry/bin:".encode() in b"\n".join(environment)


def test_one_that_cannot_is_named(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is built, with what to type."""
    with running(PLAIN, tmp_path) as (engine, _):
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        with pytest.raises(MissingTool, match=r'was started without "experimental", .* type scripts/dockerd'):
            check(HostKind.DOCKER, [])
        assert "containers cannot move (type scripts/dockerd)" in engine.describe()

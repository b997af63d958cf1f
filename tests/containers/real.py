"""Real tools for tests: scripts/images, and Debian's docker-registry on a free port of loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ECHO = "localhost/p4ferry/tcp-echo:latest"


def build(target: Path) -> str:
    """Run scripts/images for one image."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / "images", "--only", "tcp-echo", "--output", target],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def registry_command() -> str:
    """Return the real registry's command; installs its package if it is missing, without its service."""
    if shutil.which("docker-registry") is None:
        policy = Path("/usr/sbin/policy-rc.d")
        mine = not policy.exists()
        if mine:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            subprocess.run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "docker-registry"],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                timeout=240,
                check=False,
            )
        finally:
            if mine:
                policy.unlink()
        if shutil.which("systemctl"):  # nor with the next boot
            subprocess.run(
                ["systemctl", "disable", "--quiet", "docker-registry"], capture_output=True, check=False
            )
    found = shutil.which("docker-registry")
    if found is None:
        pytest.skip("docker-registry cannot be installed here (apt-get install docker-registry)")
    return found


@contextmanager
def registry(command: str, folder: Path) -> Iterator[str]:
    """Run a registry on a free port of loopback; it is ended at the end."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {folder / 'storage'}\n"
        f"http:\n  addr: 127.0.0.1:{port}\n"
    )
    with (
        (folder / "registry.log").open("w") as log,
        subprocess.Popen([command, "serve", config], stdout=log, stderr=log) as process,
    ):
        try:
            deadline = time.monotonic() + 20
            while not answers(port):
                assert process.poll() is None, (folder / "registry.log").read_text()
                assert time.monotonic() < deadline, "the registry did not answer within 20 s"
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def answers(port: int) -> bool:
    """Say whether a registry answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

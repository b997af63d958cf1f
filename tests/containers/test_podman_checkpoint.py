"""A real checkpoint by Podman, through a real registry, restored by Podman: the program goes on where it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from containers.archive import image, reference, restore
from containers.archive.registry import Registry
from containers.images import engines
from containers.images.engines import Engine
from topo import paths

from .real import ECHO, registry, registry_command

COUNT = "i=0; while true; do i=$((i+1)); echo $i >/root/new; mv /root/new /root/count; sleep 0.05; done"
pytestmark = [
    pytest.mark.net,
    pytest.mark.engines,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)"
    ),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed (apt-get install runc)"),
]


class Podman:
    """Podman with a store of its own, runc, and the CRIU that set-up found to work."""

    def __init__(self, store: str) -> None:
        # fmt: off
        self._options = ["--root", f"{store}/root", "--runroot", f"{store}/run", "--storage-driver", "vfs",
                         "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
        # fmt: on
        criu = paths.criu_binary()
        self._env = {**os.environ, "PATH": f"{criu.parent if criu else '/usr/sbin'}:{os.environ['PATH']}"}

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a podman command."""
        command = [command[0], *self._options, *command[1:]]
        # fmt: off
        return subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=120, check=False)
        # fmt: on

    def do(self, *arguments: str) -> str:
        """Run one that has to work."""
        done = self.run(["podman", *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def count(self, least: int) -> int:
        """Wait until the container has counted to something."""
        deadline = time.monotonic() + 30
        while True:
            said = self.run(["podman", "exec", "counter", "cat", "/root/count"]).stdout.strip()
            if said and int(said) >= least:
                return int(said)
            assert time.monotonic() < deadline, f"the container did not count to {least} within 30 s"
            time.sleep(0.1)


def test_a_container_goes_on_where_it_was(images: Path, tmp_path: Path) -> None:
    """Checkpoint, build, push, pull, restore."""
    with tempfile.TemporaryDirectory(prefix="p4f-", dir="/tmp") as store:
        podman = Podman(store)
        assert engines.load(images, ECHO, Engine.PODMAN, podman.run)
        try:
            # fmt: off
            podman.do("run", "--detach", "--name", "counter", "--network", "none", "--ulimit", "nofile=1024:1024",
                      "--ulimit", "nproc=1024:1024", "--entrypoint", "sh", ECHO, "-c", COUNT)
            # fmt: on
            before = podman.count(40)
            podman.do("exec", "counter", "rm", "/etc/group")  # for deleted.files
            podman.do("container", "checkpoint", "--export", str(tmp_path / "archive"), "counter")
            podman.do("rm", "--force", "counter")
            assert image.build(tmp_path / "archive", tmp_path / "image").name == "counter"
            with (
                registry(registry_command(), tmp_path) as where,
                Registry(reference.parse(f"{where}/checkpoints/counter:one")) as there,
            ):
                there.push(tmp_path / "image")
                there.pull(tmp_path / "pulled")
            restore.restore(tmp_path / "pulled", run=podman.run)
            assert podman.count(1) >= before
            podman.count(before + 40)
            assert podman.run(["podman", "exec", "counter", "test", "-e", "/etc/group"]).returncode == 1
        finally:
            podman.run(["podman", "rm", "--force", "--time", "0", "--all"])

"""The real things: an image from the distribution's packages that runs, and Debian's docker-registry on loopback.

Needs root, mmdebstrap, a mirror, and for the registry the package docker-registry (no service of its own is started).
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from containers.archive import image
from containers.images import archives, engines
from containers.images.archives import Format
from containers.images.engines import Engine
from containers.oci.layout import Layout
from containers.oci.unpack import unpack
from controllers import cli

from .checkpoints import archive
from .real import ECHO, build, registry, registry_command

pytestmark = [
    pytest.mark.net,
    pytest.mark.engines,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def test_an_image_is_small_and_runs(images: Path, tmp_path: Path) -> None:
    """Its program starts in nothing but the image, and its shell has its tools."""
    size = sum(path.stat().st_size for path in images.rglob("*") if path.is_file())
    assert size < 30e6
    runs = unpack(images, ECHO, tmp_path / "root")
    argv = [*runs.argv[:2], "--help"]
    inside = subprocess.run(
        ["chroot", tmp_path / "root", *argv],
        capture_output=True,
        text=True,
        env=runs.env,
        timeout=30,
        check=False,
    )
    assert "TCP echo server" in inside.stdout, inside.stderr
    shell = subprocess.run(
        [
            "chroot",
            tmp_path / "root",
            "/bin/sh",
            "-c",
            "id -un; ls /srv/p4ferry/apps | grep -c tcp_echo; ip -V || true",
        ],
        capture_output=True,
        text=True,
        env=runs.env,
        timeout=30,
        check=False,
    )
    assert shell.stdout.splitlines()[:2] == ["root", "1"], shell.stderr
    assert not list((tmp_path / "root").rglob("__pycache__"))


def test_a_second_build_does_nothing(images: Path) -> None:
    """Without the network: mmdebstrap is not called."""
    began = time.monotonic()
    assert "building" not in build(images)
    assert time.monotonic() - began < 5


def test_the_same_packages_give_the_same_digest(images: Path, tmp_path: Path) -> None:
    """Built again from nothing."""
    build(tmp_path / "again")
    one, two = (Layout.open(path).resolve(ECHO).descriptor for path in (images, tmp_path / "again"))
    assert one.digest == two.digest


def takes(engine: Engine, images: Path, run: engines.Runner, folder: Path) -> None:
    """An engine takes an image once, and knows it again when it comes in Docker's format by another way."""
    assert engines.load(images, ECHO, engine, run)
    assert not engines.load(images, ECHO, engine, run)
    assert run([engine.value, "rmi", "--force", ECHO]).returncode == 0
    with (folder / "image.tar").open("wb") as target:
        archives.write(Layout.open(images), ECHO, Format.DOCKER, target)
    done = run([engine.value, "load", "--quiet", "--input", str(folder / "image.tar")])
    assert done.returncode == 0, done.stderr
    assert not engines.load(images, ECHO, engine, run)


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)")
def test_podman_takes_an_image(images: Path, tmp_path: Path) -> None:
    """The real Podman, with a store of its own (whose path it wants to be short)."""
    with tempfile.TemporaryDirectory(prefix="p4f-", dir="/tmp") as store:
        options = ["--root", f"{store}/root", "--runroot", f"{store}/run", "--storage-driver", "vfs"]

        def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
            return engines.run([command[0], *options, *command[1:]])

        takes(Engine.PODMAN, images, run, tmp_path)


@pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="dockerd is not installed (apt-get install docker.io)"
)
def test_docker_takes_an_image(images: Path, tmp_path: Path) -> None:
    """The real dockerd, with a store and a socket of its own, and no network."""
    with (
        tempfile.TemporaryDirectory(prefix="p4f-", dir="/tmp") as place,
        (tmp_path / "dockerd.log").open("w") as log,
    ):
        address = f"unix://{place}/s"

        def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
            return engines.run([command[0], "--host", address, *command[1:]])

        # fmt: off
        daemon = ["dockerd", "--host", address, "--data-root", f"{place}/data", "--exec-root", f"{place}/run",
                  "--pidfile", f"{place}/pid", "--bridge", "none", "--iptables=false", "--ip6tables=false",
                  "--ip-forward=false", "--ip-masq=false", "--storage-driver", "vfs"]
        # fmt: on
        with subprocess.Popen(daemon, stdout=log, stderr=log) as process:
            try:
                deadline = time.monotonic() + 30
                while run(["docker", "info"]).returncode != 0:
                    assert process.poll() is None, (tmp_path / "dockerd.log").read_text()[-2000:]
                    assert time.monotonic() < deadline, "dockerd did not answer within 30 s"
                    time.sleep(0.1)
                takes(Engine.DOCKER, images, run, tmp_path)
            finally:
                process.terminate()
                process.wait(30)


def test_through_a_real_registry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Build, push, pull, import: one command each, and the archive is the same at the end."""
    source = archive(tmp_path / "archive")

    def p4ferry(*command: object) -> str:
        status = cli.main(["checkpoint", *map(str, command)])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    with registry(registry_command(), tmp_path) as where:
        p4ferry("build", source, tmp_path / "image")
        pushed = p4ferry("push", tmp_path / "image", f"{where}/checkpoints/counter:one")
        p4ferry("push", tmp_path / "image", f"{where}/checkpoints/counter:two")
        pulled = p4ferry("pull", f"{where}/checkpoints/counter:two", tmp_path / "pulled")
        assert pushed.split()[-1] == pulled.split()[-1]
        assert (
            cli.main(["checkpoint", "pull", f"{where}/checkpoints/other:one", str(tmp_path / "other")]) == 1
        )
        assert capsys.readouterr().err == f"p4ferry: http://{where} has no checkpoints/other:one\n"
    p4ferry("import", tmp_path / "pulled", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) == 0o600
    assert (tmp_path / "again").stat().st_uid == 0
    assert image.stored(tmp_path / "pulled").name == "counter"

"""The real things: an image from the distribution's packages that runs, and Debian's docker-registry on loopback.

Needs root, mmdebstrap, a mirror, and for the registry the package docker-registry (no service of its own is started).
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from containers.archive import image
from containers.images import archives, engines
from containers.images.archives import Format
from containers.images.engines import Engine
from containers.oci.layout import Layout
from containers.oci.unpack import unpack
from controllers import cli

from .checkpoints import archive

CHECKOUT = Path(__file__).resolve().parents[2]
ECHO = "localhost/p4ferry/tcp-echo:latest"
pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the smallest image."""
    target = tmp_path_factory.mktemp("images") / "layout"
    build(target)
    return target


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


@pytest.fixture(scope="session")
def docker_registry() -> str:
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


def test_through_a_real_registry(
    docker_registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Build, push, pull, import: one command each, and the archive is the same at the end."""
    source = archive(tmp_path / "archive")

    def p4ferry(*command: object) -> str:
        status = cli.main(["checkpoint", *map(str, command)])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    with registry(docker_registry, tmp_path) as where:
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

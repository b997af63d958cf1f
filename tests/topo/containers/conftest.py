"""Real engines for the tests of container hosts: installed by set-up, with storage of their own, ended at the end.

dockerd is ours and its process is ended at the end; Podman has no daemon. Both get images made here, from Debian's
static busybox: no registry is asked.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from topo.containers.engine import RUN_LABEL, Engine, connect
from topo.paths import CHECKOUT, STATE
from topo.runs import MARKER
from topo.waiting import wait_until

TOOLS = "p4ferry-test/tools"  # a shell and busybox's applets, no bash
BARE = "p4ferry-test/bare"  # one program, /bin/sleep
_START_TIMEOUT = 30.0  # seconds
_STOP_TIMEOUT = 20.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a real engine."""
    for item in items:
        if "installed" in getattr(item, "fixturenames", ()):
            item.add_marker("engines")


@pytest.fixture(scope="session")
def installed() -> None:
    """Let set-up install the engines."""
    done = subprocess.run(
        [CHECKOUT / "scripts" / "setup", "--containers-only"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return Debian's static busybox, installed or only unpacked."""
    listed = subprocess.run(["dpkg-query", "-L", "busybox-static"], capture_output=True, text=True).stdout
    found = [Path(line) for line in listed.splitlines() if line.endswith("bin/busybox")]
    if found and found[0].is_file():
        return found[0]
    folder = tmp_path_factory.mktemp("busybox")
    done = subprocess.run(
        ["apt-get", "download", "-qq", "busybox-static"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"busybox-static is not installed, and cannot be fetched: {done.stderr.strip()}")
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return next(path for path in (folder / "bin/busybox", folder / "usr/bin/busybox") if path.is_file())


@pytest.fixture(scope="session")
def images(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the root file systems of the images, as archives."""
    folder = tmp_path_factory.mktemp("images")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    tools, bare = folder / "tools.tar", folder / "bare.tar"
    _archive(tools, busybox, "bin/busybox", [name for name in applets if name != "busybox"])
    _archive(bare, busybox, "bin/sleep", [])
    return {TOOLS: tools, BARE: bare}


def _archive(path: Path, program: Path, at: str, links: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        entry = tarfile.TarInfo(at)
        entry.size, entry.mode = program.stat().st_size, 0o755
        archive.addfile(entry, io.BytesIO(program.read_bytes()))
        for name in links:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)


def outside_of_runs() -> dict[str, str]:
    """Return the environment of a process that belongs to no run of ours."""
    return {key: value for key, value in os.environ.items() if key != MARKER}


def apart(code: str) -> subprocess.Popen[str]:
    """Run Python code in a process, and a session, of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=outside_of_runs(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_when_ready(process: subprocess.Popen[str]) -> None:
    """Kill a process that is apart when it says READY."""
    assert process.stdout is not None and process.stdout.readline() == "READY\n"
    process.kill()
    process.communicate()


@contextmanager
def own_dockerd(folder: Path, **settings: Any) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """Run a Docker daemon of our own, which a test may kill: give its address, and what starts it (again)."""
    address = f"unix://{folder}/s"
    (folder / "daemon.json").write_text(json.dumps(settings))
    # fmt: off
    # setpriv, and no function of ours between fork and exec: gRPC's threads do not outlive a fork.
    command = ["setpriv", "--pdeathsig", "TERM",
               "dockerd", "--config-file", folder / "daemon.json", "--host", address, "--pidfile", folder / "pid",
               "--data-root", folder / "data", "--exec-root", folder / "exec",
               "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    # fmt: on
    environment = outside_of_runs()
    environment["PATH"] = f"{STATE / 'bin'}:{environment['PATH']}"  # the CRIU that works here
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        # Its containerd does not outlive it, and is waited for if there is a note of it.
        for note in (folder / "pid", folder / "exec/containerd/containerd.pid"):
            if note.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(note.read_text()), signal.SIGKILL)
                note.unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        running.append(process)
        ping = ["docker", "--host", address, "version"]

        def answers() -> bool:
            done = subprocess.run(ping, capture_output=True)
            return done.returncode == 0 or process.poll() is not None

        assert wait_until(answers, _START_TIMEOUT, 0.1)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        return process

    try:
        start()
        yield address, start
    finally:
        running[-1].send_signal(signal.SIGTERM)
        try:
            running[-1].wait(_STOP_TIMEOUT)
        finally:
            running[-1].kill()
            _unmount(folder)


@pytest.fixture(scope="session")
def dockerd(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a Docker daemon of our own; yields its address."""
    with own_dockerd(tmp_path_factory.mktemp("dockerd"), experimental=True) as (address, _):
        yield address


def _unmount(folder: Path) -> None:
    """Take away what the daemon has left mounted."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=False)


@pytest.fixture(scope="session")
def podman_storage(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give Podman storage of its own; yields its configuration."""
    folder = tmp_path_factory.mktemp("podman")
    file = folder / "storage.conf"
    file.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
    )
    yield file
    _unmount(folder)


@pytest.fixture(scope="session")
def _settings(dockerd: str, podman_storage: Path, images: dict[str, Path]) -> Iterator[None]:
    """Let engines be found by everything that this process starts, with their images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", dockerd)
        patch.setenv("CONTAINERS_STORAGE_CONF", str(podman_storage))
        for name, archive in images.items():
            for command in (["docker"], ["podman"]):
                subprocess.run([*command, "import", archive, name], check=True, capture_output=True)
        yield


@pytest.fixture(params=["docker", "podman"])
def engine(request: pytest.FixtureRequest, _settings: None) -> Iterator[Engine]:
    """Yield each engine in turn; a test leaves no container in it."""
    engine = connect(request.param)
    yield engine
    left = containers(engine)
    for container in left:
        engine.remove(container)
    assert left == []


def containers(engine: Engine) -> list[str]:
    """List all containers that any run has made."""
    command = [engine.name, "ps", "--all", "--quiet", "--filter", f"label={RUN_LABEL}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

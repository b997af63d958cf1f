"""Containers on a routed network, in hosts with mounts of their own; and what tests look at before and after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moving import Stage, says, stage, wait_until
from routed import RoutedNetwork

from migration.containers import Image, launch, place_of
from migration.model import App, Host
from tests.roots import ECHO, need_runc

CGROUPS = Path("/sys/fs/cgroup")
MARK = f"p4ferry-test-{os.getpid()}"


class ContainerStage(Stage):
    """A stage whose programs are containers."""

    root: Path

    @property
    def store(self) -> Path:
        """Where the containers' parts are."""
        return self.folder / "containers"

    def run(
        self,
        name: str,
        host: str,
        argv: Sequence[str],
        volumes: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> App:
        """Start a container."""
        return launch(
            self.runtime.custody,
            name,
            self.hosts[host],
            Image(self.root),
            self.folder / f"{name}.log",
            store=self.store,
            cgroup=f"{MARK}-{name}",
            argv=argv,
            env=env,
            volumes=[Path(volume) for volume in volumes],
        )

    def serve(self, host: str = "B", *arguments: str, name: str = "echo", volumes: Sequence[str] = ()) -> App:
        """Start an echo server in a container and wait until it listens."""
        app = self.run(name, host, ["python3", ECHO, "server", *arguments], volumes)
        wait_until(lambda: says(app.log, "listening"), "the server listening")
        return app

    def runc(self, host: str, *arguments: str) -> str:
        """Ask runc of a host."""
        command = ["runc", "--root", str(self.store / host / "runc"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listed(self, host: str) -> dict[str, tuple[str, int]]:
        """Return what `runc list` says of a host: status and PID by name."""
        found: list[dict[str, Any]] = json.loads(self.runc(host, "list", "--format", "json")) or []
        return {one["id"]: (one["status"], one["pid"]) for one in found}

    def shell(self, app: App, script: str) -> str:
        """Run something in a container, as `runc exec` does."""
        said = self.runc(app.host.name, "exec", app.name, "sh", "-c", script)
        # What was executed is the container's, not a child of its first process: see it gone.
        wait_until(lambda: len(in_namespace(app.pid)) == len(descendants(app.pid)), "the end of the command")
        return said

    def leftovers(self, *apps: App) -> list[str]:
        """List what there is of containers, all on one host, besides where they are."""
        found = []
        for name, host in self.hosts.items():
            is_here = name == apps[0].host.name
            for app in () if is_here else apps:
                place = place_of(app, host)
                found += [str(p) for p in (place.folder, place.state / app.name) if p.exists()]
            mounts = [m for m in mounted(host.pid) if str(self.store) in m]
            if len(mounts) != (len(apps) if is_here else 0):
                found.append(f"{name}: {mounts}")
        return found


def in_namespace(pid: int) -> list[int]:
    """List the processes of a PID namespace."""
    space = os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns/pid").stat().st_ino == space:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def descendants(pid: int) -> list[int]:
    """List a process and what descends from it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def mounted(pid: int) -> list[str]:
    """List what is mounted where a process is."""
    return [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]


def control_groups() -> list[Path]:
    """List the control groups of our containers."""
    return [*CGROUPS.glob(f"{MARK}-*"), *CGROUPS.glob(f"*/{MARK}-*")]


@contextmanager
def own_mounts(net: RoutedNetwork) -> Iterator[None]:
    """Give every host a mount namespace of its own, as the testbed's hosts have."""
    holders = []
    plain = dict(net.hosts)
    try:
        for name, host in list(net.hosts.items()):
            enter = [
                "nsenter",
                f"--net=/proc/{host.pid}/ns/net",
                "unshare",
                "--mount",
                "--propagation",
                "private",
            ]
            process = subprocess.Popen([*enter, "sleep", "infinity"], start_new_session=True)
            holders.append(process)
            wait_until(lambda pid=process.pid: comm(pid) == "sleep", "the host's mounts")  # type: ignore[misc]
            net.hosts[name] = Host(name, process.pid, host.address)
        yield
    finally:
        net.hosts.update(plain)
        for process in holders:
            process.send_signal(signal.SIGKILL)
            process.wait()


def comm(pid: int) -> str:
    """Return what a process is called."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


@contextmanager
def container_stage(folder: Path, root: Path) -> Iterator[ContainerStage]:
    """Build all of it; at the end every container is ended, and nothing is left of any."""
    need_runc()
    temporary = set(Path("/tmp").glob(".criu.*"))
    with stage(folder) as plain, own_mounts(plain.net):
        built = ContainerStage(plain.net, plain.runtime, folder)
        built.root = root
        yield built
        for host in built.hosts.values():
            for state in (built.store / host.name / "runc").glob("*/state.json"):
                pid = int(json.loads(state.read_text())["init_process_pid"])
                app = App(state.parent.name, host, pid, folder / "none")
                plain.runtime.terminate(app)
                built.runc(host.name, "delete", "--force", state.parent.name)
    deadline = time.monotonic() + 2
    while control_groups() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert control_groups() == []
    assert set(Path("/tmp").glob(".criu.*")) == temporary

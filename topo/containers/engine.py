"""What the testbed asks of a container engine, and how to get hold of one.

An engine makes a container that runs and has no network, or a pod that holds one for several containers, says their
processes, changes limits, removes them, and finds those of a run by their label. Everything else about a host happens
outside, through its namespaces.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from migration.tree import ends_within
from topo.containers.limits import Limits, ulimit
from topo.containers.spec import ContainerSpec
from topo.errors import BadNetwork, MissingTool, TestbedError
from topo.waiting import wait_until

ENGINES = ("docker", "podman")
# Seconds: a program that ends so soon has not begun its work, and what an engine needs to notice an end.
AT_ONCE, NOTICED = 0.1, 5.0
RUN_LABEL = "p4ferry.run"
UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "label=disable")
"""The security options of a container that is kept from nothing but by its capabilities."""
SHELLS: tuple[tuple[str, ...], ...] = (("/bin/bash",), ("/bin/sh",))
"""What a container whose image has no command of its own runs: it waits for input that never comes."""
SETUP = "type: make setup CONTAINERS=1"


class NoSuchCommand(TestbedError):
    """A container's first program is not in its image."""


@dataclass(frozen=True)
class Member:
    """A container in a pod, as its engine lists it."""

    id: str
    name: str
    """The engine's name for it."""
    image: str
    pid: int
    """Its first process, 0 if it does not run."""


class Engine(Protocol):
    """A container engine."""

    name: str
    """As users write it: docker, podman."""

    @property
    def address(self) -> str:
        """Where the engine answers, "" if it needs no address."""

    def describe(self) -> str:
        """Say version and settings in a line."""

    def why_no_checkpoints(self) -> str | None:
        """Return why it could not checkpoint any container, and what to type; None if it can."""

    def has_image(self, image: str) -> bool:
        """Say whether an image is there; none is ever pulled."""

    def image_has_command(self, image: str) -> bool:
        """Say whether an image says what runs in it."""

    def start(self, name: str, hostname: str, spec: ContainerSpec, command: tuple[str, ...], run: str) -> str:
        """Make and start a container; returns its id. Raises NoSuchCommand and ContainerFailed."""

    def pid(self, container: str) -> int:
        """Return the container's first process, 0 if it does not run."""

    def log(self, container: str) -> str:
        """Return the last line that a container's program has written."""

    def output(self, container: str) -> str:
        """Return all that a container's program has written."""

    def update(self, container: str, limits: Limits) -> None:
        """Change the limits that are said, at once; raises ContainerFailed."""

    def remove(self, container: str) -> None:
        """End and remove a container, by id or name; one that is not there is no failure."""

    def remove_run(self, run: str) -> int:
        """Remove the containers of a run, running or not, and its pods; returns how many there were."""

    def make_pod(self, name: str, hostname: str, spec: ContainerSpec, run: str) -> tuple[str, int]:
        """Make a pod whose sandbox runs and has no network; returns its id and its process. Raises ContainerFailed."""

    def members(self, pod: str) -> list[Member]:
        """List the containers that were started in a pod or moved to it, its sandbox excepted."""

    def remove_pod(self, pod: str) -> None:
        """End and remove a pod and all that is in it; one that is not there is no failure."""


def connect(name: str, address: str = "") -> Engine:
    """Return an engine that answers; raises MissingTool."""
    if name not in _ENGINES:
        raise BadNetwork(f"there is no container engine {name!r} (there are: {', '.join(_ENGINES)})")
    return _ENGINES[name](address)


def start(engine: Engine, name: str, hostname: str, spec: ContainerSpec, run: str) -> str:
    """Start a container with its command: the one asked for, the image's own, or the first shell that the image has."""
    if not engine.has_image(spec.image):
        raise BadNetwork(
            f"{hostname}: {engine.name} has no image {spec.image}, and none is pulled unasked "
            f"(type: {engine.name} images, {engine.name} pull {spec.image})"
        )
    if spec.rm:
        engine.remove(name)
    commands = [spec.command] if spec.command else [()] if engine.image_has_command(spec.image) else [*SHELLS]
    for command in commands:
        try:
            return engine.start(name, hostname, spec, command, run)
        except NoSuchCommand as ex:
            failure = ex
    if spec.command is None and len(commands) > 1:
        raise BadNetwork(f"{hostname}: image {spec.image} has no command and no shell: give one (dcmd=…)")
    raise BadNetwork(f"{hostname}: {failure}") from failure


def process_of(engine: Engine, container: str) -> int:
    """Return the process of a container that was just started, 0 if it ended at once.

    An engine calls it running until it has noticed its end, which may come a moment after its start.
    """
    pid = engine.pid(container)
    if pid == 0 or not ends_within(pid, AT_ONCE):
        return pid
    wait_until(lambda: engine.pid(container) == 0, NOTICED, 0.02)  # its log is complete by then
    return 0


def ulimits() -> Mapping[str, int]:
    """Return the limits that every container is given explicitly.

    Engines ask for more than a root without CAP_SYS_RESOURCE may give, and then no container starts. Podman lowers its
    own number of processes to the machine's number of PIDs first, so containers may not have more.
    """
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    return {
        "nofile": ulimit(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        "nproc": min(pids, ulimit(resource.getrlimit(resource.RLIMIT_NPROC)[1])),
    }


def _docker(address: str) -> Engine:
    try:
        from topo.containers.docker_engine import DockerEngine
    except ImportError as ex:
        raise MissingTool(f"the Python package docker is not installed; {SETUP}") from ex
    return DockerEngine(address)


def _podman(address: str) -> Engine:
    from topo.containers.podman_engine import PodmanEngine

    return PodmanEngine()


_ENGINES: dict[str, Callable[[str], Engine]] = {"docker": _docker, "podman": _podman}

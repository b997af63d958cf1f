"""Docker, through docker-py and the daemon's API: DOCKER_HOST says where, as for Docker's own command."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import Any

import docker
from docker.errors import APIError, DockerException, NotFound
from docker.types import Ulimit

from migration.slowness import scaled
from topo.containers.engine import RUN_LABEL, SETUP, UNCONFINED, Member, NoSuchCommand, ulimits
from topo.containers.limits import Limits
from topo.containers.spec import ContainerSpec
from topo.errors import ContainerFailed, MissingTool

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
_TIMEOUT = scaled(60.0)  # seconds for any answer
_JOINS = "container:"  # the network mode of a container that uses another one's network
# What runc answers through the daemon when the first program of a container is not there.
_NO_COMMAND = ("no such file or directory", "executable file not found")
_OF_RUNC = "OCI runtime create failed"
"""Docker says in the same words that a helper of its own, apparmor_parser, is not there."""


class DockerEngine:
    """A Docker daemon."""

    name = "docker"

    def __init__(self, address: str = "") -> None:
        """Connect to the daemon at an address, or at DOCKER_HOST; raises MissingTool."""
        self._address = address or os.environ.get("DOCKER_HOST", DEFAULT_ADDRESS)
        try:
            self._client: Any = docker.APIClient(base_url=self._address, version="auto", timeout=_TIMEOUT)
            self._client.ping()
        except DockerException as ex:
            raise MissingTool(_unreachable(self._address)) from ex

    @property
    def address(self) -> str:
        return self._address

    def describe(self) -> str:
        info = self._client.info()
        version, driver = info.get("CgroupVersion", "1"), info["CgroupDriver"]
        moves = "" if info.get("ExperimentalBuild") else ", containers cannot move (type scripts/dockerd)"
        return (
            f"Docker {info['ServerVersion']} at {self._address}, control groups v{version} by {driver}{moves}"
        )

    def why_no_checkpoints(self) -> str | None:
        if self._client.info().get("ExperimentalBuild"):
            return None
        return (
            f'the Docker daemon at {self._address} was started without "experimental", and so cannot checkpoint: '
            "end it and type scripts/dockerd, or add it to its daemon.json"
        )

    def has_image(self, image: str) -> bool:
        try:
            self._client.inspect_image(image)
        except NotFound:
            return False
        except APIError as ex:
            raise ContainerFailed(f"docker: {_reason(ex)}") from ex
        return True

    def image_has_command(self, image: str) -> bool:
        config = self._client.inspect_image(image)["Config"] or {}
        return bool(config.get("Cmd") or config.get("Entrypoint"))

    def start(self, name: str, hostname: str, spec: ContainerSpec, command: tuple[str, ...], run: str) -> str:
        try:
            made: str = self._client.create_container(
                spec.image,
                list(command) or None,
                name=name,
                hostname=None if spec.pod else hostname,  # Docker gives it the sandbox's
                user=spec.user,
                stdin_open=spec.has_input,
                environment=dict(spec.environment),
                labels={**spec.labels, RUN_LABEL: run},
                ports=[_port(port) for port in [*spec.ports, *spec.port_bindings]],
                volumes=[volume for volume in spec.volumes if ":" not in volume],
                host_config=self._host_config(spec),
            )["Id"]
        except APIError as ex:
            raise ContainerFailed(f"docker cannot make {name}: {_reason(ex)}") from ex
        try:
            self._client.start(made)
        except BaseException as ex:
            self.remove(made)
            if not isinstance(ex, APIError):
                raise
            if _lacks_command(_reason(ex)):
                raise NoSuchCommand(
                    f"image {spec.image} has no {' '.join(command[:1]) or 'such command'}"
                ) from ex
            raise ContainerFailed(f"docker cannot start {name}: {_reason(ex)}") from ex
        return made

    def _host_config(self, spec: ContainerSpec) -> Any:
        # cgroup_parent and the cgroup driver stay the daemon's own matter: naming a parent is what fails under the
        # systemd driver.
        config = self._client.create_host_config(
            network_mode=f"{_JOINS}{spec.pod}" if spec.pod else spec.network_mode,
            binds=[volume for volume in spec.volumes if ":" in volume],
            tmpfs=dict(spec.tmpfs) or None,
            publish_all_ports=spec.publish_all_ports and spec.network_mode != "none",
            port_bindings=_bindings(spec) if spec.network_mode != "none" else None,
            dns=list(spec.dns) or None,
            ipc_mode=spec.ipc_mode,
            pid_mode="host" if spec.is_open else None,
            security_opt=list(UNCONFINED) if spec.is_open else None,
            devices=list(spec.devices) or None,
            cap_add=list(spec.cap_add),
            sysctls=dict(spec.sysctls) or None,
            shm_size=spec.shm_size,
            ulimits=[Ulimit(name=name, soft=limit, hard=limit) for name, limit in ulimits().items()],
            **spec.limits.said(),
        )
        # docker-py has no word for what /proc hides and protects.
        return {**config, "MaskedPaths": [], "ReadonlyPaths": []} if spec.is_open else config

    def pid(self, container: str) -> int:
        try:
            return int(self._client.inspect_container(container)["State"]["Pid"])
        except NotFound:
            return 0

    def log(self, container: str) -> str:
        lines = self._client.logs(container, tail=1).decode(errors="replace").strip().splitlines()
        return str(lines[-1]) if lines else ""

    def output(self, container: str) -> str:
        try:
            return str(self._client.logs(container).decode(errors="replace"))
        except (APIError, DockerException) as ex:
            raise ContainerFailed(f"docker cannot read what {container[:12]} says: {_reason(ex)}") from ex

    def update(self, container: str, limits: Limits) -> None:
        try:
            self._client.update_container(container, **limits.said())
        except (APIError, DockerException) as ex:
            raise ContainerFailed(f"docker cannot change limits: {_reason(ex)}") from ex

    def remove(self, container: str) -> None:
        try:
            self._client.remove_container(container, force=True, v=True)
        except NotFound:
            return
        except APIError as ex:
            if ex.status_code == 409 and "already in progress" in _reason(ex):
                return
            raise ContainerFailed(f"docker cannot remove {container[:12]}: {_reason(ex)}") from ex

    def remove_run(self, run: str) -> int:
        found = self._list(label=f"{RUN_LABEL}={run}")
        for container in found:
            self.remove(container["Id"])
        return len(found)

    # ---- pods: Docker has none, so one is a container whose network others join

    def make_pod(self, name: str, hostname: str, spec: ContainerSpec, run: str) -> tuple[str, int]:
        # Otherwise the pod's containers have the machine's name servers, which they cannot reach: a program that looks
        # its own name up when it starts would wait for their answers. On the loopback the answer is a refusal, at once.
        alone = replace(spec, dns=("127.0.0.1",))
        pod = self.start(name, hostname, alone, spec.command or (), run)
        return pod, self.pid(pod)

    def members(self, pod: str) -> list[Member]:
        return [
            Member(one["Id"], one["Names"][0].removeprefix("/"), one["Image"], self.pid(one["Id"]))
            for one in self._joined(pod)
        ]

    def remove_pod(self, pod: str) -> None:
        for container in self._joined(pod):
            self.remove(container["Id"])
        self.remove(pod)

    def _joined(self, pod: str) -> list[dict[str, Any]]:
        return [one for one in self._list() if one["HostConfig"].get("NetworkMode") == f"{_JOINS}{pod}"]

    def _list(self, **filters: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self._client.containers(all=True, filters=filters)
        except (APIError, DockerException) as ex:
            raise ContainerFailed(f"docker cannot list containers: {_reason(ex)}") from ex
        return found


def _bindings(spec: ContainerSpec) -> dict[str, Any]:
    bindings: dict[str, Any] = {}
    for inside, outside in spec.port_bindings.items():
        address, _, port = outside.rpartition(":")
        bindings[inside] = (address, int(port)) if address else int(port)
    return bindings


def _port(text: str) -> tuple[str, str]:
    number, _, protocol = text.partition("/")
    return number, protocol or "tcp"


def _reason(ex: Exception) -> str:
    """Return what the daemon said, on one line."""
    text = (ex.explanation if isinstance(ex, APIError) else None) or str(ex)
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return " ".join(str(text).split())


def _unreachable(address: str) -> str:
    if shutil.which("dockerd") is None and address == DEFAULT_ADDRESS:
        return f"Docker is not installed; {SETUP}"
    remedy = "start its daemon (scripts/dockerd &, or systemctl start docker), or set DOCKER_HOST"
    return f"Docker does not answer at {address}: {remedy}"


def _lacks_command(reason: str) -> bool:
    """Say whether a container was not started since its image has no such command."""
    return _OF_RUNC in reason and ": exec: " in reason and any(words in reason for words in _NO_COMMAND)

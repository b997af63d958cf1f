"""Podman, through its own command: it has no daemon that would have to run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from migration import tree
from migration.engines.podman import base_command
from migration.slowness import scaled
from migration.transfer.pipelimit import CAP_SYS_RESOURCE
from topo.containers.cgroups import lift_cpu_quota
from topo.containers.engine import RUN_LABEL, SETUP, UNCONFINED, Member, NoSuchCommand, ulimits
from topo.containers.limits import Limits
from topo.containers.spec import ContainerSpec
from topo.errors import ContainerFailed, MissingTool

_TIMEOUT = scaled(60.0)  # seconds for any command
_COMMAND_NOT_FOUND = 127  # podman-run(1): the contained command cannot be found
_LOGS = ("--log-driver", "k8s-file")  # a file, whether or not there is a journal
_OPTIONS = {
    "cpu_quota": "--cpu-quota",
    "cpu_period": "--cpu-period",
    "cpu_shares": "--cpu-shares",
    "cpuset_cpus": "--cpuset-cpus",
    "mem_limit": "--memory",
    "memswap_limit": "--memory-swap",
}


class PodmanEngine:
    """Podman, as root."""

    name = "podman"
    address = ""

    def __init__(self) -> None:
        """Look for the command; raises MissingTool."""
        binary = shutil.which("podman")
        if binary is None:
            raise MissingTool(f"Podman is not installed; {SETUP}")
        self._command = base_command(binary)

    def describe(self) -> str:
        done = self._call("info", "--format", "json")
        if done.returncode != 0:
            raise ContainerFailed(f"podman does not work: {_reason(done)}")
        info = json.loads(done.stdout)
        host, version = info["host"], info["version"]["Version"]
        runtime, manager = host["ociRuntime"]["name"], host["cgroupManager"]
        return f"Podman {version} with {runtime}, control groups {host['cgroupVersion']} by {manager}"

    def why_no_checkpoints(self) -> str | None:
        return (
            None
            if shutil.which("runc")
            else f"Podman moves containers with runc, which is not installed; {SETUP}"
        )

    def has_image(self, image: str) -> bool:
        return self._call("image", "exists", image).returncode == 0

    def image_has_command(self, image: str) -> bool:
        (found,) = self._json("image", "inspect", image)
        config = found.get("Config") or {}
        return bool(config.get("Cmd") or config.get("Entrypoint"))

    def start(self, name: str, hostname: str, spec: ContainerSpec, command: tuple[str, ...], run: str) -> str:
        words = ["run", "--detach", "--pull", "never", "--name", name, "--hostname", hostname]
        words += ["--interactive"] if spec.has_input else []
        done = self._call(*words, *self._options(spec, run), spec.image, *command)
        if done.returncode != 0:
            if "is already in use" not in done.stderr:
                self.remove(name)
            if done.returncode == _COMMAND_NOT_FOUND:
                raise NoSuchCommand(f"image {spec.image} has no {' '.join(command[:1]) or 'such command'}")
            raise ContainerFailed(f"podman cannot start {name}: {_reason(done)}")
        return done.stdout.strip().splitlines()[-1]

    def _options(self, spec: ContainerSpec, run: str) -> list[str]:
        """Return a container's options; an option and its value are one word or two, as podman-run(1) has them."""
        words = ["--pod", spec.pod] if spec.pod else ["--network", spec.network_mode]
        words += ["--label", f"{RUN_LABEL}={run}", *_LOGS]
        if spec.is_open:
            words += ["--pid", "host", "--security-opt", "unmask=ALL"]
            words += [word for option in UNCONFINED for word in ("--security-opt", option)]
        for name, limit in ulimits().items():
            words += ["--ulimit", f"{name}={limit}:{limit}"]
        for option, pairs in {
            "--env": spec.environment,
            "--label": spec.labels,
            "--sysctl": spec.sysctls,
        }.items():
            for name, value in pairs.items():
                words += [option, f"{name}={value}"]
        for path, options in spec.tmpfs.items():
            words += ["--tmpfs", f"{path}:{options}" if options else path]
        lists = {"--volume": spec.volumes, "--device": spec.devices, "--cap-add": spec.cap_add}
        if spec.network_mode != "none" and not spec.pod:
            lists |= {"--dns": spec.dns, "--publish": tuple(_published(spec)), "--expose": spec.ports}
            words += ["--publish-all"] if spec.publish_all_ports else []
        for option, values in lists.items():
            for value in values:
                words += [option, value]
        single = {"--ipc": spec.ipc_mode, "--user": spec.user, "--shm-size": spec.shm_size}
        for option, one in single.items():
            words += [] if one is None else [option, str(one)]
        return words + _limits(spec.limits)

    def pid(self, container: str) -> int:
        done = self._call("container", "inspect", "--format", "{{.State.Pid}}", container)
        return int(done.stdout) if done.returncode == 0 else 0

    def log(self, container: str) -> str:
        done = self._call("logs", "--tail", "1", container)
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[-1] if lines else ""

    def output(self, container: str) -> str:
        done = self._call("logs", container, stderr=subprocess.STDOUT)  # in the order of writing
        if done.returncode != 0:
            raise ContainerFailed(f"podman cannot read what {container[:12]} says: {_reason(done)}")
        return done.stdout

    def update(self, container: str, limits: Limits) -> None:
        if limits.cpu_quota == -1:  # podman-update(1) has no word for it, and ignores -1
            try:
                lift_cpu_quota(self.pid(container))
            except OSError as ex:
                raise ContainerFailed(f"podman cannot change limits: {ex}") from ex
            limits = replace(limits, cpu_quota=None)
        if limits == Limits():
            return
        done = self._call("update", *_limits(limits), container)
        if done.returncode != 0:
            raise ContainerFailed(f"podman cannot change limits: {_reason(done)}")

    def remove(self, container: str) -> None:
        done = self._call("rm", "--force", "--time", "0", "--volumes", container)
        if (
            done.returncode != 0
            and "no such container" not in done.stderr
            and "no container with" not in done.stderr
        ):
            raise ContainerFailed(f"podman cannot remove {container[:12]}: {_reason(done)}")

    def remove_run(self, run: str) -> int:
        label = f"label={RUN_LABEL}={run}"
        pods = self._json("pod", "ps", "--filter", label, "--format", "json")
        # In pods, too; a pod's sandbox carries its label, and can only go with it.
        containers = [one for one in self._listed(label) if not one["IsInfra"]]
        for pod in pods:
            self.remove_pod(pod["Id"])
        for container in containers:
            self.remove(container["Id"])
        return len(pods) + len(containers)

    # ---- pods

    def make_pod(self, name: str, hostname: str, spec: ContainerSpec, run: str) -> tuple[str, int]:
        """Share the network and nothing else: IPC and host name are a container's own, and go with it when it moves."""
        sandbox = f"{name}-pause"
        # fmt: off
        words = ["pod", "create", "--name", name, "--hostname", hostname, "--share", "net", "--network", "none",
                 "--infra-image", spec.image, "--infra-name", sandbox, "--label", f"{RUN_LABEL}={run}"]
        # fmt: on
        words += ["--infra-command", " ".join(spec.command)] if spec.command else []
        words += ["--replace"] if spec.rm else []
        for option, pairs in {"--label": spec.labels, "--sysctl": spec.sysctls}.items():
            words += [word for key, value in pairs.items() for word in (option, f"{key}={value}")]
        with sandbox_environment() as environment:
            done = self._call(*words, env=environment)
        if done.returncode != 0:
            raise ContainerFailed(f"podman cannot make {name}: {_reason(done)}")
        pod = done.stdout.strip().splitlines()[-1]
        done = self._call("pod", "start", pod)
        pid = self.pid(sandbox) if done.returncode == 0 else 0
        if pid == 0:
            self.remove_pod(pod)
            raise ContainerFailed(f"podman cannot start {name}: {_reason(done)}")
        return pod, pid

    def members(self, pod: str) -> list[Member]:
        return [
            Member(
                one["Id"], one["Names"][0], one["Image"], int(one["Pid"]) if one["State"] == "running" else 0
            )
            for one in self._listed(f"pod={pod}")
            if not one["IsInfra"]
        ]

    def remove_pod(self, pod: str) -> None:
        done = self._call("pod", "rm", "--force", "--time", "0", "--ignore", pod)
        if done.returncode != 0:
            raise ContainerFailed(f"podman cannot remove {pod[:12]}: {_reason(done)}")

    def _listed(self, criterion: str) -> list[dict[str, Any]]:
        return self._json("ps", "--all", "--filter", criterion, "--format", "json")

    def _json(self, *words: str) -> list[dict[str, Any]]:
        done = self._call(*words)
        if done.returncode != 0:
            raise ContainerFailed(f"podman: {_reason(done)}")
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]") or []
        return found

    def _call(
        self, *words: str, stderr: int = subprocess.PIPE, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=env,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as ex:
            raise ContainerFailed(f"podman {words[0]} did not end in {_TIMEOUT} s") from ex


@contextmanager
def sandbox_environment() -> Iterator[Mapping[str, str] | None]:
    """Give the environment of a `podman pod create` whose sandbox starts with limits that we may give.

    That command has no option for them, only podman's configuration has. Replacing that means to leave out whatever
    else is in it, so it is done only where it must be: for a root that may not raise limits.
    """
    if may_raise_limits():
        yield None
        return
    limits = ", ".join(f'"{name}={limit}:{limit}"' for name, limit in ulimits().items())
    with tempfile.NamedTemporaryFile("w", prefix="p4ferry-containers-", suffix=".conf") as file:
        file.write(f"[containers]\ndefault_ulimits = [{limits}]\n")
        file.flush()
        yield {**os.environ, "CONTAINERS_CONF": file.name}


def may_raise_limits() -> bool:
    """Say whether this process has CAP_SYS_RESOURCE."""
    return tree.may(CAP_SYS_RESOURCE)


def _limits(limits: Limits) -> list[str]:
    return [word for name, value in limits.said().items() for word in (_OPTIONS[name], str(value))]


def _published(spec: ContainerSpec) -> list[str]:
    return [f"{outside}:{inside}" for inside, outside in spec.port_bindings.items()]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = ((done.stderr or "").strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("Error: ") if lines else f"exit status {done.returncode}"

"""Podman, through its own command: it has no daemon that would have to run.

`--runtime runc` where it is installed: crun, Podman's first choice, refuses machines with both versions of control
groups ("cgroups in hybrid mode not supported"). `--cgroup-manager` follows from whether systemd runs the machine:
Podman's guess is wrong in containers and on small systems.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from topo.containers.cgroups import lift_cpu_quota
from topo.containers.engine import RUN_LABEL, SETUP, NoSuchCommand, ulimits
from topo.containers.limits import Limits
from topo.containers.spec import ContainerSpec
from topo.errors import ContainerFailed, MissingTool

_TIMEOUT = 60  # seconds for any command
_COMMAND_NOT_FOUND = 127  # podman-run(1): the contained command cannot be found
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
        manager = "systemd" if Path("/run/systemd/system").is_dir() else "cgroupfs"
        runtime = ["--runtime", "runc"] if shutil.which("runc") else []
        self._command = [binary, *runtime, "--cgroup-manager", manager]

    def describe(self) -> str:
        done = self._call("info", "--format", "json")
        if done.returncode != 0:
            raise ContainerFailed(f"podman does not work: {_reason(done)}")
        info = json.loads(done.stdout)
        host, version = info["host"], info["version"]["Version"]
        runtime, manager = host["ociRuntime"]["name"], host["cgroupManager"]
        return f"Podman {version} with {runtime}, control groups {host['cgroupVersion']} by {manager}"

    def has_image(self, image: str) -> bool:
        return self._call("image", "exists", image).returncode == 0

    def image_has_command(self, image: str) -> bool:
        (found,) = self._json("image", "inspect", image)
        config = found.get("Config") or {}
        return bool(config.get("Cmd") or config.get("Entrypoint"))

    def start(self, name: str, hostname: str, spec: ContainerSpec, command: tuple[str, ...], run: str) -> str:
        words = [
            "run",
            "--detach",
            "--interactive",
            "--pull",
            "never",
            "--name",
            name,
            "--hostname",
            hostname,
        ]
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
        words = ["--network", spec.network_mode, "--label", f"{RUN_LABEL}={run}"]
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
        if spec.network_mode != "none":
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

    def of_run(self, run: str) -> list[str]:
        found = self._json("ps", "--all", "--filter", f"label={RUN_LABEL}={run}", "--format", "json")
        return [container["Id"] for container in found]

    def _json(self, *words: str) -> list[dict[str, Any]]:
        done = self._call(*words)
        if done.returncode != 0:
            raise ContainerFailed(f"podman: {_reason(done)}")
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]") or []
        return found

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as ex:
            raise ContainerFailed(f"podman {words[0]} did not end in {_TIMEOUT} s") from ex


def _limits(limits: Limits) -> list[str]:
    return [word for name, value in limits.said().items() for word in (_OPTIONS[name], str(value))]


def _published(spec: ContainerSpec) -> list[str]:
    return [f"{outside}:{inside}" for inside, outside in spec.port_bindings.items()]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("Error: ") if lines else f"exit status {done.returncode}"

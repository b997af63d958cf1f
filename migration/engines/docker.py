"""Docker, by its daemon's API: DOCKER_HOST says where, as for Docker's own command.

The twin has `--network container:SANDBOX`. The daemon restores only from a container's own `checkpoints` folder below
its data root, so the image is put there. `docker pause` comes before the checkpoint: containerd lets run on what it has
stopped itself, and leaves alone what was paused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import docker
import requests.exceptions
from docker.errors import APIError, DockerException, NotFound

from .. import tree
from ..errors import MigrationError
from ..model import Host
from ..slowness import scaled
from . import cgroup
from .driver import CHECKPOINT, Contained, Debts, EngineFailed, EngineSilent

ADDRESS = "unix:///var/run/docker.sock"
SHIM_TIMEOUT = scaled(1.0)  # in which a removed container's ends by itself
TIMEOUT = scaled(60.0)  # seconds for any answer that does not wait for a migration
# What belongs to a container that has a network of its own, and is refused for one that joins another's.
_OF_A_NETWORK = ("Hostname", "Domainname", "ExposedPorts", "MacAddress")


class DockerDriver:
    """A Docker daemon."""

    name = "docker"
    appends_to_logs = False

    def __init__(self, address: str = "") -> None:
        self.address = address or os.environ.get("DOCKER_HOST", ADDRESS)
        self._client: Any = None
        self._root: Path | None = None
        self.debts = Debts()

    def _api(self) -> Any:
        if self._client is None:
            try:
                self._client = docker.APIClient(base_url=self.address, version="auto", timeout=TIMEOUT)
            except DockerException as ex:
                raise self._silent() from ex
        return self._client

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the API; raises EngineSilent, EngineFailed, NotFound."""
        try:
            return getattr(self._api(), method)(*arguments, **options)
        except NotFound:
            raise
        except APIError as ex:
            raise EngineFailed(f"docker: {_said(ex)}") from ex
        except (DockerException, requests.exceptions.RequestException) as ex:
            raise self._silent() from ex

    def _post(self, path: str, *arguments: str, **options: Any) -> None:
        """Make a call that docker-py has no method for, and that may take as long as a migration."""
        try:
            api = docker.APIClient(base_url=self.address, version=self._api().api_version, timeout=None)
            with contextlib.closing(api):
                answer = api._post_json if "data" in options else api._post
                api._raise_for_status(answer(api._url(path, *arguments), **options))
        except APIError as ex:
            raise EngineFailed(f"docker: {_said(ex)}") from ex
        except (DockerException, requests.exceptions.RequestException) as ex:
            raise self._silent() from ex

    def _silent(self) -> EngineSilent:
        return EngineSilent(f"Docker does not answer at {self.address}")

    def check(self) -> str | None:
        info = self._ask("info")
        self._root = Path(info["DockerRootDir"])
        if not info.get("ExperimentalBuild"):
            return (
                f'the Docker daemon at {self.address} was started without "experimental", and cannot checkpoint: '
                "add it to its daemon.json, or type scripts/dockerd"
            )
        return None

    def find(self, container: str) -> Contained | None:
        try:
            raw = self._ask("inspect_container", container)
        except NotFound:
            return None
        state = raw["State"]
        log = raw["LogPath"] or self._folder(raw["Id"]) / f"{raw['Id']}-json.log"
        has_file = raw["HostConfig"]["LogConfig"]["Type"] == "json-file"
        return Contained(
            raw["Id"],
            raw["Name"].removeprefix("/"),
            int(state["Pid"]) if state["Running"] else 0,
            state["Status"],
            Path((raw["GraphDriver"]["Data"] or {}).get("UpperDir", "")),
            Path(log) if has_file else None,
            raw,
        )

    def find_process(self, pid: int) -> Contained | None:
        for one in self._ask("containers"):
            if one["State"] in ("running", "paused") and (found := self.find(one["Id"])) and found.pid == pid:
                return found
        return None

    def settle(self, found: Contained) -> Contained:
        self.debts.pay(self._remove_late)
        freezer = cgroup.freezer_of(found.pid)
        if found.status == "paused" and not freezer.is_frozen():
            # It was thawed while nobody answered. Docker lets run on only what stands still.
            freezer.freeze()
            self.thaw(found)
            return self.find(found.id) or found
        return found

    def refusal(self, found: Contained) -> str | None:
        config, host = found.raw["Config"], found.raw["HostConfig"]
        if found.status == "paused":
            return "it is paused (docker unpause)"
        if config["Tty"]:
            return "it has a terminal (docker run -t)"
        if host["AutoRemove"]:
            return "it was started with --rm: Docker would remove it before its copy is known to run"
        if host["RestartPolicy"]["Name"] not in ("", "no"):
            return "it has a restart policy: Docker would start the original again"
        if "Test" in (config.get("Healthcheck") or {}) and config["Healthcheck"]["Test"] != ["NONE"]:
            return "it has a health check, whose commands Docker runs in it at any time"
        for kind in ("PidMode", "IpcMode", "UTSMode"):
            if host[kind].startswith(("host", "container:")):
                return f"it shares a namespace with others ({kind} {host[kind]})"
        if not host["NetworkMode"].startswith("container:"):
            return "its network is its own (it does not join its host's sandbox)"
        if found.raw["Driver"] != "overlay2":
            return f"its writable layer is the storage driver {found.raw['Driver']}'s; only overlay2's is carried"
        return None

    def sharers(self, found: Contained) -> list[tuple[str, str]]:
        own = {m["Source"] for m in found.raw["Mounts"] if m["RW"]}
        names = {m["Source"]: m.get("Name") or m["Source"] for m in found.raw["Mounts"]}
        return [
            (one["Names"][0].removeprefix("/"), names[mount["Source"]])
            for one in (self._ask("containers") if own else [])
            if one["Id"] != found.id
            for mount in one["Mounts"]
            if mount["Source"] in own
        ]

    def shared_memory(self, found: Contained) -> Path | None:
        return place if (place := self._folder(found.id) / "mounts" / "shm").is_mount() else None

    def images_of(self, found: Contained) -> Path:
        return self._folder(found.id) / "checkpoints" / CHECKPOINT

    def _folder(self, container: str) -> Path:
        if self._root is None:
            self._root = Path(self._ask("info")["DockerRootDir"])
        return self._root / "containers" / container

    def make_twin(self, found: Contained, source: Host, destination: Host, name: str) -> Contained:
        config = {key: value for key, value in found.raw["Config"].items() if key not in _OF_A_NETWORK}
        host = dict(found.raw["HostConfig"])
        host["NetworkMode"] = f"container:{destination.sandbox}"
        host["ContainerIDFile"] = ""
        named = {bind.split(":")[1] for bind in host.get("Binds") or []}
        named |= {mount["Target"] for mount in host.get("Mounts") or []}
        has_anonymous = any(mount["Destination"] not in named for mount in found.raw["Mounts"])
        host["VolumesFrom"] = [found.id] if has_anonymous else None
        made = self._ask("create_container_from_config", {**config, "HostConfig": host}, name)["Id"]
        twin = self.find(made)
        if twin is None:
            raise EngineFailed(f"docker: the container {name} that it has just made is gone")
        return twin

    def freeze(self, found: Contained) -> None:
        self._ask("pause", found.id)

    def thaw(self, found: Contained) -> None:
        with contextlib.suppress(MigrationError, NotFound):  # it is not paused, or nobody answers
            self._ask("unpause", found.id)
        with contextlib.suppress(MigrationError):
            freezer = cgroup.freezer_of(found.pid)
            if freezer.is_frozen():
                freezer.thaw()

    def checkpoint(self, found: Contained) -> None:
        self._post("/containers/{0}/checkpoints", found.id, data={"CheckpointID": CHECKPOINT, "Exit": False})

    def restore(self, container: str) -> None:
        self._post("/containers/{0}/start", container, params={"checkpoint": CHECKPOINT})

    def forget_checkpoint(self, found: Contained) -> None:
        shutil.rmtree(self._folder(found.id) / "checkpoints" / CHECKPOINT, ignore_errors=True)

    def rename(self, container: str, name: str) -> None:
        self._ask("rename", container, name)

    def remove(self, container: str) -> None:
        try:
            # Without its anonymous volumes if they are the twin's: Docker keeps what is in use.
            self._ask("remove_container", container, force=True, v=True)
        except NotFound:
            return
        except EngineFailed as ex:
            if "already in progress" not in str(ex):
                raise

    def _remove_late(self, container: str) -> None:
        """Remove one that a Docker which was killed in between has begun: it knows nothing of its shim."""
        self.remove(container)
        end_shims(container)


def end_shims(container: str) -> None:
    """End what containerd has left to watch over a container that is removed, if it does not end by itself."""
    deadline = time.monotonic() + SHIM_TIMEOUT
    while (shims := _shims(container)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in shims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _shims(container: str) -> list[int]:
    """List the shims of a container: their command line says whose they are."""
    found = []
    for folder in tree.PROC.iterdir():
        if folder.name.isdigit():
            words = tree.read_or_empty(folder / "cmdline").split("\0")
            if Path(words[0]).name.startswith("containerd-shim") and container in words:
                found.append(int(folder.name))
    return found


def _said(ex: APIError) -> str:
    text = ex.explanation or str(ex)
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return " ".join(str(text).split())

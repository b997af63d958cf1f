"""Podman, by its own command, with runc: crun, its first choice, cannot restore everywhere, and refuses some machines.

The twin is made by the command that made the original, with another name and pod. `podman container restore` reads
the image and a config.json from the container's own folder: of a container that never ran there is none, so it is the
original's, with the twin's paths in it. Podman checkpoints no paused container, so the freezer is ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model import Host
from ..slowness import scaled
from . import cgroup
from .driver import Contained, Debts, EngineFailed, EngineSilent

TIMEOUT = scaled(60.0)  # seconds for a command that does not wait for a migration
_RENAMED = {"--name": "--name", "--pod": "--pod", "--network": "--network", "--net": "--network"}
_DROPPED = ("--detach", "-d", "--replace", "--cidfile", "--pidfile", "--volumes-from")
_WITHOUT_VALUE = ("--detach", "-d", "--replace")


class PodmanDriver:
    """Podman, as root; `tools` is where the CRIU is that it is to use."""

    name = "podman"
    appends_to_logs = True

    def __init__(self, tools: Path | None = None) -> None:
        self._command = base_command(shutil.which("podman") or "podman")
        self.debts = Debts()
        path = os.environ.get("PATH", os.defpath)
        self._env = {**os.environ, "PATH": f"{tools}:{path}" if tools else path}

    def _call(self, *words: str, timeout: float | None = TIMEOUT) -> str:
        """Run the command; raises EngineSilent, EngineFailed."""
        try:
            # A session of its own: Ctrl-C at the terminal is not for it.
            done = subprocess.run(
                [*self._command, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self._env,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as ex:
            raise EngineSilent(f"Podman does not answer: {ex}") from ex
        if done.returncode != 0:
            raise EngineFailed(f"podman {' '.join(words[:2])}: {_said(done)}")
        return done.stdout

    def check(self) -> str | None:
        if shutil.which("runc") is None:
            return "Podman moves containers with runc, which is not installed (make setup CONTAINERS=1)"
        if shutil.which("podman") is None:
            raise EngineSilent("Podman is not installed (make setup CONTAINERS=1)")
        return None

    def find(self, container: str) -> Contained | None:
        try:
            (raw,) = json.loads(self._call("container", "inspect", container))
        except EngineFailed as ex:
            if "no such container" in str(ex) or "no container with" in str(ex):
                return None
            raise
        state = raw["State"]
        config = (raw.get("HostConfig") or {}).get("LogConfig") or {}
        path = config.get("Path") or str(Path(raw["StaticDir"]) / "ctr.log")
        return Contained(
            raw["Id"],
            raw["Name"],
            int(state["Pid"]),
            state["Status"],
            Path(raw["GraphDriver"]["Data"].get("UpperDir", "")),
            Path(path) if config.get("Type") == "k8s-file" else None,
            raw,
        )

    def find_process(self, pid: int) -> Contained | None:
        for one in json.loads(self._call("ps", "--format", "json") or "[]") or []:
            if one["Pid"] == pid:
                return self.find(one["Id"])
        return None

    def settle(self, found: Contained) -> Contained:
        self.debts.pay(self.remove)
        return found

    def refusal(self, found: Contained) -> str | None:
        config, host = found.raw["Config"], found.raw["HostConfig"]
        if found.status == "paused":
            return "it is paused (podman unpause)"
        if config.get("Tty"):
            return "it has a terminal (podman run -t)"
        if host.get("AutoRemove"):
            return "it was started with --rm: Podman would remove it before its copy is known to run"
        if (host.get("RestartPolicy") or {}).get("Name") not in (None, "", "no"):
            return "it has a restart policy: Podman would start the original again"
        if (config.get("Healthcheck") or {}).get("Test") not in (None, [], ["NONE"]):
            return "it has a health check, whose commands Podman runs in it at any time"
        if found.raw["GraphDriver"]["Name"] != "overlay":
            driver = found.raw["GraphDriver"]["Name"]
            return f"its writable layer is the storage driver {driver}'s; only overlay's is carried"
        spec = self._spec(found)
        shared = [ns["type"] for ns in spec["linux"]["namespaces"] if ns.get("path")]
        if shared != ["network"]:
            others = [kind for kind in shared if kind != "network"]
            if others:
                return f"it shares a namespace with others ({', '.join(others)})"
            return "its network is its own (it does not join its host's pod)"
        if not config.get("CreateCommand"):
            return "it was not made by Podman's command, which is what makes its twin"
        return None

    def sharers(self, found: Contained) -> list[tuple[str, str]]:
        own = {m["Source"] for m in found.raw["Mounts"] if m["RW"]}
        names = {m["Source"]: m.get("Name") or m["Source"] for m in found.raw["Mounts"]}
        others = [] if not own else json.loads(self._call("ps", "--format", "json") or "[]") or []
        shared = []
        for one in others:
            if one["Id"] != found.id and one["Mounts"] and (other := self.find(one["Id"])) is not None:
                shared += [
                    (other.name, names[m["Source"]]) for m in other.raw["Mounts"] if m["Source"] in own
                ]
        return shared

    def shared_memory(self, found: Contained) -> Path | None:
        return place if (place := Path(found.raw["StaticDir"]) / "shm").is_mount() else None

    def images_of(self, found: Contained) -> Path:
        return Path(found.raw["StaticDir"]) / "checkpoint"

    def make_twin(self, found: Contained, source: Host, destination: Host, name: str) -> Contained:
        config = found.raw["Config"]
        words = as_create(
            config["CreateCommand"], config.get("Cmd") or [], self._joining(found, destination, name)
        )
        if any(mount["Type"] == "volume" for mount in found.raw["Mounts"]):
            words[1:1] = ["--volumes-from", found.id]
        made = self._call(*words).strip().splitlines()[-1]
        twin = self.find(made)
        if twin is None:
            raise EngineFailed(f"podman: the container {name} that it has just made is gone")
        spec = self._translated(found, twin, source, destination)
        (Path(twin.raw["StaticDir"]) / "config.json").write_text(spec)
        return twin

    def _joining(self, found: Contained, destination: Host, name: str) -> dict[str, str]:
        sandbox = str(destination.sandbox)
        if found.raw.get("Pod"):
            return {"--name": name, "--pod": sandbox}
        return {"--name": name, "--network": f"container:{sandbox}"}

    def _translated(self, found: Contained, twin: Contained, source: Host, destination: Host) -> str:
        """Return the original's config.json with the twin's ids and folders, and the destination's network."""
        pairs = {
            found.id: twin.id,
            found.upper.parent.name: twin.upper.parent.name,
            f"/proc/{source.pid}/ns/": f"/proc/{destination.pid}/ns/",
        }
        if found.raw.get("Pod"):
            pairs[found.raw["Pod"]] = twin.raw["Pod"]
        pairs |= dict(zip(found.raw["Dependencies"] or [], twin.raw["Dependencies"] or [], strict=False))
        text = json.dumps(self._spec(found))
        for old, new in pairs.items():
            text = text.replace(old, new)
        return text

    def _spec(self, found: Contained) -> Any:
        return json.loads((Path(found.raw["StaticDir"]) / "config.json").read_text())

    def freeze(self, found: Contained) -> None:
        cgroup.freezer_of(found.pid).freeze()

    def thaw(self, found: Contained) -> None:
        with contextlib.suppress(EngineFailed):
            cgroup.freezer_of(found.pid).thaw()

    def checkpoint(self, found: Contained) -> None:
        shutil.rmtree(self.images_of(found), ignore_errors=True)
        options = ["--leave-running", "--tcp-established", "--file-locks", "--keep"]
        self._call("container", "checkpoint", *options, found.id, timeout=None)

    def restore(self, container: str) -> None:
        options = ["--tcp-established", "--file-locks", "--keep"]
        self._call("container", "restore", *options, container, timeout=None)

    def forget_checkpoint(self, found: Contained) -> None:
        folder = Path(found.raw["StaticDir"])
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        for name in ("dump.log", "restore.log", "stats-dump", "stats-restore", "network.status"):
            (folder / name).unlink(missing_ok=True)

    def rename(self, container: str, name: str) -> None:
        self._call("rename", container, name)

    def remove(self, container: str) -> None:
        try:
            self._call("rm", "--force", "--time", "0", "--volumes", container)
        except EngineFailed as ex:
            if "no such container" not in str(ex) and "no container with" not in str(ex):
                raise


def base_command(binary: str) -> list[str]:
    """Return Podman's command with what holds for all that it is asked.

    runc where it is installed: crun, its first choice, refuses machines with both versions of control groups ("cgroups
    in hybrid mode not supported"). And Podman's guess of who manages the groups is wrong in containers and on small
    systems.
    """
    manager = "systemd" if Path("/run/systemd/system").is_dir() else "cgroupfs"
    runtime = ["--runtime", "runc"] if shutil.which("runc") else []
    return [binary, *runtime, "--cgroup-manager", manager]


def as_create(made: Sequence[str], command: Sequence[str], own: Mapping[str, str]) -> list[str]:
    """Turn a `podman run …` or `podman create …` into the `create` of a twin: options named in `own` have its values.

    The image and its command, which come last, are left alone.
    """
    begin = next(number for number, word in enumerate(made) if word in ("run", "create"))
    words = list(made[begin + 1 :])
    tail = len(words) - len(command) if command and words[-len(command) :] == list(command) else len(words)
    kept: list[str] = []
    skip = False
    for word in words[:tail]:
        name, _, value = word.partition("=")
        if skip:
            skip = False
        elif name in _RENAMED or name in _DROPPED:
            skip = not value and name not in _WITHOUT_VALUE
        else:
            kept.append(word)
    options = [word for pair in own.items() for word in pair]
    return ["create", *options, *kept, *words[tail:]]


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("Error: ") if lines else f"it ended with status {done.returncode}"

"""runc, as far as it is needed: to start a container, to end one, and to know one that has been restored.

runc keeps one file for each container, ROOT/NAME/state.json. A container that CRIU has restored without runc is known
to it by a copy of that file with its new process and paths. Only a few of the file's keys are touched here; what others
say stays as that version of runc wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tree
from .custody import Custody
from .errors import LaunchFailed
from .model import Host
from .slowness import scaled

if TYPE_CHECKING:
    from .containers import Place

TIMEOUT = scaled(30.0)
STATE = "state.json"


def find() -> str:
    """Return the path of runc; raises LaunchFailed if it is not installed."""
    if (found := shutil.which("runc")) is None:
        raise LaunchFailed("runc is not installed: run `make setup CONTAINERS=1`")
    return found


def run(custody: Custody, place: Place, host: Host, log: Path) -> int:
    """Let runc start the container of a bundle in a host; return the PID of its init, a child of the keeper by now."""
    pid_file, said = place.folder / "init.pid", place.folder / "runc.log"
    # fmt: off
    command = [find(), "--root", str(place.state), "--log", str(said), "--log-format", "json", "run", "--detach",
               "--bundle", str(place.folder), "--pid-file", str(pid_file), place.name]
    # fmt: on
    status = custody.run_tool(host.pid, command, os.environ, log, TIMEOUT)
    if status != 0:
        raise LaunchFailed(_last_error(said) or f"runc ended with status {status}")
    return int(pid_file.read_text())


def _last_error(log: Path) -> str:
    """Return what runc has said last, without where in its sources that was."""
    for line in reversed(tree.read_or_empty(log).splitlines()):
        try:
            message = str(json.loads(line)["msg"])
        except (ValueError, KeyError, TypeError):
            continue
        return message.removeprefix("runc run failed: ").strip()
    return ""


def delete(place: Place) -> None:
    """Let runc end a container and forget it, its control group included; one that it does not know is no error."""
    if not (place.state / place.name).exists() or shutil.which("runc") is None:
        return
    subprocess.run(
        ["runc", "--root", str(place.state), "delete", "--force", place.name],
        capture_output=True,
        timeout=TIMEOUT,
        start_new_session=True,
    )


def forget(place: Place) -> None:
    """Let runc know nothing of a container, which lives on elsewhere with its control group."""
    shutil.rmtree(place.state / place.name, ignore_errors=True)


def note(place: Place, pid: int, origin: Place | None = None, moved: Mapping[str, str] | None = None) -> None:
    """Let runc know the container at a place by its new process.

    It knew it at `origin`, if that is given; `moved` says what became of the paths there.
    """
    known = (origin or place).state / place.name / STATE
    try:
        state = json.loads(known.read_text())
    except (OSError, ValueError):  # it was deleted by hand, or noted already
        return
    paths = {f"/proc/{state['init_process_pid']}/": f"/proc/{pid}/", **(moved or {})}
    state = _renamed(state, paths)
    state["init_process_pid"] = pid
    state["init_process_start"] = tree.start_time(pid)
    folder = place.state / place.name
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    partial = folder / f"{STATE}.partial"
    partial.write_text(json.dumps(state))
    partial.replace(folder / STATE)


def _renamed(value: Any, paths: Mapping[str, str]) -> Any:
    """Change paths, and what is below them, wherever they occur in a JSON value ("bundle=/path" included)."""
    if isinstance(value, dict):
        return {key: _renamed(one, paths) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, paths) for one in value]
    if isinstance(value, str):
        for old, new in paths.items():
            head, found, rest = value.partition(old)
            if found and head in ("", "bundle=") and (old.endswith("/") or rest[:1] in ("", "/")):
                return f"{head}{new}{rest}"
    return value


def cgroups(place: Place) -> list[Path]:
    """List the folders of a container's control group, one for each hierarchy."""
    try:
        paths = json.loads((place.state / place.name / STATE).read_text())["cgroup_paths"]
    except (OSError, ValueError, KeyError):
        return []
    return [Path(path) for path in dict.fromkeys(paths.values())]

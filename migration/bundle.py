"""What runc is told of a container: the config.json of an OCI bundle (runtime specification 1.0). Pure.

A container here is made to be moved. It has no network namespace of its own: it shares that of its host, as a container
shares its pod's, so CRIU has no interfaces to carry. /dev is part of the writable layer and not a tmpfs, since CRIU
packs every tmpfs with `tar` while the program stands still. Devices other than runc's usual ones, terminals, resource
limits and masked paths are left out: containers of a testbed are run by its owner, as root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""Those that engines give by default."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAMESPACES = ("pid", "mount", "ipc", "uts")


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in a container."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"
    user: tuple[int, int] = (0, 0)
    """Its user and its group."""


def configuration(
    name: str, program: Program, rootfs: Path, cgroup: str, binds: Sequence[tuple[str, Path]] = ()
) -> dict[str, Any]:
    """Return the config.json of a container; `binds` are directories inside and what is mounted there."""
    uid, gid = program.user
    env = {"PATH": PATH, "HOME": "/root" if uid == 0 else "/", "HOSTNAME": name, **program.env}
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": list(program.argv),
            "env": [f"{key}={value}" for key, value in env.items()],
            "cwd": program.cwd,
            "capabilities": {kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": str(rootfs), "readonly": False},
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            *(_mount(inside, "bind", str(folder), "rbind", "rw") for inside, folder in binds),
        ],
        "linux": {
            "cgroupsPath": f"/{cgroup}",
            "namespaces": [{"type": kind} for kind in NAMESPACES],
        },
    }


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def ids_of(user: str, passwd: str, group: str) -> tuple[int, int]:
    """Look up "user", "uid", "user:group" or "" in a root file system's two files; raises LookupError."""
    name, _, team = user.partition(":")
    uid, gid = 0, 0
    if name:
        entry = _entry(passwd, name, 2)
        if entry is None and not name.isdigit():
            raise LookupError(f"there is no user {name!r}")
        uid, gid = (int(entry[2]), int(entry[3])) if entry else (int(name), 0)
    if team:
        found = _entry(group, team, 2)
        if found is None and not team.isdigit():
            raise LookupError(f"there is no group {team!r}")
        gid = int(found[2]) if found else int(team)
    return uid, gid


def _entry(text: str, wanted: str, number: int) -> list[str] | None:
    """Find a line of passwd or group by its name, or by its number in the field `number`."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > number + 1 and wanted in (fields[0], fields[number]):
            return fields
    return None

"""What a container host is to be: containernet's parameters, read and checked before anything is made.

Pure but for the working directory, which relative volumes start from. New parameter: one field of `ContainerSpec`, one
row in `_READERS`, and its words in both engines.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topo.containers.limits import DEFAULT_PERIOD, Limits, parse_limits, parse_size, with_swap
from topo.errors import BadNetwork

LIMITS = ("cpu_quota", "cpu_period", "cpu_shares", "cpuset_cpus", "mem_limit", "memswap_limit")
HOST_PARAMETERS = frozenset({"ip", "mac", "defaultRoute", "lo", "cores", "inNamespace"})
"""What Mininet's own hosts take; everything else is the container's."""
CAPABILITIES = ("NET_ADMIN", "NET_RAW")
"""What every host may do: containernet's hosts have both (`ip`, `ping`), Podman alone would give neither."""
UNSUPPORTED = {
    "build_params": "build the image first, with docker build or podman build",
    "storage_opt": "the engine's storage is set up in the engine",
    "device_requests": "name the devices in `devices`",
    "privileged": "give the capabilities that are needed in `cap_add`",
}


@dataclass(frozen=True)
class ContainerSpec:
    """A container as described."""

    image: str
    command: tuple[str, ...] | None = None
    """None is the image's own command, or a shell if it has none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    network_mode: str = "none"
    port_bindings: Mapping[str, str] = field(default_factory=dict)
    """Ports of the container ("80/tcp") and where they are reached on the machine ("8080", "127.0.0.1:8080")."""
    publish_all_ports: bool = True
    ports: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    ipc_mode: str | None = None
    devices: tuple[str, ...] = ()
    cap_add: tuple[str, ...] = CAPABILITIES
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_size: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    rm: bool = False
    """Remove a container that has this one's name already."""
    pod: str = ""
    """The engine's id of the pod, or sandbox, whose network it joins."""
    is_open: bool = False
    """Whether it sees the machine's processes and settings, and may call anything that its capabilities allow."""
    has_input: bool = True
    """Whether its first program can wait for input, which never comes: a shell ends otherwise."""


def parse_spec(name: str, dimage: object, dcmd: object = None, **params: Any) -> ContainerSpec:
    """Read containernet's parameters; raises BadNetwork."""
    if not isinstance(dimage, str) or not dimage:
        raise BadNetwork(f'{name}: a container host needs an image: dimage="NAME"')
    for parameter in params:
        _check_known(name, parameter)
    try:
        values = {
            key: _READERS[key](value)
            for key, value in params.items()
            if key in _READERS and value is not None
        }
        return ContainerSpec(dimage, _command(dcmd), limits=_limits(params), **values)
    except (ValueError, TypeError) as ex:
        raise BadNetwork(f"{name}: {ex}") from ex


def _check_known(name: str, parameter: str) -> None:
    known = [*LIMITS, "cpus", *_READERS, "dimage", "dcmd", *HOST_PARAMETERS]
    if parameter in UNSUPPORTED:
        raise BadNetwork(f"{name}: {parameter} is not supported: {UNSUPPORTED[parameter]}")
    if parameter not in known:
        close = difflib.get_close_matches(parameter, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
        raise BadNetwork(f"{name}: a container host has no parameter {parameter}; {hint}")


def _limits(params: Mapping[str, Any]) -> Limits:
    limits = {key: params[key] for key in LIMITS if key in params}
    if params.get("cpus") is not None:
        limits |= {"cpu_quota": int(float(params["cpus"]) * DEFAULT_PERIOD), "cpu_period": DEFAULT_PERIOD}
    for key, none in {"cpu_quota": (0, -1), "mem_limit": (0, -1)}.items():
        if limits.get(key) in none:  # how people say that there is no limit, as is so without
            del limits[key]
    asked = parse_limits(**limits)
    with_swap(asked, Limits())  # they must fit together
    return asked


def _command(dcmd: object) -> tuple[str, ...] | None:
    if dcmd is None or isinstance(dcmd, str):
        return tuple(shlex.split(dcmd)) if dcmd else None
    return _words("dcmd")(dcmd)


def _words(key: str) -> Callable[[Any], tuple[str, ...]]:
    """Return a reader of a list of words; one word alone is a list of one."""

    def read(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Mapping) or not all(isinstance(word, str | int | tuple) for word in value):
            raise ValueError(f"{key} {value!r} is not a list of words")
        return tuple("/".join(map(str, word)) if isinstance(word, tuple) else str(word) for word in value)

    return read


def _pairs(key: str, between: str) -> Callable[[Any], dict[str, str]]:
    """Return a reader of names with values, as a dict or as a list of words with something between."""

    def read(value: Any) -> dict[str, str]:
        if isinstance(value, Mapping):
            return {str(name): "" if one is None else str(one) for name, one in value.items()}
        pairs = (word.partition(between) for word in _words(key)(value))
        return {name: one for name, _, one in pairs}

    return read


def _volumes(value: Any) -> tuple[str, ...]:
    """Read SOURCE:TARGET[:MODE], or docker-py's {SOURCE: {"bind": TARGET, "mode": MODE}}."""
    if isinstance(value, Mapping):
        value = [":".join((source, bind["bind"], bind.get("mode", "rw"))) for source, bind in value.items()]
    return tuple(_volume(text) for text in _words("volumes")(value))


def _volume(text: str) -> str:
    source, colon, rest = text.partition(":")
    if not (rest if colon else source).startswith("/"):
        raise ValueError(f"volume {text!r} is not SOURCE:TARGET[:MODE] with an absolute TARGET")
    if colon and source.startswith((".", "~")):
        source = str(Path(source).expanduser().resolve())
    return source + colon + rest


def _bindings(value: Any) -> dict[str, str]:
    """Read {PORT of the container: PORT, (ADDRESS, PORT) or None on the machine}."""
    if not isinstance(value, Mapping):
        raise ValueError(f"port_bindings {value!r} is not a dict of ports")
    bound = {}
    for inside, outside in value.items():
        text = ":".join(map(str, outside)) if isinstance(outside, tuple) else str(outside or 0)
        number, _, protocol = str(inside).partition("/")
        if not number.isdigit() or not text.rpartition(":")[2].isdigit():
            raise ValueError(f"port_bindings {inside!r}: {outside!r} does not bind a port to a port")
        bound[f"{number}/{protocol or 'tcp'}"] = text
    return bound


def _capabilities(value: Any) -> tuple[str, ...]:
    names = [name.upper().removeprefix("CAP_") for name in _words("cap_add")(value)]
    return tuple(dict.fromkeys([*names, *CAPABILITIES]))


def _network(value: Any) -> str:
    if value not in ("none", "bridge"):
        raise ValueError(f"network_mode {value!r} is not none (links are added with addLink) or bridge")
    return str(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "environment": _pairs("environment", "="),
    "volumes": _volumes,
    "tmpfs": _pairs("tmpfs", ":"),
    "network_mode": _network,
    "port_bindings": _bindings,
    "publish_all_ports": bool,
    "ports": _words("ports"),
    "dns": _words("dns"),
    "ipc_mode": str,
    "devices": _words("devices"),
    "cap_add": _capabilities,
    "sysctls": _pairs("sysctls", "="),
    "shm_size": parse_size,
    "labels": _pairs("labels", "="),
    "user": str,
    "rm": bool,
}

"""HOST[:PORT]/NAME[:TAG], the name of an image in a registry; the host is this machine and no other."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ..errors import RegistryFailed

# OCI distribution specification, "Pulling manifests".
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATTERN = re.compile(
    rf"(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{{1,5}}))?"
    rf"/(?P<name>{_PART}(?:/{_PART})*)(?::(?P<tag>[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,127}}))?\Z"
)
DEFAULT_PORT = 5000


@dataclass(frozen=True)
class Reference:
    """An image in a registry."""

    address: str
    """A loopback address, as it is written in a URL."""
    port: int
    name: str
    tag: str

    @property
    def url(self) -> str:
        """Return where the registry answers. Plain http: nothing leaves the machine."""
        return f"http://{self.address}:{self.port}"

    def __str__(self) -> str:
        return f"{self.address}:{self.port}/{self.name}:{self.tag}"


def parse(text: str) -> Reference:
    """Read a reference; a registry elsewhere is refused before anything is sent."""
    found = _PATTERN.match(text)
    if found is None or len(found["name"]) > 255:
        raise RegistryFailed(f"{text[:200]!r} is not the name of an image in a registry: HOST:PORT/NAME:TAG")
    port = int(found["port"] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise RegistryFailed(f"{port} is not a port number")
    return Reference(_loopback(found["host"]), port, found["name"], found["tag"] or "latest")


def _loopback(host: str) -> str:
    """Return a loopback address. `localhost` is not looked up: who answers the name server is not asked."""
    if host.lower() == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise RegistryFailed(
            f"{host} is not on this machine: a checkpoint holds a program's memory, and goes to loopback only"
        )
    return f"[{address}]" if address.version == 6 else str(address)

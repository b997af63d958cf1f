"""What the hosts of a testbed are, and with them what its programs run in."""

from __future__ import annotations

from enum import Enum

from topo.errors import BadNetwork


class HostKind(str, Enum):
    """The value of `--hosts`."""

    PROCESS = "process"
    """Namespaces that hold plain processes."""
    RUNC = "runc"
    """The same, in which runc starts containers."""
    DOCKER = "docker"
    """Pods: a sandbox of Docker's, whose network containers join."""
    PODMAN = "podman"
    """Podman's pods."""

    @property
    def engine(self) -> str | None:
        """The container engine that the hosts are pods of."""
        return self.value if self in (HostKind.DOCKER, HostKind.PODMAN) else None

    @property
    def uses_images(self) -> bool:
        """Whether programs are started from images where both is possible."""
        return self is not HostKind.PROCESS


def parse_kind(text: str) -> HostKind:
    """Read a kind; raises BadNetwork."""
    try:
        return HostKind(text)
    except ValueError as ex:
        choices = ", ".join(kind.value for kind in HostKind)
        raise BadNetwork(f"hosts {text!r} are not one of {choices}") from ex

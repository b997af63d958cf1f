"""What a migration asks of a container engine, and what the engine says of a container.

A container moves by its *twin*: one of the same make in the destination's sandbox, made while the original runs. Twins
are called after their originals, with TWIN behind the name, until they take its place: so a recovery after a crash
knows them, and the name that they are to have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import MigrationError
from ..model import Host

TWIN = ".p4ferry-twin"
CHECKPOINT = "p4ferry"  # what the engine calls the checkpoint


class EngineSilent(MigrationError):
    """The engine does not answer."""


class EngineFailed(MigrationError):
    """The engine has answered with an error."""


@dataclass(frozen=True, slots=True)
class Contained:
    """A container, as its engine knows it."""

    id: str
    name: str
    pid: int
    """Of its first process; 0 if it does not run."""
    status: str
    upper: Path
    """Its writable layer."""
    log: Path | None
    """Where the engine keeps what it prints, if that is a file."""
    raw: Any
    """Everything that the engine has said."""

    @property
    def merged(self) -> Path:
        """Where image and writable layer are mounted as one."""
        return self.upper.parent / "merged"

    @property
    def user_name(self) -> str:
        """The name that the user gave."""
        return self.name.removesuffix(TWIN)


class Debts:
    """Twins that could not be removed, because their engine did not answer."""

    def __init__(self) -> None:
        self._owed: set[str] = set()

    def owe(self, twin: str) -> None:
        """Note one."""
        self._owed.add(twin)

    def pay(self, remove: Callable[[str], None]) -> None:
        """Remove them, each once."""
        for twin in sorted(self._owed):
            remove(twin)
            self._owed.discard(twin)


class Driver(Protocol):
    """A container engine."""

    name: str
    debts: Debts
    """What `settle` makes up for."""
    appends_to_logs: bool
    """Whatever stands in a container's log, it adds to it; else it goes by what it has written itself."""

    def check(self) -> str | None:
        """Say why it cannot checkpoint anything, or None; raises EngineSilent."""

    def find(self, container: str) -> Contained | None:
        """Look a container up by id or name; raises EngineSilent."""

    def find_process(self, pid: int) -> Contained | None:
        """Look a container up by its first process."""

    def settle(self, found: Contained) -> Contained:
        """Do what an engine that did not answer was spared: return the container as the engine knows it now."""

    def refusal(self, found: Contained) -> str | None:
        """Say what this engine cannot take along of a container, or None."""

    def sharers(self, found: Contained) -> list[tuple[str, str]]:
        """List who has a volume of it that both may write to: container and volume."""

    def shared_memory(self, found: Contained) -> Path | None:
        """Return where on the machine its /dev/shm is mounted; None if it is only in it, where CRIU carries it."""

    def images_of(self, found: Contained) -> Path:
        """Return the folder that a checkpoint is written to, and a restore reads."""

    def make_twin(self, found: Contained, source: Host, destination: Host, name: str) -> Contained:
        """Make a container of the same make in the destination's sandbox, and do not start it."""

    def freeze(self, found: Contained) -> None:
        """Stop every process."""

    def thaw(self, found: Contained) -> None:
        """Let them run on, whether the engine answers or not."""

    def checkpoint(self, found: Contained) -> None:
        """Write the image of a frozen container, which stays frozen."""

    def restore(self, container: str) -> None:
        """Start a container from what is in its image folder; returns when it has been built."""

    def forget_checkpoint(self, found: Contained) -> None:
        """Remove a container's checkpoint."""

    def rename(self, container: str, name: str) -> None:
        """Give a container another name."""

    def remove(self, container: str) -> None:
        """End and remove a container; one that is not there is no failure."""

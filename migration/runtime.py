"""What a migration asks of whatever runs the programs: plain processes now, containers later.

A passage is one way of one program from host to host. Its calls come in this order, and `back_out` may
come at any point before `end_source`:

    open_passage → freeze → restore → end_source → resume → close

Until `end_source` the original is there, running or frozen; until `resume` the copy has not run one
instruction. So at every moment at most one of the two runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from .inet import InetSocket
from .model import App, Host


class Passage(Protocol):
    """One program between two hosts."""

    @property
    def images(self) -> Path:
        """The folder that `freeze` fills; nobody changes it."""

    @property
    def moved(self) -> Path:
        """The folder that `restore` reads, which the caller fills from `images`."""

    def freeze(self) -> None:
        """Stop the program and write its whole state to `images`."""

    def restore(self) -> int:
        """Build the program at the destination, stopped before its first instruction; return its PID."""

    def end_source(self) -> None:
        """End the frozen original; its connections are not closed, only forgotten."""

    def resume(self) -> None:
        """Let the copy run."""

    def back_out(self) -> None:
        """Destroy what `restore` built, and let the original run on as if nothing had been."""

    def revive(self) -> int:
        """Build and run the program at its source again after the original has ended; return its PID."""

    def close(self) -> None:
        """Let go of everything that is not the program."""


class Runtime(Protocol):
    """A way of running programs in hosts."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img, as the CRIU in use has them (pycriu.images.fdinfo_pb2)."""

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img (pycriu.images.tcp_stream_pb2)."""

    def check(self, app: App, destination: Host) -> None:
        """Raise Refused if the program, as it is now, cannot be moved."""

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets that the program's processes have open."""

    def is_running(self, app: App) -> bool:
        """Say whether the program runs."""

    def image_estimate(self, app: App) -> int:
        """Bound the size of the program's checkpoint, in bytes."""

    def open_passage(self, app: App, destination: Host, folder: Path, *, lock: bool) -> Passage:
        """Get ready to freeze; `lock` makes the source drop packets for the frozen program."""

    def revive(self, app: App, host: Host, images: Path) -> int:
        """Restore a program at its source from the images that a crashed migration left; return its PID."""

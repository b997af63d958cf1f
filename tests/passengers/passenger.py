"""What a passenger is: a server, and clients that notice whatever is wrong."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migration.namespaces import in_netns

PATH = "/usr/lib/postgresql/15/bin:/usr/lib/postgresql/17/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PAUSE = 0.02  # seconds between two requests of a client: all together they keep one processor half busy


class Wrong(AssertionError):
    """A client got another answer than the right one."""


@dataclass(frozen=True)
class Passenger:
    """A server from a package of Debian's."""

    name: str
    package: str
    program: str
    port: int
    prepare: Callable[[Path], Sequence[str]]
    """Makes its files in an empty folder; returns its command."""
    clients: tuple[Callable[[Client], None], ...]
    """Each makes connections, and checks until it is told to stop; raises Wrong."""
    is_ready: Callable[[Client], bool] = lambda client: client.can_connect()
    """Asks once."""
    places: tuple[Path, ...] = ()
    """Folders that its package makes when its service is started."""
    leaves: tuple[Path, ...] = ()
    """Folders that it makes itself, and nobody takes away."""
    passing: str = "never"
    """What a move may be refused for that is over soon (a regular expression)."""
    is_large: bool = False
    """Takes part in a full run only: its package brings hundreds of megabytes."""

    @property
    def missing(self) -> str | None:
        """What keeps it from being run here."""
        if shutil.which(self.program, path=PATH) is None:
            return f"{self.name} is not installed (apt-get install {self.package})"
        return None

    @contextmanager
    def at_home(self) -> Iterator[None]:
        """Make the folders that it needs, and take away those that were not there."""
        made = [place for place in self.places if not place.exists()]
        left = [place for place in self.leaves if not place.exists()]
        try:
            for place in made:
                place.mkdir(mode=0o755)
            yield
        finally:
            for place in (*made, *left):
                shutil.rmtree(place, ignore_errors=True)


class Client:
    """One client's way to the server, from its own host."""

    def __init__(self, pid: int, address: tuple[str, int], folder: Path) -> None:
        self.pid, self.address, self.folder = pid, address, folder
        self.rounds = 0
        self._over = threading.Event()

    def connect(self, timeout: float = 60.0) -> socket.socket:
        """Open a connection."""
        return in_netns(self.pid, lambda: socket.create_connection(self.address, timeout))

    def can_connect(self) -> bool:
        """Say whether it takes a connection."""
        try:
            self.connect(1.0).close()
        except OSError:
            return False
        return True

    def datagrams(self, timeout: float = 60.0) -> socket.socket:
        """Open a UDP socket that only hears the server."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.connect(self.address)
            made.settimeout(timeout)
            return made

        return in_netns(self.pid, make)

    def start(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a program on the client's host."""
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": PATH, **(env or {})},
        )

    def start_raw(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program on the client's host, to talk to in bytes."""
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": PATH},
        )

    def goes_on(self) -> bool:
        """Count a round; say whether there is to be another, after a moment."""
        self.rounds += 1
        return not self._over.wait(PAUSE)

    def stop(self) -> None:
        """Let it end after its round."""
        self._over.set()


class Load:
    """All clients of a passenger at work, each in a thread."""

    def __init__(self, passenger: Passenger, clients: Sequence[Client]) -> None:
        self.errors: list[str] = []
        self._clients = clients
        self._threads = [
            threading.Thread(target=self._work, args=(work, client), daemon=True)
            for work, client in zip(passenger.clients, clients, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, work: Callable[[Client], None], client: Client) -> None:
        try:
            work(client)
        except Exception as ex:
            self.errors.append(f"{work.__name__}, round {client.rounds}: {type(ex).__name__}: {ex}")

    @property
    def rounds(self) -> list[int]:
        """How many rounds each has done."""
        return [client.rounds for client in self._clients]

    def stop(self) -> None:
        """End all, and see that each has ended."""
        for client in self._clients:
            client.stop()
        for thread in self._threads:
            thread.join(120)
        if any(thread.is_alive() for thread in self._threads):
            self.errors.append("a client waits for ever")


@contextmanager
def under_load(passenger: Passenger, pid: int, address: tuple[str, int], folder: Path) -> Iterator[Load]:
    """Let all clients of a passenger work; at the end each must have found everything right."""
    load = Load(passenger, [Client(pid, address, folder) for _ in passenger.clients])
    try:
        yield load
    finally:
        load.stop()


def as_user(user: str, *command: str) -> list[str]:
    """Return a command that runs as a user, with its groups."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]


def give(folder: Path, user: str) -> None:
    """Make a folder a user's."""
    shutil.chown(folder, user, pwd.getpwnam(user).pw_gid)


def content(size: int, seed: int) -> bytes:
    """Return bytes that are always the same for a seed."""
    out = bytearray()
    block = seed.to_bytes(8, "big")
    while len(out) < size:
        block = hashlib.sha256(block).digest()
        out += block * 128
    return bytes(out[:size])


def expect(found: Any, right: Any, what: str) -> None:
    """Raise Wrong unless both are the same."""
    if found != right:
        raise Wrong(f"{what}: {str(found)[:200]} instead of {str(right)[:200]}")

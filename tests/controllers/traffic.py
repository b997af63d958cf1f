"""Many TCP connections that talk all the time, and servers that answer: any that breaks is noticed."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.controllers.network import Network

_MESSAGE = struct.Struct("!I")


class _Loop:
    """A thread that serves a selector until told to stop."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.stopping = False
        self.lock = threading.Lock()

    def start(self) -> None:
        self.thread.start()

    def _run(self) -> None:
        while not self.stopping:
            for key, _ in self.selector.select(0.05):
                key.data(key.fileobj)

    def stop(self) -> None:
        self.stopping = True
        if self.thread.is_alive():
            self.thread.join()
        for key in list((self.selector.get_map() or {}).values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self.selector.close()


class Servers(_Loop):
    """Servers on several hosts; each puts the number of its host in front of what it sends back."""

    def __init__(self, network: Network, hosts: list[str], port: int = 7000) -> None:
        super().__init__()
        for host in hosts:
            listener = network.tcp(host)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", port))
            listener.listen(1024)
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, self._accept(int(host[1:])))

    def _accept(self, number: int) -> object:
        def accept(listener: socket.socket) -> None:
            connection, _ = listener.accept()
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ, answer)

        def answer(connection: socket.socket) -> None:
            try:
                data = connection.recv(4096)
            except OSError:
                data = b""
            if data:
                connection.send(bytes([number]) + data)
            else:
                self.selector.unregister(connection)
                connection.close()

        return accept

    def __enter__(self) -> Servers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass
class Talk:
    """One connection: what it sent last, and who answered."""

    socket: socket.socket
    sent: int = 0
    answers: int = 0
    servers: set[int] = field(default_factory=set)
    broken: str | None = None
    since: float = 0.0


class Clients(_Loop):
    """Connections that send the next number when the last one came back."""

    def __init__(self, network: Network, host: str, address: tuple[str, int]) -> None:
        super().__init__()
        self.talks: list[Talk] = []
        self._network, self._host, self._address = network, host, address

    def open(self, count: int) -> None:
        """Open connections, and let them talk."""
        for _ in range(count):
            connection = self._network.tcp(self._host)
            connection.settimeout(5)
            connection.connect(self._address)
            connection.setblocking(False)
            talk = Talk(connection)
            self.talks.append(talk)
            self.selector.register(
                connection, selectors.EVENT_READ, lambda _, talk=talk: self._answered(talk)
            )
            self._send(talk)

    def _send(self, talk: Talk) -> None:
        talk.sent += 1
        talk.since = time.monotonic()
        talk.socket.send(_MESSAGE.pack(talk.sent))

    def _answered(self, talk: Talk) -> None:
        try:
            data = talk.socket.recv(4096)
            if data[1:] != _MESSAGE.pack(talk.sent):
                raise OSError(f"got {data!r} for {talk.sent}")
            talk.servers.add(data[0])
            talk.answers += 1
            self._send(talk)
        except OSError as ex:
            talk.broken = str(ex)
            self.selector.unregister(talk.socket)

    def broken(self) -> list[str]:
        """Return what is wrong with connections that broke, changed their server, or were silent for too long."""
        now = time.monotonic()
        problems = [talk.broken for talk in self.talks if talk.broken is not None]
        problems += [f"servers {talk.servers}" for talk in self.talks if len(talk.servers) > 1]
        return problems + ["silent" for talk in self.talks if now - talk.since > 2]

    def retransmits(self) -> int:
        """Return how many segments all connections together had to send again (tcpi_total_retrans)."""
        infos = (talk.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104) for talk in self.talks)
        return sum(int(struct.unpack_from("I", info, 100)[0]) for info in infos)

    def __enter__(self) -> Clients:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

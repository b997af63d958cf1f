"""Repair mode is turned off on a real connection of another process, which then works as before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from migration.repair import TCP_REPAIR, ends_of, getfd, say, tcp_sockets, unrepair

pytestmark = pytest.mark.net

TCP_REPAIR_QUEUE, SEND_QUEUE = 20, 2
ECHO = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
    while data := peer.recv(4096):
        peer.sendall(data)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    """Run an echo server for one connection."""
    command = ["/usr/bin/python3", "-c", ECHO]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def connect(server: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to the server, and see that it answers."""
    assert server.stdout is not None
    client = socket.create_connection(("127.0.0.1", int(server.stdout.readline())), timeout=5)
    client.sendall(b"hello")
    assert client.recv(100) == b"hello"
    return client


def put_into_repair(pid: int) -> None:
    """Do to a process's connections what a CRIU that was killed leaves behind."""
    with tcp_sockets([pid]) as sockets:
        for one in sockets:
            if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
                one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)


@pytest.mark.parametrize("probe", [False, True])
def test_connection_works_again(server: subprocess.Popen[bytes], probe: bool) -> None:
    """What came in meanwhile is answered, and the connection stays open and as it was."""
    with connect(server) as client:
        os.kill(server.pid, signal.SIGSTOP)
        put_into_repair(server.pid)
        client.sendall(b"while it is repaired")
        assert unrepair([server.pid], probe=probe) == 1
        with tcp_sockets([server.pid]) as sockets:
            assert len(sockets) == 2
            assert [s.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR) for s in sockets] == [0, 0]
            assert all(s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for s in sockets)
        os.kill(server.pid, signal.SIGCONT)
        assert client.recv(100) == b"while it is repaired"
        client.sendall(b"after")
        assert client.recv(100) == b"after"
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
        assert server.wait(5) == 0


def test_without_unrepair_it_is_broken(server: subprocess.Popen[bytes]) -> None:
    """The control: a connection left in repair mode cannot be used, so the test above shows something."""
    with connect(server) as client:
        os.kill(server.pid, signal.SIGSTOP)
        put_into_repair(server.pid)
        os.kill(server.pid, signal.SIGCONT)
        client.sendall(b"lost")
        with pytest.raises(ConnectionResetError):  # the server ended, for it was not permitted to read
            client.recv(100)


@pytest.mark.parametrize("size", [100, 20 << 20])
def test_what_connections_have_still_to_say(server: subprocess.Popen[bytes], size: int) -> None:
    """It is written into a socket in repair mode, however little room that has, and read and answered by its peer."""
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        os.kill(server.pid, signal.SIGSTOP)
        put_into_repair(server.pid)
        client.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        ends = ends_of(client)
        assert ends is not None
        content = os.urandom(1 << 10) * (size >> 10) or b"a little"
        say([os.getpid(), server.pid], {ends: content})
        with pytest.raises(ProcessLookupError, match=f"no socket connects .*127.0.0.1:{ends[1]}"):
            say([os.getpid()], {ends: content})
        os.kill(server.pid, signal.SIGCONT)
        answer = b""
        while len(answer) < len(content):
            answer += client.recv(1 << 20)
        assert answer == content
        client.sendall(b"after")
        assert client.recv(100) == b"after"


def test_nothing_to_do(server: subprocess.Popen[bytes]) -> None:
    """Connections that are in order stay as they are; processes that are gone do not matter."""
    with connect(server) as client:
        assert unrepair([server.pid, server.pid]) == 0
        client.sendall(b"still")
        assert client.recv(100) == b"still"
    server.wait(5)
    assert unrepair([server.pid]) == 0


def test_getfd_says_what_is_wrong() -> None:
    """A descriptor that is not there is an OSError with the kernel's reason."""
    with closing(socket.socket()) as one:
        os.close(getfd(os.getpid(), one.fileno()))
    with pytest.raises(OSError, match="pidfd_getfd: Bad file descriptor"):
        getfd(os.getpid(), 899)

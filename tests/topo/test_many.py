"""Many programs at once, all in one working directory."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from migration.namespaces import in_netns
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
ECHO = """
import os, socket, sys
listener = socket.create_server(("", int(sys.argv[1])))
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    while data := connection.recv(100):
        connection.sendall(data)
        assert os.getcwd() == sys.argv[2]
"""
MANY = 20


@pytest.mark.long
def test_twenty_programs_of_one_directory_move_at_once(leaves_nothing: None, tmp_path: Path) -> None:
    """None is in another one's way, neither there nor back: each goes, and keeps its connection."""
    with Testbed(LoadBalancerNetwork(hosts=3), workers=MANY) as net:
        ports = range(7000, 7000 + MANY)
        names = [f"echo{port}" for port in ports]
        for name, port in zip(names, ports, strict=True):
            argv = ["/usr/bin/python3", "-c", ECHO, str(port), str(tmp_path)]
            net.run(name, "h2", argv, cwd=tmp_path)
        assert wait_until(lambda: all("listens" in net.output(name) for name in names), 20.0)
        pid = net.hosts["h1"].pid
        opened = [in_netns(pid, lambda port=port: _connect(port)) for port in ports]
        for host in ("h3", "h2"):
            ids = [net.queue_migration(name, host) for name in names]
            reports = [net.wait_for_migration(id) for id in ids]
            assert [(r.outcome, r.reason) for r in reports] == [("completed", None)] * MANY
            assert [(r.connections.kept, r.connections.broken) for r in reports] == [(1, 0)] * MANY
            for one, name in zip(opened, names, strict=True):
                one.sendall(name.encode())
                assert one.recv(100) == name.encode()
        for one in opened:
            one.close()
        assert list(tmp_path.iterdir()) == []


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("10.0.2.2", port), 20)

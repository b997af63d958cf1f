"""What of a socket keeps a program from being moved, and what only looks like it."""

from __future__ import annotations

import os
import socket

import pytest
from pyroute2 import IPRoute

from migration.descriptors import of_socket
from migration.tree import OpenFile
from tests.dataplane.engine.network import own_namespace

pytestmark = pytest.mark.net


def test_a_datagram_on_a_slow_link_is_no_part_of_one() -> None:
    """It counts as unsent until it has left the link's queue, a tenth of a second later; a part stays for ever."""
    with own_namespace(), IPRoute() as ip:
        index = ip.link_lookup(ifname="lo")[0]
        ip.link("set", index=index, state="up")
        ip.tc("add", "tbf", index, 0x10000, rate=50_000, burst=2000, limit=100_000)
        kind = socket.AF_INET, socket.SOCK_DGRAM
        with socket.socket(*kind) as sink, socket.socket(*kind) as one:
            sink.bind(("127.0.0.1", 0))
            file = OpenFile(os.getpid(), one.fileno(), f"socket:[{os.fstat(one.fileno()).st_ino}]")
            one.connect(sink.getsockname())
            for _ in range(5):
                one.send(bytes(1000))
            assert list(of_socket(file, set())) == []
            one.send(b"half", socket.MSG_MORE)
            (found,) = of_socket(file, set())
            assert "keeps parts of a datagram" in found

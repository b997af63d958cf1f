"""Programs that get and send many datagrams, while they are moved."""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration.namespaces import in_netns
from migration.report import Report
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
PROGRAM = str(Path(__file__).parent / "programs" / "datagrams.py")
VIP = "10.0.0.100"


@pytest.fixture
def net(leaves_nothing: None) -> Iterator[Testbed]:
    """A running network of four hosts."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        yield bed


def run(bed: Testbed, name: str, host: str, *arguments: str, service: str | None = None) -> None:
    """Start a program and wait until it is ready."""
    bed.run(name, host, ["/usr/bin/python3", PROGRAM, *arguments], service=service)
    assert wait_until(lambda: "ready" in bed.output(name), 5.0)


def move(bed: Testbed, name: str, host: str) -> Report:
    """Move a program, which works and drops nothing."""
    report = bed.migrate(name, host)
    assert report.outcome == "completed", report.reason
    assert (report.held.dropped, report.held.receiver_drops) == (0, 0)
    return report


def ask(bed: Testbed, address: str, host: str = "h1") -> tuple[int, int]:
    """Ask a counting program what it has got, and how many of them came behind a later one."""
    with in_netns(bed.hosts[host].pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asker:
        asker.settimeout(5)
        asker.sendto(b"", (address, 7000))
        got, overtaken = struct.unpack("!II", asker.recv(64))
        return got, overtaken


def test_a_sender_that_never_waits_goes_on(net: Testbed) -> None:
    """Its address on hold, a server gets more than any send buffer has, and more than its own receive buffer takes.

    What it had received and not read when it was stopped is lost (docs/architecture.md, "Known limits").
    """
    run(net, "server", "h2", "count", "7000", service=f"{VIP}:7000/udp")
    command = [
        "nsenter",
        f"--net=/proc/{net.hosts['h1'].pid}/ns/net",
        "/usr/bin/python3",
        PROGRAM,
        "try",
        VIP,
        "7000",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
        try:
            time.sleep(0.2)
            held = [move(net, "server", host).held.packets for host in ("h3", "h4", "h2", "h3", "h4")]
        finally:
            sent, refused = (int(word) for word in sender.communicate(b"enough", 20)[0].split())
    print(f"{held} datagrams held, {sent} sent")
    assert refused == 0
    assert max(held) > 212_992 // 1280, "more than the sender had room for"
    assert wait_until(lambda: ask(net, VIP)[0] == ask(net, VIP)[0], 5.0)
    got, overtaken = ask(net, VIP)
    assert overtaken == 0
    assert sum(held) < got <= sent


def test_a_program_that_sends_without_end_is_moved_at_once(net: Testbed) -> None:
    """None of its datagrams takes the way through the controller, which would keep everything else waiting."""
    run(net, "sink", "h1", "count", "7000")
    run(net, "source", "h2", "send", "10.0.1.1", "7000")
    for host in ("h3", "h4", "h2", "h3", "h4"):
        report = move(net, "source", host)
        assert report.held.packets == 0
    before = ask(net, "10.0.1.1", "h2")
    time.sleep(0.3)
    after = ask(net, "10.0.1.1", "h2")
    assert after[0] > before[0]
    assert after[1] == 0

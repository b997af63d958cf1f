"""Frames that the controller reads and writes itself, checked with scapy."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from controllers.frames import flow_of, marker
from tests.controllers.conftest import tcp


def test_a_marker_is_a_valid_datagram() -> None:
    """Its checksum is right, and it goes to the discard port."""
    frame = Ether(marker(IPv4Address("10.0.2.2"), b"token"))
    checksum = frame[IP].chksum
    del frame[IP].chksum
    assert Ether(bytes(frame))[IP].chksum == checksum
    assert (frame[IP].src, frame[IP].dst, frame[UDP].dport, bytes(frame[UDP].payload)) == (
        "0.0.0.0",
        "10.0.2.2",
        9,
        b"token",
    )


def test_a_flow_is_read() -> None:
    """Source and destination of a TCP packet."""
    packet = Ether() / IP(src="10.0.1.1", dst="10.0.2.2") / TCP(sport=40000, dport=7000)
    assert flow_of(bytes(packet)) == (tcp("10.0.1.1", 40000), tcp("10.0.2.2", 7000))


@pytest.mark.parametrize(
    "packet",
    [Ether() / ARP(), Ether() / IP(proto=1), Ether() / IP(ihl=6, options=b"\0\0\0\0") / TCP(), Ether()],
)
def test_what_has_no_flow(packet: Ether) -> None:
    """Other packets have none."""
    assert flow_of(bytes(packet)) is None

"""Frames that the controller reads and writes itself, checked with scapy."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from controllers.frames import flow_of, is_behind, marker, tcp_end
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
    assert tcp_end(bytes(packet)) is None or TCP in packet


@given(
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
    st.sampled_from(["", "S", "F", "A", "FA"]),
    st.booleans(),
)
def test_the_end_of_a_tcp_packet(sequence: int, data: bytes, flags: str, options: bool) -> None:
    """Data counts, SYN and FIN count as one each, options and Ethernet's padding do not; modulo 2**32."""
    segment = TCP(seq=sequence, flags=flags, options=[("Timestamp", (1, 2))] if options else [])
    frame = bytes(Ether() / IP(src="10.0.1.1", dst="10.0.2.2") / segment / data).ljust(60, b"\0")
    grown = len(data) + ("S" in flags) + ("F" in flags)
    assert tcp_end(frame) == (sequence + grown) % 2**32


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1))
def test_sequence_numbers_wrap_around(limit: int, distance: int) -> None:
    """What lies up to half the circle behind a limit is behind it, the other half is beyond."""
    assert is_behind((limit - distance) % 2**32, limit)
    assert not is_behind((limit + distance + 1) % 2**32, limit)

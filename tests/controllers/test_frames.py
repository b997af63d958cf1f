"""Frames that the controller reads and writes itself, checked with scapy."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether

from controllers.frames import flow_of, is_behind, is_known, marker, tcp_end, tcp_stamp
from migration.steering import Spoken
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


OPTIONS = st.lists(
    st.sampled_from([("NOP", None), ("MSS", 1460), ("WScale", 7), ("SAckOK", b""), ("SAck", (5, 9))]),
    max_size=2,
)


@given(OPTIONS, st.none() | st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_the_timestamp_of_a_tcp_packet(
    options: list[tuple[str, object]], stamp: int | None, data: bytes
) -> None:
    """It is found behind other options, and not in the data."""
    stamps = [("Timestamp", (stamp, 0))] if stamp is not None else []
    packet = Ether() / IP(src="10.0.1.1", dst="10.0.2.2") / TCP(options=[*options, *stamps]) / data
    assert tcp_stamp(bytes(packet)) == stamp


@given(st.binary(max_size=60))
def test_broken_options_have_no_end(options: bytes) -> None:
    """Whatever the bytes are, reading them comes to an end and stays within the frame."""
    head = bytearray(bytes(Ether() / IP(src="10.0.1.1", dst="10.0.2.2") / TCP()))
    head[14 + 20 + 12] = 0xF0
    tcp_stamp(bytes(head) + options)


@pytest.mark.parametrize(
    ("sequence", "stamp", "known"),
    [
        (90, 1000, True),
        (90, 1001, True),
        (90, 1002, False),
        (90, 900, True),
        (91, 1000, False),
        (90, None, True),
    ],
)
def test_what_an_image_knows(sequence: int, stamp: int | None, known: bool) -> None:
    """Ten bytes up to 100, with a clock at 1000 (without its lowest bit): neither later bytes nor later stamps."""
    options = [("Timestamp", (stamp, 0))] if stamp is not None else []
    packet = (
        Ether()
        / IP(src="10.0.1.1", dst="10.0.2.2")
        / TCP(seq=sequence, flags="A", options=options)
        / (b"x" * 10)
    )
    assert is_known(bytes(packet), Spoken(100, 1000)) == known
    assert is_known(bytes(packet), Spoken(100)) == (sequence == 90)

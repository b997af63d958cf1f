"""Checksums completed and packets prepared for segmentation, against scapy."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from dataplane.switch.engine import offload

NETWORKS = [IP(src="10.1.2.3", dst="10.9.8.7"), IPv6(src="fd00::1", dst="fd00::2")]
LAYERS = [TCP(sport=1, dport=2), UDP(sport=3, dport=4)]


def frame_of(network: Packet, layer: Packet, payload: bytes, tagged: bool = False) -> bytearray:
    link = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
    return bytearray(bytes((link / Dot1Q(vlan=3) if tagged else link) / network / layer / Raw(payload)))


FRAMES = st.builds(
    frame_of, st.sampled_from(NETWORKS), st.sampled_from(LAYERS), st.binary(max_size=300), st.booleans()
)


@given(frame=FRAMES)
def test_pseudo_header_sum_is_completed(frame: bytearray) -> None:
    right = bytes(frame)
    found = offload.find_transport(frame)
    assert found is not None
    assert offload.is_correct(frame, found)
    struct.pack_into("!H", frame, found.checksum, found.pseudo_sum)
    assert offload.complete_checksum(frame) or bytes(frame) == right
    assert bytes(frame) == right


@given(frame=FRAMES)
def test_correct_checksum_stays(frame: bytearray) -> None:
    right = bytes(frame)
    assert not offload.complete_checksum(frame)
    assert bytes(frame) == right


@given(frame=FRAMES, error=st.integers(1, 0xFFFE))
def test_corrupt_stays_corrupt(frame: bytearray, error: int) -> None:
    found = offload.find_transport(frame)
    assert found is not None
    field = int.from_bytes(frame[found.checksum : found.checksum + 2], "big")
    wrong = (field + error) % 0xFFFF or 0xFFFF
    if wrong % 0xFFFF == found.pseudo_sum % 0xFFFF:
        return
    struct.pack_into("!H", frame, found.checksum, wrong)
    before = bytes(frame)
    assert not offload.complete_checksum(frame)
    assert bytes(frame) == before


@given(data=st.binary(max_size=70))
def test_anything_is_survived(data: bytes) -> None:
    frame = bytearray(data)
    offload.complete_checksum(frame)
    assert len(frame) == len(data)


@pytest.mark.parametrize("network", NETWORKS, ids=["ipv4", "ipv6"])
def test_large_packet_is_prepared(network: Packet) -> None:
    """gso_size is what fits the MTU behind the headers, and the checksum field holds the pseudo header's sum."""
    layer = TCP(sport=1, dport=2, options=[("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)])
    frame = frame_of(network, layer, bytes(60000))
    found = offload.find_transport(frame)
    assert found is not None
    header = struct.unpack("=BBHHHH", offload.segmentation(frame, 1500))
    ip_bytes = 20 if found.ip_version == 4 else 40
    kind = 1 if found.ip_version == 4 else 4
    assert header == (1, kind, 14 + ip_bytes + 32, 1500 - ip_bytes - 32, 14 + ip_bytes, 16)
    assert int.from_bytes(frame[found.checksum : found.checksum + 2], "big") == found.pseudo_sum


def test_small_and_other_packets_go_as_they_are() -> None:
    for frame in (
        frame_of(NETWORKS[0], LAYERS[0], bytes(1400)),
        frame_of(NETWORKS[0], LAYERS[1], bytes(3000)),
        bytearray(3000),
    ):
        before = bytes(frame)
        assert offload.segmentation(frame, 1500) == offload.PLAIN
        assert bytes(frame) == before


def test_large_corrupt_packet_is_refused() -> None:
    frame = frame_of(NETWORKS[0], LAYERS[0], bytes(3000))
    frame[-1] ^= 1
    with pytest.raises(ValueError, match="wrong checksum"):
        offload.segmentation(frame, 1500)


def test_fragments_have_no_transport() -> None:
    assert offload.find_transport(frame_of(IP(flags="MF"), LAYERS[1], bytes(8))) is None
    assert offload.find_transport(frame_of(IP(frag=5), LAYERS[1], bytes(8))) is None

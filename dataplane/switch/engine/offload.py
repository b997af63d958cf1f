"""Checksum and segmentation offload in user space. Pure functions on Ethernet frames.

A packet that a local socket sent has not got its checksum yet: with CHECKSUM_PARTIAL the field holds only the folded
sum of the pseudo header, and a NIC (or nobody, between veths) would do the rest. And it may be up to 64 KiB long, to be
segmented by a NIC (GSO). So a frame on its way to a controller gets its checksum completed, and a frame that comes
back is given to the kernel with a virtio_net_hdr that says how to segment it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

ETHERNET_BYTES = 14
_IPV4, _IPV6, _VLANS = 0x0800, 0x86DD, (0x8100, 0x88A8)
TCP, UDP = 6, 17
_CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
_MINIMUM = {TCP: 20, UDP: 8}
_CWR = 0x80

_NEEDS_CSUM = 1
_GSO_TCPV4, _GSO_TCPV6, _GSO_ECN = 1, 4, 0x80
_VNET = struct.Struct("=BBHHHH")

PLAIN = _VNET.pack(0, 0, 0, 0, 0, 0)
"""The virtio_net_hdr of a frame that is complete as it is."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Where the TCP or UDP part of a frame lies."""

    protocol: int
    ip_version: int
    ip: int
    """Offset of the IP header."""
    start: int
    """Offset of the TCP or UDP header."""
    end: int
    """Offset behind the payload."""
    addresses: bytes

    @property
    def checksum(self) -> int:
        """Return the offset of the checksum field."""
        return self.start + _CHECKSUM_OFFSET[self.protocol]

    @property
    def pseudo_sum(self) -> int:
        """Return the folded sum of the pseudo header (RFC 9293 section 3.1)."""
        tail = struct.pack("!II", self.end - self.start, self.protocol)
        return ones_sum(self.addresses + tail)


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """Return the one's complement sum of 16 bit words, 0xffff rather than 0 unless all words are 0.

    A number modulo 65535 is the sum of its 16 bit digits, as 9 is for decimal digits.
    """
    number = int.from_bytes(data, "big") << (8 if len(data) % 2 else 0)
    return number % 0xFFFF or (0xFFFF if number else 0)


def find_transport(frame: bytes | bytearray) -> Transport | None:
    """Find TCP or UDP over IP in a frame; None for fragments, and for what is cut short or something else."""
    at, ethertype = ETHERNET_BYTES, _u16(frame, 12)
    while ethertype in _VLANS:
        at, ethertype = at + 4, _u16(frame, at + 2)
    if ethertype == _IPV4:
        return _ipv4(frame, at)
    if ethertype == _IPV6:
        return _ipv6(frame, at)
    return None


def _u16(frame: bytes | bytearray, at: int) -> int:
    return int.from_bytes(frame[at : at + 2], "big")


def _ipv4(frame: bytes | bytearray, at: int) -> Transport | None:
    if len(frame) < at + 20 or frame[at] >> 4 != 4 or _u16(frame, at + 6) & 0x3FFF:
        return None
    start, end = at + (frame[at] & 15) * 4, at + _u16(frame, at + 2)
    return _transport(frame, 4, at, start, end, frame[at + 9], bytes(frame[at + 12 : at + 20]))


def _ipv6(frame: bytes | bytearray, at: int) -> Transport | None:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return None
    end = at + 40 + _u16(frame, at + 4)
    return _transport(frame, 6, at, at + 40, end, frame[at + 6], bytes(frame[at + 8 : at + 40]))


def _transport(
    frame: bytes | bytearray, version: int, ip: int, start: int, end: int, protocol: int, addresses: bytes
) -> Transport | None:
    if protocol not in _CHECKSUM_OFFSET or end > len(frame) or end - start < _MINIMUM[protocol]:
        return None
    return Transport(protocol, version, ip, start, end, addresses)


def complete_checksum(frame: bytearray) -> bool:
    """Complete a TCP or UDP checksum that holds only the pseudo header's sum; say whether it was one.

    A correct checksum stays, and one that is neither is really wrong and stays, too: the receiver shall notice.
    """
    found = find_transport(frame)
    if found is None:
        return False
    field = _u16(frame, found.checksum)
    if field == 0 and found.protocol == UDP:
        return False
    if is_correct(frame, found) or field % 0xFFFF != found.pseudo_sum % 0xFFFF:
        return False
    # The field is part of the sum: it stands for the pseudo header.
    value = ~ones_sum(memoryview(frame)[found.start : found.end]) & 0xFFFF
    if value == 0 and found.protocol == UDP:
        value = 0xFFFF
    struct.pack_into("!H", frame, found.checksum, value)
    return True


def is_correct(frame: bytes | bytearray, found: Transport) -> bool:
    """Tell whether a TCP or UDP checksum is right."""
    total = ones_sum(memoryview(frame)[found.start : found.end]) + found.pseudo_sum
    return total % 0xFFFF == 0


def segmentation(frame: bytearray, mtu: int) -> bytes:
    """Return the virtio_net_hdr with which a frame is sent; a TCP packet beyond the MTU is prepared for GSO.

    Raises ValueError for one whose checksum is wrong: segmenting would make it right.
    """
    if len(frame) <= mtu + ETHERNET_BYTES:
        return PLAIN
    found = find_transport(frame)
    if found is None or found.protocol != TCP or found.end - found.ip <= mtu:
        return PLAIN
    if not is_correct(frame, found):
        raise ValueError("a TCP packet beyond the MTU has a wrong checksum")
    headers = found.start + (frame[found.start + 12] >> 4) * 4
    struct.pack_into("!H", frame, found.checksum, found.pseudo_sum)
    kind = _GSO_TCPV4 if found.ip_version == 4 else _GSO_TCPV6
    if frame[found.start + 13] & _CWR:
        kind |= _GSO_ECN
    size = mtu - (headers - found.ip)
    return _VNET.pack(_NEEDS_CSUM, kind, headers, size, found.start, _CHECKSUM_OFFSET[TCP])

"""The few bytes of frames that the controller reads and writes itself. Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from controllers import rows
from migration.steering import Endpoint, IpProtocol, Spoken

DISCARD_PORT = 9
"""RFC 863."""

_ETHERNET = 14
_IPV4 = 20
_ETHERTYPE_IPV4 = 0x0800
_FIN, _SYN = 0x01, 0x02
_OPTION_END, _OPTION_NOTHING, _OPTION_STAMP = 0, 1, 8


def flow_of(frame: bytes) -> tuple[Endpoint, Endpoint] | None:
    """Return source and destination of a TCP or UDP frame whose IPv4 header has no options."""
    if len(frame) < _ETHERNET + _IPV4 + 4 or frame[12:14] != b"\x08\x00" or frame[_ETHERNET] != 0x45:
        return None
    protocol = frame[_ETHERNET + 9]
    if protocol not in (IpProtocol.TCP, IpProtocol.UDP):
        return None
    source, destination, src_port, dst_port = struct.unpack_from("!IIHH", frame, _ETHERNET + 12)
    return rows.endpoint_of(protocol, source, src_port), rows.endpoint_of(protocol, destination, dst_port)


def is_datagram(frame: bytes) -> bool:
    """Return True for a UDP frame, or a fragment of one."""
    return (
        len(frame) > _ETHERNET + 9 and frame[12:14] == b"\x08\x00" and frame[_ETHERNET + 9] == IpProtocol.UDP
    )


def tcp_end(frame: bytes) -> int | None:
    """Return the sequence number behind a TCP frame's last byte (SYN and FIN count as one), None if it is no TCP."""
    tcp = _ETHERNET + _IPV4
    if len(frame) < tcp + 20 or frame[12:14] != b"\x08\x00" or frame[_ETHERNET] != 0x45:
        return None
    if frame[_ETHERNET + 9] != IpProtocol.TCP:
        return None
    (total,) = struct.unpack_from("!H", frame, _ETHERNET + 2)
    (sequence,) = struct.unpack_from("!I", frame, tcp + 4)
    flags = frame[tcp + 13]
    data: int = total - _IPV4 - (frame[tcp + 12] >> 4) * 4
    end: int = sequence + data + bool(flags & _SYN) + bool(flags & _FIN)
    return end & 0xFFFFFFFF


def tcp_stamp(frame: bytes) -> int | None:
    """Return a TCP frame's timestamp (TSval of RFC 7323), None if it has none; call it for TCP frames only."""
    tcp = _ETHERNET + _IPV4
    at, end = tcp + 20, tcp + (frame[tcp + 12] >> 4) * 4
    while at < min(end, len(frame)):
        kind = frame[at]
        if kind == _OPTION_END:
            break
        if kind == _OPTION_NOTHING:
            at += 1
            continue
        if at + 1 >= len(frame) or frame[at + 1] < 2:
            break
        if kind == _OPTION_STAMP and at + 6 <= len(frame):
            return int.from_bytes(frame[at + 2 : at + 6], "big")
        at += frame[at + 1]
    return None


def is_known(frame: bytes, spoken: Spoken) -> bool:
    """Say whether a TCP frame was sent before its connection's image was made, and says nothing beyond it.

    Linux tells CRIU the timestamp clock without its lowest bit.
    """
    end, stamp = tcp_end(frame), tcp_stamp(frame)
    return (end is None or is_behind(end, spoken.until)) and (
        stamp is None or spoken.stamp is None or is_behind(stamp, spoken.stamp | 1)
    )


def is_behind(sequence: int, limit: int) -> bool:
    """Say whether a sequence number or timestamp is at or before a limit, modulo 2**32 (RFC 9293, 3.4)."""
    return (limit - sequence) & 0xFFFFFFFF < 1 << 31


def checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def marker(address: IPv4Address, token: bytes) -> bytes:
    """Return a UDP datagram to a host's discard port, which no host answers.

    Its source is 0.0.0.0: the host's kernel drops it as a martian (RFC 1122, 3.2.1.3) instead of sending an ICMP error.
    """
    udp = struct.pack("!HHHH", DISCARD_PORT, DISCARD_PORT, 8 + len(token), 0) + token
    fields = (0x45, 0, _IPV4 + len(udp), 0, 0, 64, IpProtocol.UDP, 0, 0, int(address))
    header = struct.pack("!BBHHHBBHII", *fields)
    header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
    return b"\0" * 12 + _ETHERTYPE_IPV4.to_bytes(2, "big") + header + udp

"""The multicast groups that a socket has joined, and the interfaces that they are joined on.

No call lists a socket's groups. /proc/net/igmp and igmp6 list those of all sockets of a network namespace, and
MCAST_MSFILTER tells of each whether a socket is a member, and which sources it wants (RFC 3678, 5.2).

An interface has another number, and mostly another name, on another host: `Places` translates both ways of naming one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import re
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from .inet import Address
from .model import Host
from .namespaces import in_netns

# <linux/in.h>
MCAST_JOIN_GROUP = 42
MCAST_MSFILTER = 48
MCAST_INCLUDE, MCAST_EXCLUDE = 1, 0
_SIOCGIFADDR = 0x8915
_LEVELS = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_STORAGE = 128  # bytes of a sockaddr_storage
_MOST_SOURCES = 64  # what igmp_max_msf allows by default is 10
_IGMP_DEVICE = re.compile(r"^(\d+)\s")
_IGMP_GROUP = re.compile(r"^\t+([0-9A-F]{8})\s")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Membership:
    """A group that a socket has joined on an interface; without sources it wants all."""

    group: Address
    interface: int
    mode: int = MCAST_EXCLUDE
    sources: tuple[Address, ...] = ()

    def to_json(self) -> list[object]:
        """Return it as JSON values."""
        return [str(self.group), self.interface, self.mode, [str(source) for source in self.sources]]

    @classmethod
    def from_json(cls, values: list[object]) -> Membership:
        """Read what `to_json` has written."""
        group, interface, mode, sources = values
        assert isinstance(interface, int) and isinstance(mode, int) and isinstance(sources, list)
        return cls(_address(str(group)), interface, mode, tuple(_address(str(one)) for one in sources))


@dataclass(frozen=True, slots=True)
class Places:
    """How the source's interfaces and its address are called at the destination."""

    interfaces: dict[int, int] = field(default_factory=dict)
    addresses: dict[IPv4Address, IPv4Address] = field(default_factory=dict)

    @classmethod
    def between(cls, source: Host, destination: Host) -> Places:
        """Compare two hosts: interfaces of one name belong together, and those that have the hosts' addresses."""
        here, there = (in_netns(host.pid, _interfaces) for host in (source, destination))
        by_name = {name: index for index, (name, _) in there.items()}
        by_address = {address: index for index, (_, address) in there.items()}
        found = {}
        for index, (name, address) in here.items():
            other = by_address.get(destination.address) if address == source.address else by_name.get(name)
            if other is not None:
                found[index] = other
        return cls(found, {source.address: destination.address})

    def interface(self, index: int) -> int:
        """Return the number of an interface at the destination; 0, the kernel's choice, if there is none like it.

        Without any it is the same place.
        """
        if not self.interfaces:
            return index
        return self.interfaces.get(index, 0)

    def address(self, address: IPv4Address) -> IPv4Address:
        """Return an own address at the destination."""
        return self.addresses.get(address, address)


def _interfaces() -> dict[int, tuple[str, IPv4Address | None]]:
    """List the interfaces of this thread's namespace with their first addresses."""
    found: dict[int, tuple[str, IPv4Address | None]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for index, name in socket.if_nameindex():
            address = None
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))
                address = IPv4Address(answer[20:24])
            found[index] = (name, address)
    return found


def joined_by_any(pid: int) -> list[tuple[Address, int]]:
    """List the groups that some socket of a process's network namespace has joined, with the interfaces."""
    found: list[tuple[Address, int]] = []
    interface = 0
    for line in _lines(pid, "igmp"):
        if device := _IGMP_DEVICE.match(line):
            interface = int(device[1])
        elif group := _IGMP_GROUP.match(line):
            found.append((IPv4Address(int(group[1], 16).to_bytes(4, "little")), interface))
    for line in _lines(pid, "igmp6"):
        index, _, address, *_ = line.split()
        found.append((IPv6Address(bytes.fromhex(address)), int(index)))
    return found


def _lines(pid: int, name: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    except OSError:  # no such protocol, or no such process
        return []


def read(one: socket.socket, candidates: list[tuple[Address, int]]) -> list[Membership]:
    """Return which of the candidates a socket has joined."""
    version = 6 if one.family == socket.AF_INET6 else 4
    found = []
    for group, interface in candidates:
        if version == 6 or group.version == 4:
            membership = _filter(one, group, interface)
            found += [membership] if membership is not None else []
    return found


def _filter(one: socket.socket, group: Address, interface: int) -> Membership | None:
    """Ask for a socket's filter of a group; None if it has not joined it."""
    buffer = ctypes.create_string_buffer(
        struct.pack("=I4x", interface) + _sockaddr(group) + struct.pack("=II", 0, _MOST_SOURCES),
        144 + _MOST_SOURCES * _STORAGE,
    )
    length = ctypes.c_uint32(len(buffer))
    level = _LEVELS[group.version]
    if _libc.getsockopt(one.fileno(), level, MCAST_MSFILTER, buffer, ctypes.byref(length)) != 0:
        return None
    mode, count = struct.unpack_from("=II", buffer, 8 + _STORAGE)
    places = (8 + _STORAGE + 8 + at * _STORAGE for at in range(min(count, _MOST_SOURCES)))
    return Membership(group, interface, mode, tuple(_from_sockaddr(buffer.raw[at:]) for at in places))


def join(one: socket.socket, membership: Membership, places: Places) -> None:
    """Let a socket join a group as another one has; raises OSError."""
    level, group = _LEVELS[membership.group.version], _sockaddr(membership.group)
    interface = places.interface(membership.interface)
    one.setsockopt(level, MCAST_JOIN_GROUP, struct.pack("=I4x", interface) + group)
    if membership.mode == MCAST_EXCLUDE and not membership.sources:
        return
    head = (
        struct.pack("=I4x", interface) + group + struct.pack("=II", membership.mode, len(membership.sources))
    )
    one.setsockopt(level, MCAST_MSFILTER, head + b"".join(map(_sockaddr, membership.sources)))


def _sockaddr(address: Address) -> bytes:
    """Write an address as a sockaddr_storage."""
    if address.version == 4:
        packed = struct.pack("=H2x4s", socket.AF_INET, address.packed)
    else:
        packed = struct.pack("=H2x4x16s", socket.AF_INET6, address.packed)
    return packed.ljust(_STORAGE, b"\0")


def _from_sockaddr(data: bytes) -> Address:
    (family,) = struct.unpack_from("=H", data)
    return IPv4Address(data[4:8]) if family == socket.AF_INET else IPv6Address(data[8:24])


def _address(text: str) -> Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)

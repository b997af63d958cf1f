"""What the moved program is told to do, made from the tables: sockopts.OPTIONS and entries.py."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from migration.sockopts import IPV6, OPTIONS, SOL_SOCKET, TCP, UDP, Kind, On, Option, Rule, Shape, applies
from tests.fidelity.entries import Entry

INT = struct.Struct("=i")
_IP = 0
# What to set, where it is not simply 1 or 2; nothing for what would cut connections off, or needs a device.
_VALUES: Mapping[tuple[int, int], Iterable[int | bytes]] = {
    (SOL_SOCKET, 5): (),
    (SOL_SOCKET, 7): (122222,),
    (SOL_SOCKET, 8): (111111,),
    (SOL_SOCKET, 12): (4,),
    (SOL_SOCKET, 13): (struct.pack("=ii", 1, 9),),
    (SOL_SOCKET, 18): (3,),
    (SOL_SOCKET, 20): (struct.pack("=qq", 77, 0),),
    (SOL_SOCKET, 21): (struct.pack("=qq", 78, 0),),
    (SOL_SOCKET, 35): (),
    (SOL_SOCKET, 36): (0x42,),
    (SOL_SOCKET, 37): (struct.pack("=ii", 0x18, 0),),
    (SOL_SOCKET, 42): (0,),
    (SOL_SOCKET, 46): (20,),
    (SOL_SOCKET, 47): (struct.pack("=Q", 5_000_000),),
    (SOL_SOCKET, 61): (struct.pack("=ii", 11, 0),),
    (SOL_SOCKET, 62): (),
    (SOL_SOCKET, 63): (),
    (SOL_SOCKET, 64): (),
    (SOL_SOCKET, 65): (),
    (SOL_SOCKET, 72): (),
    (SOL_SOCKET, 74): (0,),
    (SOL_SOCKET, 83): (0,),
    (TCP, 2): (1000,),
    (TCP, 3): (),
    (TCP, 4): (33,),
    (TCP, 8): (11,),
    (TCP, 9): (5,),
    (TCP, 10): (40000,),
    (TCP, 12): (0,),
    (TCP, 13): (b"reno".ljust(16, b"\0"),),
    (TCP, 18): (12345,),
    (TCP, 23): (16,),
    (TCP, 25): (16384,),
    (TCP, 29): (),
    (TCP, 33): (bytes(range(16)),),
    (TCP, 37): (),
    (TCP, 44): (60_000,),
    (TCP, 45): (100_000,),
    (TCP, 46): (100_000,),
    (UDP, 100): (2,),
    (UDP, 103): (1200,),
    (_IP, 1): (0x28,),
    (_IP, 2): (33,),
    (_IP, 4): (),
    (_IP, 10): (2, 3),
    (_IP, 21): (2,),
    (_IP, 33): (9,),
    (_IP, 34): (0,),
    (_IP, 49): (0,),
    (_IP, 51): (struct.pack("=I", 50_000 << 16 | 40_000),),
    (IPV6, 16): (33,),
    (IPV6, 18): (7,),
    (IPV6, 19): (0,),
    (IPV6, 23): (2,),
    (IPV6, 26): (),
    (IPV6, 29): (0,),
    (IPV6, 54): (),
    (IPV6, 55): (),
    (IPV6, 57): (),
    (IPV6, 59): (),
    (IPV6, 67): (0x28,),
    (IPV6, 70): (0,),
}
_LOOPBACK = 1  # the number of the loopback interface on every host
_INET = {"4": 2, "6": 10}
_UNIX = {"stream": 1, "datagram": 2, "seqpacket": 5}
KINDS: Mapping[str, Kind] = {
    **{f"listening{v}": Kind(f, 1, TCP, is_listening=True) for v, f in _INET.items()},
    **{f"accepted{v}": Kind(f, 1, TCP, is_connected=True) for v, f in _INET.items()},
    **{f"idle{v}": Kind(f, 1, TCP) for v, f in _INET.items()},
    **{f"datagram{v}": Kind(f, 2, UDP) for v, f in _INET.items()},
    "connected4": Kind(2, 1, TCP, is_connected=True),
    "connected datagram4": Kind(2, 2, UDP),
    **{f"UNIX {name}": Kind(1, kind, 0) for name, kind in _UNIX.items()},
}
"""The program's sockets."""


def carried() -> list[Option]:
    """List the options that a copy has as the original had them."""
    return [
        option for option in OPTIONS if option.rule in (Rule.KEPT, Rule.ALWAYS, Rule.CRIU) and option.size
    ]


def is_compared(name: str, option: Option) -> bool:
    """Return True if one of the program's sockets has an option in earnest, and for good."""
    kind = KINDS[name]
    changes = (SOL_SOCKET, 49), (TCP, 12)  # with every packet of a connection
    if (option.level, option.number) in changes and (kind.is_connected or name == "connected datagram4"):
        return False
    return applies(option, kind)


def is_local(option: Option) -> bool:
    """Return True if an option's value means something only on its host."""
    return option.shape is Shape.ADDRESS or option.on is On.INET


def told(name: str, reading: Mapping[str, Any], *, local: bool = True) -> dict[str, str]:
    """Return what one of the program's sockets has, by options, with or without those that are their host's."""
    return {
        option.name: reading[name][f"{option.level}.{option.number}"]
        for option in carried()
        if is_compared(name, option) and (local or not is_local(option))
    }


def plan(entries: Iterable[Entry], peer: tuple[str, int], own: str, *, options: bool) -> dict[str, Any]:
    """Return what the program is to do in a host with the address `own`."""
    return {
        "entries": {entry.name: [entry.code, entry.read] for entry in entries},
        "peer": peer,
        "own": own,
        "options": [_row(option, own) for option in carried()] if options else [],
    }


def _row(option: Option, own: str) -> list[Any]:
    values = _VALUES.get((option.level, option.number), (1, 2))
    if option.shape is Shape.ADDRESS:
        values = (bytes(map(int, own.split("."))),)
    elif option.shape is not Shape.PLAIN:
        values = (_LOOPBACK.to_bytes(4, "little" if option.shape is Shape.INTERFACE else "big"),)
    written = [(INT.pack(value) if isinstance(value, int) else value).hex() for value in values]
    return [option.level, option.number, option.size, written]

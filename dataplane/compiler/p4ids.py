"""P4Runtime's numbers for names, as p4c assigns them.

An id is a prefix for the kind of object (p4runtime.proto, P4Ids) and 24 bits of a hash of its name; names whose hashes
collide are probed linearly in the order of the names (P4Runtime specification, section 6.3).
"""

from __future__ import annotations

from enum import IntEnum


class Prefix(IntEnum):
    """The kinds of objects."""

    ACTION = 0x01
    TABLE = 0x02
    VALUE_SET = 0x03
    CONTROLLER_HEADER = 0x04
    ACTION_PROFILE = 0x11
    COUNTER = 0x12
    DIRECT_COUNTER = 0x13
    METER = 0x14
    DIRECT_METER = 0x15
    REGISTER = 0x16
    DIGEST = 0x17


def hash_name(name: str) -> int:
    """Return Jenkins's one-at-a-time hash."""
    value = 0
    for byte in name.encode():
        value = (value + byte) & 0xFFFFFFFF
        value = (value + (value << 10)) & 0xFFFFFFFF
        value ^= value >> 6
    value = (value + (value << 3)) & 0xFFFFFFFF
    value ^= value >> 11
    return (value + (value << 15)) & 0xFFFFFFFF


class Symbols:
    """All named objects of a program; ids and aliases are known when all have been added."""

    def __init__(self) -> None:
        self._given: dict[Prefix, dict[str, int | None]] = {}
        self._ids: dict[tuple[Prefix, str], int] = {}
        self._suffixes: dict[tuple[str, ...], int] = {}
        self._counted: set[str] = set()

    def add(self, prefix: Prefix, name: str, given: int | None = None) -> bool:
        """Add an object, with its @id if it has one; False if that @id is taken."""
        names = self._given.setdefault(prefix, {})
        if name in names:
            return True
        if given is not None:
            given |= prefix << 24
            if given in self._ids.values():
                return False
            self._ids[prefix, name] = given
        names[name] = given
        self._count_suffixes(name)
        return True

    def assign(self) -> None:
        """Give ids to those that have none, kind after kind, in the order of their names."""
        taken = set(self._ids.values())
        for prefix, names in sorted(self._given.items()):
            for name in sorted(n for n, given in names.items() if given is None):
                number = hash_name(name)
                while (candidate := prefix << 24 | (number & 0xFFFFFF)) in taken:
                    number += 1
                taken.add(candidate)
                self._ids[prefix, name] = candidate

    def id(self, prefix: Prefix, name: str) -> int:
        """Return an object's id."""
        return self._ids[prefix, name]

    def _count_suffixes(self, name: str) -> None:
        if name in self._counted:
            return
        self._counted.add(name)
        parts = tuple(name.split("."))
        for start in range(len(parts)):
            suffix = parts[start:]
            self._suffixes[suffix] = self._suffixes.get(suffix, 0) + 1

    def alias(self, name: str) -> str:
        """Return the shortest suffix of a name that no other name ends with."""
        parts = tuple(name.split("."))
        for start in range(len(parts) - 1, -1, -1):
            if self._suffixes.get(parts[start:], 0) < 2:
                return ".".join(parts[start:])
        return name

"""A moved program goes on calling its first address its own, though the host that it is on has another one.

Its peers know it by that address wherever it is; it would notice itself: getsockname(2) says where it is now, and
bind(2) says that the address is not the host's. So its control group (v2) has BPF programs at these calls
(ownaddress.c):

  - bind() to its first address binds the host's; what it then sends to that address and port comes to itself;
  - getsockname(), getpeername() and recvfrom() give its sockets' ends the addresses and ports that they had first.

They are for calls of processes of the group, and only there where the program is not at home: everybody else, p4ferry
included, sees sockets as they are. All state is in the kernel, found through the group: a controller that takes over
after a crash goes on with it, and it vanishes with the group.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from dataplane.switch.engine import clang, libbpf
from dataplane.switch.engine.libbpf import Map
from dataplane.switch.pipeline import PipelineError

from .cgroups import UNIFIED, groups_of, mounts
from .groups import members
from .inet import InetSocket
from .model import App, Host
from .namespaces import in_netns
from .steering import Endpoint, Move

PREFIX = "p4ferry-"
"""Groups of this name are for one program each."""
SOURCE = Path(__file__).with_name("ownaddress.c")
_PATIENCE, _POLL = 1.0, 0.005  # seconds
_SO_NETNS_COOKIE = 71  # <asm-generic/socket.h>, Linux 5.14
_HOOKS = {  # <linux/bpf.h>: enum bpf_attach_type
    "own_bind4": 8,
    "own_bind6": 9,
    "own_connect4": 10,
    "own_connect6": 11,
    "own_sendmsg4": 14,
    "own_sendmsg6": 15,
    "own_recvmsg4": 19,
    "own_recvmsg6": 20,
    "own_getpeername4": 29,
    "own_getpeername6": 30,
    "own_getsockname4": 31,
    "own_getsockname6": 32,
}
_PLACE = struct.Struct("=Q4sHH")  # as in ownaddress.c
_NAME = struct.Struct("=4sHH")
_GROUP = struct.Struct("=QII")


SocketsOf = Callable[[App], Iterable[InetSocket]]


class Unavailable(Exception):
    """A program's view of its address cannot be kept; says why."""


def group_of(pid: int) -> Path | None:
    """Return the control group (v2) that a program has for itself; None if it has none."""
    group = groups_of(pid).get(UNIFIED)
    return group if group is not None and group.name.startswith(PREFIX) else None


def make_group(name: str) -> Path | None:
    """Make a control group (v2) for a program; None where there is no such hierarchy, or none that we may change."""
    root = _root()
    if root is None:
        return None
    group = root / name
    try:
        group.mkdir(exist_ok=True)
    except OSError:
        return None
    return group


def _root() -> Path | None:
    return next((m.point for m in mounts() if UNIFIED in m.controllers and m.root == "/"), None)


def find_groups(pattern: str) -> list[Path]:
    """Return the groups whose names fit a pattern of fnmatch(3)'s."""
    root = _root()
    return [] if root is None else list(root.glob(pattern))


def remove_groups(groups: Iterable[Path]) -> None:
    """Remove groups whose processes have ended; a process is in its group a little longer than it runs."""
    left = list(groups)
    for group in left:
        detach(group)
    deadline = time.monotonic() + _PATIENCE
    while left := [group for group in left if not _is_removed(group)]:
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL)


def _is_removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def follow(app: App, ports: Collection[tuple[int, int]], move: Move, source: Host, destination: Host) -> None:
    """Let a program that is about to move keep its names at its destination; raises Unavailable.

    `ports` are the protocols and local ports of its sockets: a move may be that of several programs.
    """
    group = group_of(app.pid)
    if group is None:
        raise Unavailable("it has no control group (v2) of its own")
    ends = {m.old: m.new for m in move.listeners}
    ends |= {m.old: m.new for m in move.connections} | {m.old: m.new for m in move.inner}
    try:
        here, there = _cookie(source), _cookie(destination)
        with _maps(group) as maps:
            names, firsts = maps["own_names"], maps["own_first"]
            _clear(maps, there)
            for old, new in ends.items():
                if (int(old.protocol), old.port) not in ports:
                    continue
                address, port = _look(names, _place(here, old)) or (old.address, old.port)
                if (address, port) != (new.address, new.port):
                    names.update(_place(there, new), _pack(address, port))
            for address in {source.address, *_firsts(firsts, here)} - {destination.address}:
                firsts.update(_any(there, address), _pack(destination.address, 0))
    except OSError as ex:
        raise Unavailable(f"the kernel does not take it ({ex.strerror})") from ex
    except PipelineError as ex:
        raise Unavailable(str(ex)) from ex


def follow_all(app: App, sockets: SocketsOf, move: Move, source: Host, destination: Host) -> list[str]:
    """Let all programs that are about to move keep their names; return what is lost, in sentences."""
    lost = []
    for member in members(app):
        ports = {(one.protocol, one.local_port) for one in sockets(member)}
        try:
            follow(member, ports, move, source, destination)
        except Unavailable as ex:
            lost.append(
                f"{member.name} cannot bind its first address any more, and is told {destination.name}'s instead: {ex}"
            )
    return lost


@contextlib.contextmanager
def _maps(group: Path) -> Iterator[dict[str, Map]]:
    """Open the maps of a group's programs, which are loaded and attached if they are not there."""
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        try:
            if not (found := _attached(fd)):
                _attach(fd, group)
                found = _attached(fd)
        finally:
            os.close(fd)
        for one in found:
            stack.callback(os.close, one.fd)
        yield {one.name: one for one in found}


def _attached(fd: int) -> list[Map]:
    """Return the maps of programs that are attached; two know all that matter."""
    found = []
    for hook in ("own_bind4", "own_getsockname4"):
        for program in libbpf.attached_to_group(fd, _HOOKS[hook]):
            if libbpf.program_name(program) == hook[:15]:
                found += libbpf.maps_of(program)
    return found


def _attach(fd: int, group: Path) -> None:
    try:
        code = clang.Compiler(clang.default_cache()).compile(SOURCE.read_text())
        made = libbpf.Object(code, program=next(iter(_HOOKS)))
    except (PipelineError, libbpf.VerifierRejected) as ex:
        raise Unavailable(f"its programs cannot be loaded ({ex})") from ex
    try:
        # A group's id is the inode number of its folder (kernfs); the root is at level 0.
        level = len(group.relative_to(_mount_of(group)).parts)
        made.map("own_group").update(bytes(4), _GROUP.pack(os.fstat(fd).st_ino, level, 0))
        for hook, kind in _HOOKS.items():
            libbpf.attach_to_group(fd, made.program(hook), kind)
    finally:
        made.close()


def detach(group: Path) -> None:
    """Take our programs off a group: the kernel does it with the group, but some time later."""
    with contextlib.suppress(OSError, PipelineError):
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for hook, kind in _HOOKS.items():
                for program in libbpf.attached_to_group(fd, kind):
                    if libbpf.program_name(program) == hook[:15]:
                        libbpf.detach_from_group(fd, program, kind)
        finally:
            os.close(fd)


def _mount_of(group: Path) -> Path:
    return next(folder for folder in group.parents if folder.is_mount())


def _clear(maps: Mapping[str, Map], cookie: int) -> None:
    for name in ("own_names", "own_first"):
        for key in maps[name].keys(_PLACE.size):
            if _PLACE.unpack(key)[0] == cookie:
                with contextlib.suppress(FileNotFoundError):
                    maps[name].delete(key)


def _firsts(firsts: Map, cookie: int) -> set[IPv4Address]:
    """Return the addresses that a program calls its own in a namespace, and the host does not have."""
    places = [_PLACE.unpack(key) for key in firsts.keys(_PLACE.size)]
    return {IPv4Address(address) for where, address, _, _ in places if where == cookie}


def _look(names: Map, key: bytes) -> tuple[IPv4Address, int] | None:
    try:
        address, port, _ = _NAME.unpack(names.lookup(key, _NAME.size))
    except FileNotFoundError:
        return None
    return IPv4Address(address), socket.ntohs(port)


def _place(cookie: int, end: Endpoint) -> bytes:
    return _PLACE.pack(cookie, end.address.packed, socket.htons(end.port), int(end.protocol))


def _any(cookie: int, address: IPv4Address) -> bytes:
    return _PLACE.pack(cookie, address.packed, 0, 0)


def _pack(address: IPv4Address, port: int) -> bytes:
    return _NAME.pack(address.packed, socket.htons(port), 0)


def _cookie(host: Host) -> int:
    """Return the number of a host's network namespace that no other one has had (SO_NETNS_COOKIE)."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            return int.from_bytes(one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)

    return in_netns(host.pid, ask)

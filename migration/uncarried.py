"""What CRIU does not carry of a program: read from the original, given to its copy before that runs.

    Baseline       before the freeze: what fresh sockets have at the destination, how interfaces are called there, and
                   what will be lost (attributes.py), which a whole look at /proc tells
    State.read     while the original stands still, and CRIU writes the image at the same time, so that it costs next
                   to nothing: an earlier look could be outdated
    State.give     when the copy has been built and has not run: only what differs

Sockets and threads are found again by what the program itself calls them: its process and its descriptor, its thread.
`to_json` and `from_json` keep the state beside the image, for a program that has to be restored from that.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from . import attributes, descriptors, memberships, notifications, sockopts, tree
from .attributes import Attributes, Inherited
from .errors import MigrationError
from .inet import Address
from .memberships import Membership, Places
from .model import Host
from .namespaces import in_netns, objects_of, remove_segments
from .repair import getfd_from
from .sockopts import Kind, Shape, Values

STATE_FILE = "uncarried.json"
ALWAYS_LOST = "its CPU times, CPU clocks and start times begin anew"
_KINDS = [
    Kind(family, kind, protocol)
    for family in (socket.AF_INET, socket.AF_INET6)
    for kind, protocol in ((socket.SOCK_STREAM, sockopts.TCP), (socket.SOCK_DGRAM, sockopts.UDP))
] + [Kind(socket.AF_UNIX, kind, 0) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
_ZEROCOPY, _TIMESTAMPING, _REUSEPORT = 60, 37, 15
_OPT_ID = 1 << 7  # SOF_TIMESTAMPING_OPT_ID


@dataclass(frozen=True, slots=True)
class Owner:
    """A descriptor of a process, which has a number of its own in its PID namespace."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class SocketState:
    """What a copy's socket has to be given."""

    kind: Kind
    values: Values
    memberships: tuple[Membership, ...] = ()


@dataclass(frozen=True, slots=True)
class Baseline:
    """What can be known before the program stands still."""

    plain: Mapping[Kind, Values]
    places: Places = field(default_factory=Places)
    inherited: Inherited = field(default_factory=Inherited)
    losses: tuple[str, ...] = ()

    @classmethod
    def look(cls, program: int, source: Host, destination: Host) -> Baseline:
        """Look at a program and at where it is to go."""
        plain = in_netns(destination.pid, lambda: sockopts.fresh(_KINDS))
        pids = tree.processes(program)
        return cls(
            plain,
            Places.between(source, destination),
            Inherited.of(program),
            (ALWAYS_LOST, *attributes.losses(pids)),
        )


@dataclass(slots=True)
class State:
    """What a copy has to be given, and what it cannot be."""

    sockets: dict[Owner, SocketState] = field(default_factory=dict)
    threads: dict[int, Attributes] = field(default_factory=dict)
    """By the threads' own numbers."""
    eventfds: dict[Owner, tuple[int, bool]] = field(default_factory=dict)
    """Counter, and whether it is a semaphore; only those that CRIU would make otherwise."""
    inotifies: list[Owner] = field(default_factory=list)
    """Those with events that nobody has read."""
    inherited: Inherited = field(default_factory=Inherited)
    segments: list[int] = field(default_factory=list)
    """Shared memory of System V that goes with its last user."""
    warnings: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    """What has come up since the program was checked, and would be lost."""

    @classmethod
    def read(cls, pids: Iterable[int], baseline: Baseline) -> State:
        """Read the state of processes that stand still, the first one first; what ends meanwhile has none."""
        state = cls(inherited=baseline.inherited, warnings=[*baseline.losses])
        reader = _Reader(state, baseline)
        pids = list(pids)
        with contextlib.suppress(OSError):
            reader.read_ipc(pids[0])
        for pid in pids:
            with contextlib.suppress(OSError):
                reader.read_threads(pid)
            with contextlib.suppress(OSError):
                reader.read_files(pid)
            with contextlib.suppress(OSError):
                reader.read_owner(pid)
        state.warnings += reader.shared_ports()
        return state

    def give(self, copies: Iterable[int], places: Places, folder: Path) -> None:
        """Give a copy, all of whose processes stand still, what the original had; what it refuses is a warning."""
        wanted = {owner.pid for owner in (*self.sockets, *self.eventfds, *self.inotifies)}
        if not wanted and not self.threads and not self.segments:
            return
        pids = list(copies)
        if self.segments:
            try:
                remove_segments(pids[0], self.segments)
            except OSError as ex:
                self.warnings.append(f"its shared memory does not go with its last user any more ({ex})")
        for pid in pids:
            own = min(wanted) if len(pids) == len(wanted) == 1 else tree.inside(pid)
            self._give_threads(pid)
            if own in wanted:
                process = os.pidfd_open(pid)
                try:
                    self._give_files(process, own, places, folder)
                finally:
                    os.close(process)

    def _give_threads(self, pid: int) -> None:
        if not self.threads:
            return
        for tid in tree.threads(pid):
            own = tree.inside(tid)
            if own in self.threads:
                failed = attributes.give(tid, self.threads[own])
                self.warnings += [f"thread {own} has lost {what}" for what in failed]

    def _give_files(self, process: int, pid: int, places: Places, folder: Path) -> None:
        for owner, state in self.sockets.items():
            if owner.pid == pid and (one := _socket(process, owner.fd)) is not None:
                with one:
                    if kind_matches(one, state.kind):
                        self._give_socket(one, state, places)
        for owner, (counter, _) in self.eventfds.items():
            if owner.pid == pid:
                with _descriptor(process, owner.fd) as fd:
                    notifications.set_counter(fd, counter)
        for owner in self.inotifies:
            if owner.pid == pid:
                with _descriptor(process, owner.fd) as fd:
                    if not notifications.overflow(fd, folder):
                        self.warnings.append(f"unread inotify events of descriptor {owner.fd} are lost")

    def _give_socket(self, one: socket.socket, state: SocketState, places: Places) -> None:
        failed = sockopts.write(one, translated(state.values, places))
        for membership in state.memberships:
            try:
                memberships.join(one, membership, places)
            except OSError as ex:
                failed.append(f"its membership of {membership.group} ({ex.strerror})")
        self.warnings += [f"{sockopts.name_of(one)} has lost {what}" for what in failed]

    def marked(self, files: bytes, images: Path, fdinfo: Any) -> bytes:
        """Let the eventfds in a files.img be made as they were; see notifications.py."""
        if not self.eventfds:
            return files
        owners = [(owner.pid, owner.fd) for owner in self.eventfds]
        ids = notifications.file_ids(images, owners, fdinfo)
        semaphores = {
            ids[o.pid, o.fd]: flag for o, (_, flag) in self.eventfds.items() if (o.pid, o.fd) in ids
        }
        return notifications.mark(files, semaphores, fdinfo)

    def check(self, name: str) -> None:
        """Raise MigrationError if the program has got something since it was checked that would be lost."""
        if self.obstacles:
            raise MigrationError(f"{name} cannot be moved now: it has {self.obstacles[0]}")

    def without_library(self, engine: str) -> State:
        """Take out what needs our library in CRIU, or a worker of ours, and tell that it is lost."""
        for owner, (_, is_semaphore) in self.eventfds.items():
            what = "is no semaphore" if is_semaphore else "has not its whole counter"
            self.warnings.append(f"eventfd {owner.fd} of process {owner.pid} {what} any more")
        self.warnings += [f"its {what} is not carried by {engine}" for what in self.inherited.names()]
        self.eventfds, self.inherited = {}, Inherited()
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "sockets": [
                [
                    o.pid,
                    o.fd,
                    _kind_to_json(s.kind),
                    _values_to_json(s.values),
                    [m.to_json() for m in s.memberships],
                ]
                for o, s in self.sockets.items()
            ],
            "threads": {
                str(tid): [a.slack, a.ioprio, a.coredump_filter, a.affinity]
                for tid, a in self.threads.items()
            },
            "eventfds": [[o.pid, o.fd, *value] for o, value in self.eventfds.items()],
            "inotifies": [[o.pid, o.fd] for o in self.inotifies],
            "inherited": self.inherited.to_json(),
            "segments": self.segments,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> State:
        """Read what `to_json` has written."""
        return cls(
            {
                Owner(pid, fd): SocketState(
                    Kind(*kind),
                    {(level, number): bytes.fromhex(value) for level, number, value in options},
                    tuple(Membership.from_json(one) for one in joined),
                )
                for pid, fd, kind, options, joined in values["sockets"]
            },
            {int(tid): Attributes(*one) for tid, one in values["threads"].items()},
            {Owner(pid, fd): (counter, flag) for pid, fd, counter, flag in values["eventfds"]},
            [Owner(pid, fd) for pid, fd in values["inotifies"]],
            Inherited(**values["inherited"]),
            values["segments"],
        )


class _Reader:
    """Fills a State; each socket once, whoever else has it, too."""

    def __init__(self, state: State, baseline: Baseline) -> None:
        self._state, self._plain = state, baseline.plain
        self._readings: dict[Kind, sockopts.Reading] = {}
        self._seen: set[str] = set()
        self._groups: list[tuple[Address, int]] | None = None
        self._ports: dict[tuple[int, object], int] = {}

    def read_ipc(self, pid: int) -> None:
        """Look into an IPC namespace, if it is the program's own."""
        if tree.namespace(pid, "ipc") != tree.namespace("self", "ipc"):
            self._state.segments, queues = objects_of(pid)
            self._state.obstacles += [descriptors.QUEUE % name for name in queues]

    def read_threads(self, pid: int) -> None:
        for tid in tree.threads(pid):
            if found := attributes.read(pid, tid):
                self._state.threads[tree.inside(tid)] = found

    def read_owner(self, pid: int) -> None:
        """Look whose a process was that has ended, and that nobody has waited for: CRIU makes it again as root's."""
        if tree.state(pid) == "Z" and not tree.is_of_root(pid):  # few are: one file is read of all others
            self._state.warnings.append(
                f"process {tree.inside(pid)}, which has ended and was not waited for, is root's now (waitid: si_uid)"
            )

    def read_files(self, pid: int) -> None:
        own = tree.inside(pid)
        process = os.pidfd_open(pid)
        try:
            for file in tree.open_files([pid]):
                owner, target = Owner(own, file.fd), file.target
                if target.startswith("socket:"):
                    if target not in self._seen and (one := _socket(process, file.fd)) is not None:
                        self._seen.add(target)
                        with one:
                            self._read_socket(one, owner, pid)
                elif target == "anon_inode:[eventfd]":
                    self._read_eventfd(file, owner)
                elif target.endswith(tree.DELETED):
                    self._read_deleted(pid, owner, target.removesuffix(tree.DELETED))
                elif target == "anon_inode:inotify":
                    with _descriptor(process, file.fd) as fd:
                        if notifications.unread(fd):
                            self._state.inotifies.append(owner)
        finally:
            os.close(process)

    def _read_deleted(self, pid: int, owner: Owner, name: str) -> None:
        """Look whether CRIU can call a deleted file by its name while it makes it again."""
        if name.startswith("/") and os.path.lexists(f"{tree.PROC}/{pid}/root{name}"):
            self._state.warnings.append(
                f"descriptor {owner.fd} of process {owner.pid}, a deleted file, has another name in /proc/PID/fd: "
                f"{name} is another file now"
            )

    def _read_socket(self, one: socket.socket, owner: Owner, pid: int) -> None:
        kind = sockopts.kind_of(one)
        if (reading := self._readings.get(kind)) is None:
            reading = self._readings[kind] = sockopts.Reading(kind, self._plain.get(kind.fresh))
        values = reading.take(one)
        warn = self._state.warnings.append
        for option in sockopts.lost(values):
            warn(f"{sockopts.name_of(one)} has lost {option.name}")
        joined: list[Membership] = []
        if kind.is_inet:
            if kind.type == socket.SOCK_DGRAM:
                joined = memberships.read(one, self._joined(pid))
            self._look_closer(one, kind, values)
        if values or joined:
            self._state.sockets[owner] = SocketState(kind, values, tuple(joined))

    def _look_closer(self, one: socket.socket, kind: Kind, values: Values) -> None:
        """Tell of what a socket has that no option sets again."""
        warn = self._state.warnings.append
        if any(values.get((sockopts.SOL_SOCKET, _ZEROCOPY), b"")):
            warn(f"{sockopts.name_of(one)} counts its zerocopy completions from 0 again (SO_ZEROCOPY)")
        stamping = values.get((sockopts.SOL_SOCKET, _TIMESTAMPING), b"")
        if int.from_bytes(stamping[:4], "little") & _OPT_ID:
            warn(f"{sockopts.name_of(one)} counts its time stamps from 0 again (SOF_TIMESTAMPING_OPT_ID)")
        poller = select.poll()
        poller.register(one, select.POLLPRI)  # POLLERR is always told
        events = sum(event for _, event in poller.poll(0))
        if events & select.POLLPRI:
            self._state.obstacles.append(f"{sockopts.name_of(one)} {descriptors.URGENT}")
        if events & select.POLLERR:
            warn(f"{sockopts.name_of(one)} has lost an error that had not been read (SO_ERROR, MSG_ERRQUEUE)")
        is_receiver = kind.is_listening or kind.type == socket.SOCK_DGRAM
        if is_receiver and any(values.get((sockopts.SOL_SOCKET, _REUSEPORT), b"")):
            place = (kind.protocol, one.getsockname())
            self._ports[place] = self._ports.get(place, 0) + 1

    def shared_ports(self) -> list[str]:
        """Tell of sockets among which a program in the kernel may choose, which nothing tells of."""
        return [
            f"{count} sockets share {sockopts.ends_text(where)} (SO_REUSEPORT): a BPF program that "
            "chooses one of them, if there is one, is not carried"
            for (_, where), count in self._ports.items()
            if count > 1
        ]

    def _joined(self, pid: int) -> list[tuple[Address, int]]:
        if self._groups is None:
            self._groups = memberships.joined_by_any(pid)
        return self._groups

    def _read_eventfd(self, file: tree.OpenFile, owner: Owner) -> None:
        values = tree.fdinfo_of(file)
        identity = f"eventfd:{values.get('eventfd-id', file)}"
        if identity in self._seen:
            return
        self._seen.add(identity)
        counter = int(values.get("eventfd-count", "0"), 16)
        if "eventfd-semaphore" not in values:  # Linux before 6.5
            self._state.warnings.append(f"eventfd {owner.fd} is no semaphore any more, if it was one")
        is_semaphore = values.get("eventfd-semaphore", "0") != "0"
        if notifications.is_special(counter, is_semaphore):
            self._state.eventfds[owner] = counter, is_semaphore


def translated(values: Values, places: Places) -> Values:
    """Return options as they have to be called at another place."""
    found = dict(values)
    for key, value in values.items():
        option = sockopts.find(*key)
        assert option is not None
        if option.shape is Shape.ADDRESS:
            found[key] = places.address(IPv4Address(value)).packed
        elif option.shape is Shape.INTERFACE:
            found[key] = places.interface(int.from_bytes(value, "little")).to_bytes(4, "little")
        elif option.shape is Shape.INTERFACE_BE:
            found[key] = places.interface(int.from_bytes(value, "big")).to_bytes(4, "big")
    return found


def kind_matches(one: socket.socket, kind: Kind) -> bool:
    """Return True if a socket can be the copy of one of a kind: CRIU's own descriptors were read as well."""
    return (one.family, one.type, one.proto) == (kind.family, kind.type, kind.protocol)


def _socket(process: int, fd: int) -> socket.socket | None:
    """Duplicate a process's socket; None if it is closed, or no socket."""
    try:
        return socket.socket(fileno=getfd_from(process, fd))
    except OSError:
        return None


@contextlib.contextmanager
def _descriptor(process: int, fd: int) -> Iterator[int]:
    own = getfd_from(process, fd)
    try:
        yield own
    finally:
        os.close(own)


def _kind_to_json(kind: Kind) -> list[int | bool]:
    return [kind.family, kind.type, kind.protocol, kind.is_listening, kind.is_connected]


def _values_to_json(values: Values) -> list[list[int | str]]:
    return [[level, number, value.hex()] for (level, number), value in values.items()]


def read_back(folder: Path) -> State:
    """Return the state that was written beside an image; an empty one if there is none."""
    try:
        return State.from_json(json.loads((folder / STATE_FILE).read_text()))
    except FileNotFoundError:
        return State()

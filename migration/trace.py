"""What caused what in a migration: vector clocks, and the log of them that ShiViz draws. Pure.

    trace = Trace({"h2": "source", "h3": "destination"})
    with trace.exchange("h2", "freeze", "frozen, the image is complete"):
        …                            # returns when the source has answered
    path.write_text(trace.render())

Every participant counts its own events. Whoever sends adds its clock to the message, whoever receives takes the larger
count of each participant from it. So one event came before another exactly if its clock is smaller, and two whose
clocks are not comparable did not know of each other (Fidge, Mattern).

Only the controller keeps a log, and sees the others' events through their answers: a request counts as received when
its answer is there, in the order of the answers. What was never answered was, as far as anybody knows, never received.
The controller is one participant though it has several threads; its events are in the order in which they were noted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

CONTROLLER = "controller"
SWITCH = "switch"
SOURCE = "source"
DESTINATION = "destination"

PARSER = r"(?<ms>\d+\.\d+) (?<event>.*)\n(?<host>\S+) (?<clock>\{.*\})"
"""The log parsing expression, as ShiViz wants it: the first line of the file. The second, empty one says that the file
has one execution."""

Clock = Mapping[str, int]


def merge(one: Clock, other: Clock) -> dict[str, int]:
    """Return the larger count of each participant."""
    return {host: max(one.get(host, 0), other.get(host, 0)) for host in (*one, *other)}


def is_before(one: Clock, other: Clock) -> bool:
    """Say whether the event with the first clock may have caused the one with the second."""
    return one != other and all(count <= other.get(host, 0) for host, count in one.items())


def is_concurrent(one: Clock, other: Clock) -> bool:
    """Say whether neither of two different events may have caused the other."""
    return not is_before(one, other) and not is_before(other, one)


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of one participant; `ms` is when the controller noted it."""

    host: str
    clock: Clock
    text: str
    ms: float


@dataclass
class Trace:
    """The events of one migration; may be written to from several threads."""

    names: Mapping[str, str] = field(default_factory=dict)
    """What the log calls a host."""
    entries: list[Entry] = field(default_factory=list)
    _clocks: dict[str, Clock] = field(default_factory=dict)
    _on_the_way: dict[str, list[tuple[str, Clock]]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, host: str, text: str, received: Clock | None = None) -> Clock:
        """Add an event of a participant, which may have received a message; return its clock, the next message's."""
        host = self.names.get(host, host)
        with self._lock:
            clock = merge(self._clocks.get(host, {}), received or {})
            clock[host] = clock.get(host, 0) + 1
            self._clocks[host] = clock
            ms = (time.monotonic() - self._began) * 1000
            self.entries.append(Entry(host, clock, " ".join(text.split()), ms))
            return clock

    def send(self, host: str, text: str) -> None:
        """Send a message from the controller that gets no answer: an `exchange` `behind` it shows that it arrived."""
        name = self.names.get(host, host)
        with self._lock:
            clock = self.note(CONTROLLER, f"to {name}: {text}")
            self._on_the_way.setdefault(name, []).append((text, clock))

    @contextmanager
    def exchange(
        self, host: str, request: str, answer: str = "done", *, behind: bool = False
    ) -> Iterator[None]:
        """Send a request from the controller; the block returns when it was answered, or raises.

        `behind` says that it went the same way as what was sent before, and cannot have arrived first.
        """
        name = self.names.get(host, host)
        with self._lock:
            sent = self.note(CONTROLLER, f"to {name}: {request}")
            earlier = self._on_the_way.pop(name, []) if behind else []
        try:
            yield
        except BaseException as ex:
            self.note(CONTROLLER, f"{name} did not: {request}: {ex}")
            raise
        with self._lock:
            for text, clock in earlier:
                self.note(name, f"gets: {text}", clock)
            self.note(name, f"gets: {request}", sent)
            answered = self.note(name, f"says: {answer}")
            self.note(CONTROLLER, f"from {name}: {answer}", answered)

    def render(self) -> str:
        """Write the log as ShiViz reads it from a file."""
        with self._lock:
            lines = [PARSER, ""]
            for entry in self.entries:
                lines += [f"{entry.ms:.3f} {entry.text}", f"{entry.host} {json.dumps(entry.clock)}"]
        return "\n".join(lines) + "\n"


ACTIVE: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the migration that the running code works for, if it is traced."""


@contextmanager
def told(host: str, request: str, answer: str = "done", *, behind: bool = False) -> Iterator[None]:
    """Note an exchange in the active trace, if there is one."""
    trace = ACTIVE.get()
    if trace is None:
        yield
        return
    with trace.exchange(host, request, answer, behind=behind):
        yield


def sent(host: str, text: str) -> None:
    """Note a message in the active trace, if there is one."""
    trace = ACTIVE.get()
    if trace is not None:
        trace.send(host, text)

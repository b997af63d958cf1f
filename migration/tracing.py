"""Tracing a migration without a word about it in the transaction: wrappers around its seams.

What the transaction asks of a runtime's passage is an exchange with the source or the destination, its events are the
controller's own, and while it talks to the network the trace is the active one, in which whoever talks to the switch
notes that (`controllers/switchlink.py`, `controllers/steering.py`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from .preflight import Plan
from .report import Event, OnEvent, Report
from .runtime import Passage, Runtime
from .steering import Steering
from .trace import ACTIVE, CONTROLLER, DESTINATION, SOURCE, Trace

LOG = logging.getLogger(__name__)

# What a passage's methods say to which end, and hear from it; in the order of the sending.
Talk = tuple[tuple[str, str, str], ...]
PASSAGE: Mapping[str, Talk] = {
    "start_freeze": ((SOURCE, "stop", "is about to"),),
    "freeze": ((SOURCE, "freeze", "frozen, the image is complete"),),
    "restore": ((DESTINATION, "restore", "built and stopped"),),
    "end_source": ((SOURCE, "end", "has ended"),),
    "resume": ((DESTINATION, "run", "runs"),),
    "back_out": ((DESTINATION, "end the copy", "gone"), (SOURCE, "run on", "runs again")),
    "revive": ((SOURCE, "restore what has ended", "runs again"),),
}
OPENING: Talk = (
    (DESTINATION, "get ready to restore", "ready"),
    (SOURCE, "get ready to freeze", "ready"),
)
_OTHER_END = {SOURCE: DESTINATION, DESTINATION: SOURCE}

Around = Callable[[str], AbstractContextManager[None] | None]


class _Wrapped:
    """An object whose methods are called inside a context, if there is one for them."""

    def __init__(self, inner: object, around: Around) -> None:
        self._inner = inner
        self._around = around

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._inner, name)
        if not callable(member):
            return member

        def call(*arguments: Any, **options: Any) -> Any:
            with self._around(name) or ExitStack():
                return member(*arguments, **options)

        return call


class _TracedRuntime(_Wrapped):
    """A runtime that opens traced passages."""

    def __init__(self, tracer: Tracer, inner: Runtime, turned: bool) -> None:
        super().__init__(inner, lambda name: None)
        self._tracer, self._turned = tracer, turned

    def open_passage(self, *arguments: Any, **options: Any) -> Passage:
        with self._tracer.talk(OPENING, self._turned):
            passage = self._inner.open_passage(*arguments, **options)  # type: ignore[attr-defined]

        def around(name: str) -> AbstractContextManager[None] | None:
            return self._tracer.talk(PASSAGE[name], self._turned) if name in PASSAGE else None

        return cast(Passage, _Wrapped(passage, around))


class Tracer:
    """Keeps the trace of one migration, its way home included: source and destination stay the names of the hosts."""

    def __init__(self, plan: Plan) -> None:
        self._source = plan.source.name
        self.trace = Trace({plan.source.name: SOURCE, plan.destination.name: DESTINATION})
        self.trace.note(
            CONTROLLER, f"{plan.app.name} is to move from {plan.source.name} to {plan.destination.name}"
        )

    def runtime(self, runtime: Runtime, plan: Plan) -> Runtime:
        """Return a runtime that does the same, and is heard."""
        return cast(Runtime, _TracedRuntime(self, runtime, plan.source.name != self._source))

    def steering(self, steering: Steering) -> Steering:
        """Return a network that does the same, and is heard."""
        return cast(Steering, _Wrapped(steering, lambda name: self._active()))

    def on_event(self, listener: OnEvent) -> OnEvent:
        """Return a listener that notes the steps, and passes them on."""

        def note(event: Event) -> None:
            facts = [f"{event.step}: {event.phase.value}"]
            if event.ms is not None:
                facts.append(f"after {event.ms:.3f} ms")
            if event.bytes is not None:
                facts.append(f"{event.bytes} bytes")
            if event.reason is not None:
                facts.append(event.reason)
            self.trace.note(CONTROLLER, ", ".join(facts))
            listener(event)

        return note

    def end(self, report: Report) -> None:
        """Note how it ended."""
        self.trace.note(
            CONTROLLER,
            f"{report.outcome.value}{f': {report.reason}' if report.reason else ''}, "
            f"{report.connections.kept} connections kept, {report.held.packets} packets held",
        )

    @contextmanager
    def talk(self, talk: Talk, turned: bool) -> Iterator[None]:
        """Note exchanges that happen at the same time; `turned` when the program is on its way home."""
        with ExitStack() as stack:
            for end, request, answer in talk:
                host = _OTHER_END[end] if turned else end
                stack.enter_context(self.trace.exchange(host, request, answer))
            yield

    @contextmanager
    def _active(self) -> Iterator[None]:
        token = ACTIVE.set(self.trace)
        try:
            yield
        finally:
            ACTIVE.reset(token)


class TraceFolder:
    """Where traces go, as ID.log; only the last `keep` of this run stay, if that is said.

    A folder that cannot be written to is no reason for a migration to fail.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self._folder = folder
        self._keep = keep
        self._kept: deque[Path] = deque()
        self._lock = threading.Lock()

    def begin(self, identity: str) -> None:
        """Remove what an earlier run has written about a migration of the same name."""
        with suppress(OSError):
            self._path(identity).unlink(missing_ok=True)

    def save(self, identity: str, trace: Trace) -> None:
        """Write a migration's log."""
        path = self._path(identity)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(trace.render(), encoding="utf-8")
        except OSError as ex:
            LOG.warning("the trace of migration %s cannot be written: %s", identity, ex)
            return
        with self._lock:
            self._kept.append(path)
            too_many = self._kept.popleft() if self._keep and len(self._kept) > self._keep else None
        if too_many is not None:
            with suppress(OSError):
                too_many.unlink(missing_ok=True)

    def _path(self, identity: str) -> Path:
        return self._folder / f"{identity}.log"

"""Fixtures of the engine's tests."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dataplane.switch.engine import EbpfEngine, EbpfPipeline
from dataplane.switch.pipeline import ActionCall, Engine, Match, Operation, Pipeline, TableEntry, Update
from tests.dataplane.engine.network import Cable, own_namespace

DEVICE = 4077

# Checked by mypy: these are the seam's Protocols.
_ENGINE: Callable[[EbpfEngine], Engine] = lambda engine: engine  # noqa: E731
_PIPELINE: Callable[[EbpfPipeline], Pipeline] = lambda pipeline: pipeline  # noqa: E731


@dataclass
class Lab:
    """An engine with two ports, and everything that comes out of it."""

    engine: EbpfEngine
    cables: dict[int, Cable]
    events: queue.Queue[tuple[str, object]] = field(default_factory=queue.Queue)

    def run(self, program: bytes) -> EbpfPipeline:
        """Load and activate a program."""
        pipeline = self.engine.load(program)
        pipeline.activate()
        return pipeline

    def event(self, timeout: float = 2.0) -> tuple[str, object]:
        """Return the next packet-in or digest."""
        return self.events.get(timeout=timeout)

    def packet_in(self) -> bytes:
        kind, frame = self.event()
        assert kind == "packet_in"
        assert isinstance(frame, bytes)
        return frame


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory, so that each program is compiled once a run."""
    return tmp_path_factory.mktemp("p4ferry-cache")


@pytest.fixture
def lab(cache: Path) -> Iterator[Lab]:
    """Build a lab with ports 1, 2 and 3."""
    events: queue.Queue[tuple[str, object]] = queue.Queue()
    with own_namespace():
        cables = {number: Cable(number) for number in (1, 2, 3)}
        with EbpfEngine(
            DEVICE,
            cache=cache,
            on_packet_in=lambda frame: events.put(("packet_in", frame)),
            on_digest=lambda name, values: events.put((name, values)),
        ) as engine:
            for number, cable in cables.items():
                engine.add_port(number, cable.port)
            yield Lab(engine, cables, events)
        for cable in cables.values():
            cable.close()


def insert(
    pipeline: EbpfPipeline, table: str, match: Sequence[Match], action: str, *params: int, priority: int = 0
) -> None:
    """Insert a row; fail if it is refused."""
    entry = TableEntry(tuple(match), ActionCall(action, params), priority)
    [error] = pipeline.apply([Update(Operation.INSERT, table, entry)])
    if error:
        raise error

"""Fixtures of the engine's tests.

With P4FERRY_COLLECT_PROGRAMS=DIR every program that the tests load is also written to that folder, for
`python -m dataplane.switch.engine.check`.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dataplane.switch.engine import EbpfEngine, EbpfPipeline
from dataplane.switch.pipeline import ActionCall, Engine, Match, Operation, Pipeline, TableEntry, Update
from tests.dataplane.engine.network import Cable, own_namespace

DEVICE = 4077
COLLECT = os.environ.get("P4FERRY_COLLECT_PROGRAMS")

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


def collect(program: bytes, suffix: str = ".json") -> None:
    """Write a program of the running test to the folder that the environment names, if it names one."""
    if not COLLECT:
        return
    folder = Path(COLLECT)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(program).hexdigest()[:8]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].removesuffix(" (call)")
    name = re.sub(r"\W+", "_", test.removesuffix(" (setup)")).strip("_")
    if not list(folder.glob(f"*-{digest}{suffix}")):
        (folder / f"{name}-{digest}{suffix}").write_bytes(program)


@pytest.fixture(scope="session", autouse=True)
def collected() -> Iterator[None]:
    """Collect what any engine loads."""
    load = EbpfEngine.load

    def collecting(engine: EbpfEngine, bmv2_json: bytes) -> EbpfPipeline:
        collect(bmv2_json)
        return load(engine, bmv2_json)

    with pytest.MonkeyPatch.context() as patch:
        if COLLECT:
            patch.setattr(EbpfEngine, "load", collecting)
        yield


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

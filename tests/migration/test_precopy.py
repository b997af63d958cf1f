"""Pre-copy where the kernel tracks written pages: a program that writes all the time, and every write arrives.

The reference machine's kernel does not track, distributions' do: `make vm-test` runs these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import Stage
from transferring import keep_writing, managed

from migration.report import Outcome
from migration.transfer.modes import Mode, Via, probe

pytestmark = pytest.mark.net

SIZE_MIB, HOT_MIB = 256, 32


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        runtime = built.runtime
        runtime.kernel = probe(runtime.criu, runtime.custody, built.hosts["A"].pid)
        if not runtime.kernel.tracks_dirty:
            pytest.skip("this kernel does not track which pages are written (CONFIG_MEM_SOFT_DIRTY)")
        yield built


@pytest.mark.parametrize("via", list(Via))
def test_every_write_arrives(scene: Stage, via: Via) -> None:
    """There and back by `auto`, which takes pre: later rounds move only what was written, and no page is old."""
    program = keep_writing(scene, SIZE_MIB, HOT_MIB)
    assert program.ask("rate 2000").startswith("ok")
    for to in ("C", "B"):
        report = program.migrate(to, Mode.AUTO, via)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert report.transfer is not None
        transfer = report.to_json()["transfer"]
        assert transfer["mode"] == Mode.PRE.value
        assert transfer["rounds"] >= 2
        # all of it once, then at most the hot part in each further round, and Python's own pages
        most = SIZE_MIB + (HOT_MIB + 16) * transfer["rounds"]
        assert SIZE_MIB << 20 < transfer["bytes"] < most << 20
        assert program.ask("check").startswith("ok")
    rounds = program.ask("check")
    assert rounds.startswith("ok") and rounds != "ok 0 0"


def test_a_quick_writer_ends_the_rounds(scene: Stage) -> None:
    """A program that writes as fast as pages move is frozen after a round that was no help, and is right."""
    program = keep_writing(scene, 64, 64)
    assert program.ask("rate 1000000").startswith("ok")
    report = program.migrate("C", Mode.PRE, Via.SHARED)
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert report.transfer is not None
    assert report.transfer["rounds"] <= 8
    assert program.ask("rate 100").startswith("ok")

"""The Redis benchmark runs, at its smallest; its timings mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from topo import paths

pytestmark = [pytest.mark.net]


@pytest.mark.long
def test_every_part_gives_its_figures(tmp_path: Path) -> None:
    """One migration of each arm, 20 MB instead of 1 GiB: no acknowledged write is lost, and the table is printed."""
    out = tmp_path / "out.json"
    sizes = [
        "--rounds",
        "1",
        "--migrations",
        "1",
        "--big-rounds",
        "1",
        "--big-migrations",
        "1",
        "--gib",
        "0.02",
    ]
    command = [sys.executable, "-m", "bench", "redis", *sizes, "--json", str(out)]
    done = subprocess.run(
        command, cwd=paths.CHECKOUT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    arms = [*result["small"], *result["large"]]
    assert {"1 connection, 1,000/s", "50 connections, 20,000/s", "empty", "lazy", "stop"} == {
        a["arm"] for a in arms
    }
    for arm in arms:
        assert arm["migrations"] == 1 and arm["acknowledged"] > 500 and arm["keys_checked"] > 100
        assert [arm[name] for name in ("errors", "resets", "wrong_replies", "lost", "unknown")] == [0] * 5
        assert arm["gap_ms"]["p50"] > 0
        assert arm["arm"] in done.stdout
    assert {arm["arm"]: arm["memory_bytes"] for arm in arms}["stop"] > 20e6
    assert result["gap_to_empty"]["stop"] > 0

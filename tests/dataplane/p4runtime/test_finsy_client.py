"""finsy as the client: the example in docs, which lists, inserts and reads back, run against the model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import finsy

from tests.dataplane.p4runtime import programs
from tests.dataplane.p4runtime.conftest import ModelSwitch

CHECKOUT = Path(__file__).parents[3]
SCRIPT = CHECKOUT / "docs" / "examples" / "tables.py"


def run_script(address: str, device_id: int, *arguments: str) -> str:
    """Run the example, and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), address, str(device_id), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_lines_of_finsy(switch: ModelSwitch, tmp_path: Path) -> None:
    """It sets the pipeline, lists its tables, inserts a row and finds it again."""
    (tmp_path / "p4info.txt").write_text(str(programs.p4info()))
    (tmp_path / "program.json").write_bytes(programs.device_config())
    printed = run_script(
        switch.address, 7, str(tmp_path / "p4info.txt"), str(tmp_path / "program.json"),
        "exact", "port=1", "address=0x0a000001", "drop",
    )  # fmt: skip
    assert "acl" in printed
    assert "P4TableEntry(table_id='exact'" in printed
    assert len(switch.engine.running.tables["Ingress.exact"]) == 1


def test_finsys_delete_all(switch: ModelSwitch, tmp_path: Path) -> None:
    """It also asks for entities that this switch never has: there are none, which is no error."""
    (tmp_path / "p4info.txt").write_text(str(programs.p4info()))
    (tmp_path / "program.json").write_bytes(programs.device_config())

    async def fill_and_empty() -> tuple[int, int]:
        options = finsy.SwitchOptions(
            p4info=tmp_path / "p4info.txt", p4blob=tmp_path / "program.json", device_id=7
        )
        async with finsy.Switch("sw", switch.address, options) as client:
            match = finsy.P4TableMatch({"port": 1, "address": 2})
            await client.insert(
                [finsy.P4TableEntry("exact", match=match, action=finsy.P4TableAction("drop"))]
            )
            before = len(switch.engine.running.tables["Ingress.exact"])
            await client.delete_all()
            return before, len(switch.engine.running.tables["Ingress.exact"])

    assert asyncio.run(fill_and_empty()) == (1, 0)

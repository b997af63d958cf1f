"""The file that a run's migrations are reported in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_report(path: Path, target: str, migrations: list[dict[str, Any]]) -> None:
    """Write design.md's report; a half-written one never replaces an earlier one."""
    text = json.dumps({"version": 1, "target": target, "migrations": migrations}, indent=2) + "\n"
    if path.exists() and not path.is_file():  # a device or a pipe, such as /dev/stdout
        path.write_text(text)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)

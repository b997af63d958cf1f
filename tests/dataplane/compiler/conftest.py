"""Fixtures of the compiler's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .skeleton import Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    """Return a compiler for program texts."""
    return Workbench(tmp_path)

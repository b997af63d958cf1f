"""What the tests with real tools share: a build from packages takes longer than what most of them look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from .real import build


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the smallest image, from nothing."""
    target = tmp_path_factory.mktemp("images") / "layout"
    build(target)
    return target

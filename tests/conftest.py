"""What all tests share: how long one may take, which have a target of their own, and what root leaves behind."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import hypothesis
import pytest

from migration.slowness import factor, scaled
from topo import paths

# How long an example takes says nothing here: speed belongs to bench/, and other work goes on beside the tests.
hypothesis.settings.register_profile("p4ferry", deadline=None)
hypothesis.settings.load_profile("p4ferry")

APART = ("engines", "fidelity", "long")
"""Markers of tests that `make test` leaves to the target of that name."""

paths.keep_checkout_removable()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Scale the limit of pyproject.toml, before pytest-timeout reads it."""
    try:
        factor()
    except SystemExit as ex:
        raise pytest.UsageError(str(ex)) from ex
    if factor() > 1 and config.getoption("timeout", None) is None:
        config.option.timeout = scaled(float(config.getini("timeout")))


def pytest_unconfigure() -> None:
    """Give back what root has made: caches, compiled programs."""
    if os.geteuid() == 0:
        subprocess.run([Path(__file__).parents[1] / "scripts" / "as-root", "true"], check=False, timeout=60)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has a target of its own, and scale the limits of single tests."""
    apart = [marker for marker in APART if not _is_wanted(marker, config)]
    left = {item for item in items if any(map(item.get_closest_marker, apart))}
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = [item for item in items if item not in left]
    for item in items:
        for mark in item.own_markers:
            if mark.name == "timeout" and mark.args:
                object.__setattr__(mark, "args", (scaled(float(mark.args[0])), *mark.args[1:]))


def _is_wanted(marker: str, config: pytest.Config) -> bool:
    """Say whether tests with a marker of APART are to run: `-m` names it, or its target has set its variable."""
    return marker in config.option.markexpr or os.environ.get(f"P4FERRY_{marker.upper()}") == "full"

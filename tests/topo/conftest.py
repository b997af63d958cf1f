"""What the tests of whole testbeds share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.topo.machine import leftovers
from topo.runs import clean_up
from topo.waiting import wait_until


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Whatever a test does, the machine is as before."""
    clean_up()
    before = leftovers()
    yield
    wait_until(lambda: leftovers() == before, 5.0, 0.1)
    assert leftovers() == before

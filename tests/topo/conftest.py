"""What the tests of whole testbeds share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.topo.machine import assert_as, leftovers
from topo.runs import clean_up


@pytest.fixture
def leaves_nothing() -> Iterator[None]:
    """Whatever a test does, the machine is as before."""
    clean_up()
    before = leftovers()
    yield
    assert_as(before)

"""Maglev's properties (NSDI 2016, section 3.4): full, fair, and hardly disturbed by changes."""

from __future__ import annotations

from collections import Counter
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers import maglev

pools = st.dictionaries(st.integers(1, 1023), st.integers(1, maglev.MAX_WEIGHT), min_size=1, max_size=20)


@given(st.integers(1, 1023))
def test_a_permutation_visits_every_slot(backend: int) -> None:
    """1021 is prime, so any skip but 0 does."""
    offset, skip = maglev.permutation(backend)
    assert 0 <= offset < maglev.SLOTS
    assert 0 < skip < maglev.SLOTS
    assert gcd(skip, maglev.SLOTS) == 1


@given(pools)
@settings(max_examples=50, deadline=None)
def test_every_slot_is_taken_by_weight(weights: dict[int, int]) -> None:
    """No slot is free, and every backend has its share, within the last turn of each."""
    counts = Counter(maglev.build(weights))
    assert sum(counts.values()) == maglev.SLOTS
    assert set(counts) <= set(weights)
    total = sum(weights.values())
    for backend, weight in weights.items():
        assert abs(counts[backend] - maglev.SLOTS * weight / total) <= len(weights) + 1


@given(st.sets(st.integers(1, 1023), min_size=2, max_size=20))
@settings(max_examples=50, deadline=None)
def test_one_that_leaves_disturbs_few(backends: set[int]) -> None:
    """Nearly all slots of the others stay."""
    before = maglev.build(dict.fromkeys(backends, 1))
    gone = min(backends)
    after = maglev.build(dict.fromkeys(backends - {gone}, 1))
    moved = sum(1 for old, new in zip(before, after, strict=True) if old not in (gone, new))
    assert moved <= maglev.SLOTS * 0.3


@pytest.mark.parametrize("weights", [{}, {1: 0}, {1: 0, 2: 0}])
def test_nobody(weights: dict[int, int]) -> None:
    """Without a backend there is no table."""
    assert maglev.build(weights) == []


def test_the_order_of_backends_does_not_matter() -> None:
    """Two controllers come to the same table."""
    assert maglev.build({3: 1, 1: 2, 2: 1}) == maglev.build({1: 2, 2: 1, 3: 1})

"""What the measuring client remembers of its gaps: the last moments all, of the others the worst."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from apps.echo.client import MAX_GAPS, STATUS_MEMORY, Gap, GapLog


@given(st.integers(0, 4 * MAX_GAPS), st.integers(1, 45))
def test_a_long_run_forgets_neither_the_last_moments_nor_the_worst(long_gaps: int, short_gaps: int) -> None:
    """However many long gaps there were: a status has the short ones of the last seconds."""
    log = GapLog()
    times = [number * 0.1 for number in range(long_gaps + short_gaps)]
    for number, start in enumerate(times):
        seconds = 0.02 + number * 1e-6 if number < long_gaps else 0.001
        log.add(Gap(seconds, start, start + seconds, 0))
    now = times[-1] + 0.001
    assert short_gaps * 0.1 < STATUS_MEMORY
    recent = [gap for gap in log.since(now - STATUS_MEMORY) if gap.seconds == 0.001]
    assert len(recent) >= short_gaps - 1  # two may end in the same tenth of a second
    worst = log.worst()
    assert len(worst) <= MAX_GAPS
    if long_gaps:
        assert worst[0].seconds == 0.02 + (long_gaps - 1) * 1e-6

"""Vector clocks say what caused what, nothing more and nothing less; ShiViz can read the log."""

from __future__ import annotations

import re
import threading
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shiviz import check, read

from migration.trace import ACTIVE, Clock, Trace, is_before, is_concurrent, merge, sent, told
from migration.tracing import TraceFolder

HOSTS = ["controller", "switch", "source", "destination"]
clocks = st.dictionaries(st.sampled_from(HOSTS), st.integers(1, 5))
# Each event is of a host, and may receive the message that one of the earlier events sent.
scripts = st.lists(st.tuples(st.sampled_from(HOSTS), st.none() | st.integers(0, 30)), max_size=30)


def play(script: list[tuple[str, int | None]]) -> tuple[Trace, list[set[int]]]:
    """Note the events of a script; return, for each of them, all that came before it, by following the arrows."""
    trace, causes = Trace(), list[set[int]]()
    last: dict[str, int] = {}
    stamps: list[Clock] = []
    for number, (host, message) in enumerate(script):
        arrows = {last[host]} if host in last else set()
        if message is not None and message < number:
            arrows.add(message)
            stamps.append(trace.note(host, f"event {number}", stamps[message]))
        else:
            stamps.append(trace.note(host, f"event {number}"))
        causes.append(arrows.union(*(causes[arrow] for arrow in arrows)))
        last[host] = number
    return trace, causes


@given(scripts)
def test_clocks_are_happens_before(script: list[tuple[str, int | None]]) -> None:
    """A clock is smaller exactly if a chain of events and messages leads from one event to the other."""
    trace, causes = play(script)
    for one, other in product(range(len(script)), repeat=2):
        first, second = trace.entries[one].clock, trace.entries[other].clock
        assert is_before(first, second) == (one in causes[other])
        if one != other:
            assert is_concurrent(first, second) == (one not in causes[other] and other not in causes[one])


@given(scripts)
def test_a_hosts_clock_grows(script: list[tuple[str, int | None]]) -> None:
    """Its own count by one with each event, the others' never back; and ShiViz takes the log."""
    trace, _ = play(script)
    for host in HOSTS:
        mine = [entry.clock for entry in trace.entries if entry.host == host]
        assert [clock[host] for clock in mine] == list(range(1, len(mine) + 1))
        assert all(is_before(earlier, later) for earlier, later in pairwise(mine))
    assert [event.text for event in read(trace.render())] == [f"event {n}" for n in range(len(script))]


@given(clocks, clocks, clocks)
def test_merging(one: Clock, other: Clock, third: Clock) -> None:
    """The smallest clock that is behind neither; order and repetition do not matter."""
    merged = merge(one, other)
    assert merged == merge(other, one) == merge(merged, one)
    assert merge(merged, third) == merge(one, merge(other, third))
    assert all(clock == merged or is_before(clock, merged) for clock in (one, other))


def test_requests_that_overlap_do_not_know_of_each_other() -> None:
    """Two threads ask two participants: the second request is not the cause of the first one's answer."""
    trace = Trace({"h2": "source"})
    asked, answered = threading.Event(), threading.Event()

    def other() -> None:
        with trace.exchange("destination", "restore", "built"):
            asked.set()
            answered.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    asked.wait(5)
    with trace.exchange("switch", "write", "written"):
        pass
    answered.set()
    thread.join()
    with trace.exchange("h2", "end"):
        pass
    by_text = {f"{entry.host} {entry.text}": entry.clock for entry in trace.entries}
    built, written = by_text["destination says: built"], by_text["switch says: written"]
    assert is_concurrent(built, written)
    assert is_before(built, by_text["source gets: end"]) and is_before(written, by_text["source gets: end"])
    assert is_concurrent(by_text["controller from switch: written"], built)
    read(trace.render())


def test_what_is_not_answered_was_not_received() -> None:
    """Then nothing is said about the other side; a message without an answer arrives with the next one behind it."""
    trace = Trace()
    trace.send("switch", "packet")
    with trace.exchange("switch", "write"):  # goes another way: may arrive first
        pass
    with pytest.raises(OSError), trace.exchange("source", "freeze"):
        raise OSError("no\nanswer")
    with trace.exchange("switch", "barrier", behind=True):
        pass
    texts = [f"{entry.host}: {entry.text}" for entry in trace.entries]
    assert "controller: source did not: freeze: no answer" in texts
    assert not any(text.startswith("source: ") for text in texts)
    received = [text for text in texts if text.startswith("switch: gets")]
    assert received == ["switch: gets: write", "switch: gets: packet", "switch: gets: barrier"]
    read(trace.render())


def test_without_an_active_trace_nothing_is_noted() -> None:
    """Whoever tells need not know whether anybody listens."""
    sent("switch", "packet")
    with told("switch", "write"):
        pass
    trace = Trace()
    token = ACTIVE.set(trace)
    try:
        with told("switch", "write"):
            sent("switch", "packet")
    finally:
        ACTIVE.reset(token)
    assert len(trace.entries) == 5


def test_the_checker_finds_wrong_clocks() -> None:
    """It would not be a test of the log otherwise."""
    trace, _ = play([("controller", None), ("switch", 0), ("controller", 1)])
    text = trace.render()
    for wrong in (
        text.replace('{"controller": 2, "switch": 1}', '{"controller": 3, "switch": 1}'),
        text.replace('{"controller": 2, "switch": 1}', '{"controller": 2, "switch": 2}'),
        re.sub(r"event 0\n.*\n", "event 0\n", text),
    ):
        assert wrong != text
        with pytest.raises((AssertionError, KeyError)):
            check(read(wrong))


def test_only_the_last_traces_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As many as are wanted; an earlier run's of the same name does not outlive the beginning of a migration."""
    folder = TraceFolder(tmp_path / "traces", 2)
    for n in range(5):
        folder.begin(f"m{n}")
        folder.save(f"m{n}", Trace())
    assert sorted(p.name for p in (tmp_path / "traces").iterdir()) == ["m3.log", "m4.log"]
    folder.begin("m4")
    assert not (tmp_path / "traces" / "m4.log").exists()
    (tmp_path / "file").write_text("")
    TraceFolder(tmp_path / "file").save("m1", Trace())
    assert "the trace of migration m1 cannot be written" in caplog.text

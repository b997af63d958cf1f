"""ShiViz's reading of a log, and what it demands of the clocks, written down independently of the code that writes it.

Its rules (github.com/DistributedClocks/shiviz, js/model: parser, vectorTimestamp, modelGraph): a file's first line is
the expression, its second one the delimiter of executions; every match has a host, a clock in JSON that has an entry
for the host, and an event; a host's own counts are 1, 2, 3, …; other entries name an event that is there; and a clock
is exactly what its host's previous one and those of the events that it newly names come to.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Logged:
    """One event of a log."""

    host: str
    clock: dict[str, int]
    text: str

    @property
    def time(self) -> int:
        """The host's own count."""
        return self.clock[self.host]


def read(text: str) -> list[Logged]:
    """Read a file, as ShiViz does after an upload; checks that nothing but events is in it, and the clocks."""
    expression, delimiter, log = text.split("\n", 2)
    assert delimiter == ""
    # JavaScript writes (?<name>…) what Python writes (?P<name>…).
    pattern = re.compile(re.sub(r"\(\?<(\w+)>", r"(?P<\1>", expression), re.MULTILINE)
    assert {"event", "host", "clock"} <= set(pattern.groupindex)
    assert pattern.sub("", log).strip() == ""
    found = [Logged(m["host"], json.loads(m["clock"]), m["event"]) for m in pattern.finditer(log)]
    check(found)
    return found


def check(events: list[Logged]) -> None:
    """Check the clocks."""
    by_host: dict[str, list[Logged]] = {}
    for event in events:
        by_host.setdefault(event.host, []).append(event)
    for mine in by_host.values():
        assert [event.time for event in mine] == list(range(1, len(mine) + 1))
        previous: dict[str, int] = {}
        for event in mine:
            expected = {**previous, event.host: event.time}
            for other, time in event.clock.items():
                assert 1 <= time <= len(by_host[other])
                if other != event.host and time > previous.get(other, 0):
                    cause = by_host[other][time - 1].clock
                    expected = {h: max(expected.get(h, 0), cause.get(h, 0)) for h in {*expected, *cause}}
            assert event.clock == expected
            previous = event.clock

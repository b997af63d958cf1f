"""What is made of a test's moves and of what it says in the end. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from migration.report import Outcome, Report

from .descriptions import Description


class Verdict(str, Enum):
    """How a test has ended."""

    PASSED = "passed"
    REFUSED = "refused"  # before the freeze, by name
    FAILED = "failed"
    IMPOSSIBLE = "impossible"  # it cannot be built or run here
    LEFT_OUT = "left out"  # it demands what no program of a host has


@dataclass(frozen=True)
class Said:
    """What a test has said when it was told to end, and whether it ended at all."""

    text: str
    has_ended: bool = True

    @property
    def is_pass(self) -> bool:
        """Say whether its last line has the word."""
        lines = self.text.strip().splitlines()
        return self.has_ended and bool(lines) and "PASS" in lines[-1].split()

    def __str__(self) -> str:
        """Say it in one line."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        wrong = [line for line in lines if "FAIL" in line or "ERR" in line] or lines[-1:]
        told = " | ".join(wrong[:3]) or "nothing"
        return f"the test says {told}" + ("" if self.has_ended else ", and does not end")


@dataclass(frozen=True)
class Result:
    """A line of the table."""

    verdict: Verdict
    detail: str
    seconds: float = 0.0
    is_seen: bool = False
    """It fails only by what one sees."""


def judge(description: Description, moves: Sequence[Report], said: Said, unlike: str = "") -> Result:
    """Judge a test that was started, moved and told to end; `unlike` is what one sees of it that has changed."""
    last = moves[-1]
    done = sum(report.outcome is Outcome.COMPLETED for report in moves)
    if last.outcome is Outcome.COMPLETED:
        if not said.is_pass:
            return Result(Verdict.FAILED, f"after {_moves(done)} {said}{_lost(moves)}")
        if unlike:
            return Result(
                Verdict.FAILED,
                f"after {_moves(done)} it passes, but one sees {unlike}{_lost(moves)}",
                is_seen=True,
            )
        return Result(Verdict.PASSED, f"{_moves(done)}, frozen {_longest(moves):.1f} ms")
    if last.outcome is not Outcome.REFUSED:
        return Result(Verdict.FAILED, f"move {len(moves)} {_word(last)}: {last.reason}; {said}")
    if done:
        return Result(Verdict.FAILED, f"after {_moves(done)} the next is refused: {last.reason}; {said}")
    if last.criu.frozen_ms > 0:
        return Result(
            Verdict.FAILED, f"refused after {last.criu.frozen_ms:.1f} ms in the freeze: {last.reason}"
        )
    if not said.is_pass and not description.needs_move:
        return Result(Verdict.FAILED, f"refused ({last.reason}), and then {said}")
    return Result(Verdict.REFUSED, last.reason or "without a reason")


def against(result: Result, unmoved: Said, changes_itself: bool = False) -> Result:
    """Compare a failure with the same test left where it is: what fails there, too, cannot run here.

    What one sees says nothing of a move if it changes without one, too.
    """
    if result.verdict is not Verdict.FAILED:
        return result
    if not unmoved.is_pass:
        return Result(Verdict.IMPOSSIBLE, f"it fails without a move, too: {unmoved}")
    if result.is_seen and changes_itself:
        return Result(Verdict.PASSED, "what one sees of it changes without a move, too")
    return result


def _moves(count: int) -> str:
    return "1 move" if count == 1 else f"{count} moves"


def _word(report: Report) -> str:
    return report.outcome.value.replace("_", " ")


def _longest(moves: Sequence[Report]) -> float:
    return max(report.criu.frozen_ms for report in moves)


def _lost(moves: Sequence[Report]) -> str:
    """List what the reports have warned of: a test may well find it."""
    warnings = list(dict.fromkeys(warning for report in moves for warning in report.warnings))
    return f" (the report warns: {'; '.join(warnings)})" if warnings else ""

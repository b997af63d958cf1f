"""What came of the tests: a line for each, a table for people, JUnit for machines."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from .verdicts import Result, Verdict

_WIDTH = 300


@dataclass(frozen=True)
class Row:
    """A test in a mode; the mode is empty for one that came to none."""

    test: str
    mode: str
    result: Result

    def __str__(self) -> str:
        """Say it in one line."""
        result = self.result
        detail = " ".join(_printable(result.detail).split())
        if result.verdict is not Verdict.FAILED and len(detail) > _WIDTH:
            detail = detail[: _WIDTH - 1] + "…"
        time = f"  ({result.seconds:.1f} s)" if result.seconds else ""
        return f"{self.test:<36} {self.mode or '-':<5} {result.verdict.value:<10} {detail}{time}"


def has_failed(rows: Sequence[Row]) -> bool:
    """Say whether any test has."""
    return any(row.result.verdict is Verdict.FAILED for row in rows)


def table(rows: Sequence[Row], modes: Sequence[str]) -> str:
    """Return a table, a line for each verdict and a column for each mode; what came to no mode counts in all."""
    lines = [f"{'verdict':<12}" + "".join(f"{mode:>8}" for mode in modes)]
    for verdict in Verdict:
        counts = [
            sum(row.result.verdict is verdict and row.mode in ("", mode) for row in rows) for mode in modes
        ]
        lines.append(f"{verdict.value:<12}" + "".join(f"{count:>8}" for count in counts))
    return "\n".join(lines)


def junit(rows: Sequence[Row]) -> bytes:
    """Return a JUnit document: a test suite for each mode, a test case for each test."""
    root = ET.Element("testsuites", name="zdtm")
    for mode in dict.fromkeys(row.mode for row in rows):
        made = [row for row in rows if row.mode == mode]
        verdicts = [row.result.verdict for row in made]
        suite = ET.SubElement(
            root, "testsuite", name=mode or "not begun", tests=str(len(made)),
            failures=str(verdicts.count(Verdict.FAILED)),
            skipped=str(sum(map(_is_skipped, verdicts))),
        )  # fmt: skip
        for row in made:
            result, classname = row.result, f"zdtm.{mode or 'none'}"
            case = ET.SubElement(
                suite, "testcase", classname=classname, name=row.test, time=f"{result.seconds:.1f}"
            )
            message = f"{result.verdict.value}: {_printable(result.detail)}"
            if result.verdict is Verdict.FAILED:
                ET.SubElement(case, "failure", message=message)
            elif _is_skipped(result.verdict):
                ET.SubElement(case, "skipped", message=message)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _is_skipped(verdict: Verdict) -> bool:
    return verdict not in (Verdict.PASSED, Verdict.FAILED)


def _printable(text: str) -> str:
    """Leave out control characters, which XML 1.0 does not allow (2.2)."""
    return "".join(
        char for char in text if char in "\n\t" or " " <= char < "\ud800" or "\ue000" <= char < "\ufffe"
    )

"""What came of the machines: a table for people, JUnit for machines."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from .machine import Outcome
from .steps import Step

_TAIL_LINES = 40


@dataclass(frozen=True)
class Row:
    """A step on a kernel: passed, failed, timed out or not run."""

    step: str
    outcome: str
    seconds: float
    log: str


def rows(steps: list[Step], outcome: Outcome, folder: Path) -> list[Row]:
    """Return a row for each step, those included that the machine did not come to."""
    found = {str(row["name"]): row for row in outcome.steps}
    made = []
    for step in steps:
        row = found.get(step.name)
        log = folder / f"{step.name}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        if row is None:
            made.append(Row(step.name, "not run", 0.0, text or outcome.failure))
        else:
            made.append(Row(step.name, str(row["outcome"]), float(str(row["seconds"])), text))
    return made


def passed(made: list[Row]) -> bool:
    """Return True if every step has passed."""
    return bool(made) and all(row.outcome == "passed" for row in made)


def table(kernels: dict[str, tuple[Outcome, list[Row]]]) -> str:
    """Return a Markdown table, a line for each step, a column for each kernel, seconds in emulated time."""
    heads = []
    for label, (outcome, _) in kernels.items():
        facts = outcome.machine
        heads.append(f"{facts.get('kernel', label)} ({facts.get('distribution', 'did not start')})")
    lines = ["| step | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    slow = [f"{outcome.machine.get('slow', '?')} times" for outcome, _ in kernels.values()]
    lines.append("| slower than the reference machine | " + " | ".join(slow) + " |")
    boots = [f"{outcome.boot_s:.0f} s" if outcome.boot_s else "no" for outcome, _ in kernels.values()]
    lines.append("| start to first step | " + " | ".join(boots) + " |")
    restarts = [outcome.restarts for outcome, _ in kernels.values()]
    if any(restarts):
        lines.append("| started again, the emulator having failed | " + " | ".join(map(str, restarts)) + " |")
    names = list(dict.fromkeys(row.step for _, made in kernels.values() for row in made))
    for name in names:
        cells = []
        for _, made in kernels.values():
            row = next((row for row in made if row.step == name), None)
            cells.append("–" if row is None else f"{row.outcome}, {row.seconds:.0f} s")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def junit(kernels: dict[str, tuple[Outcome, list[Row]]]) -> bytes:
    """Return a JUnit document: a test suite for each kernel, a test case for each step."""
    root = ET.Element("testsuites", name="vm-test")
    for label, (outcome, made) in kernels.items():
        failures = sum(row.outcome != "passed" for row in made)
        suite = ET.SubElement(
            root, "testsuite", name=f"linux-{label}", tests=str(len(made)), failures=str(failures),
            time=f"{outcome.seconds:.1f}",
        )  # fmt: skip
        properties = ET.SubElement(suite, "properties")
        for name, value in outcome.machine.items():
            ET.SubElement(properties, "property", name=name, value=str(value))
        for row in made:
            case = ET.SubElement(
                suite, "testcase", classname=f"vm.linux-{label}", name=row.step, time=f"{row.seconds:.1f}"
            )
            tail = _printable("\n".join(row.log.splitlines()[-_TAIL_LINES:]))
            if row.outcome != "passed":
                ET.SubElement(case, "failure", message=outcome.failure or row.outcome).text = tail
            ET.SubElement(case, "system-out").text = tail
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _printable(text: str) -> str:
    """Leave out control characters, which XML 1.0 does not allow (2.2)."""
    return "".join(
        char for char in text if char in "\n\t" or " " <= char < "\ud800" or "\ue000" <= char < "\ufffe"
    )

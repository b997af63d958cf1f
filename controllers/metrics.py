"""The controller's numbers in Prometheus' text format (exposition format 0.0.4). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family; `kind` is counter or gauge."""

    name: str
    kind: str
    help: str
    samples: tuple[tuple[Labels, float], ...]


def metric(name: str, kind: str, help: str, *samples: tuple[Labels, float]) -> Metric:
    """Make a family."""
    return Metric(f"p4ferry_{name}", kind, help, samples)


def render(metrics: Iterable[Metric]) -> str:
    """Write families as text."""
    lines: list[str] = []
    for family in metrics:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [f"{family.name}{_labels(labels)} {value:g}" for labels, value in family.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inner = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    return f"{{{inner}}}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""How the command line shows what the API answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_FIRST = {
    "nodes": ("service", "ipv4", "port", "state", "weight", "connections", "eport", "dmac", "home"),
    "services": ("name", "address", "port", "protocol", "backends", "draining", "connections"),
    "apps": ("name",),
    "connections": ("protocol", "source", "destination", "service", "location"),
    "switches": ("id", "name", "addr", "state", "master", "rows", "connects"),
    "migrations": ("id", "app", "source", "destination", "state", "reason"),
}
_GOOD = {"completed": "green", "rolled_back": "yellow", "failed": "red", "refused": "red"}


def table(what: str, found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a list of resources as a table; unknown scalar fields come last."""
    if not found:
        return Text(f"no {what}")
    columns = list(_FIRST[what])
    if what == "apps":
        columns += [
            key
            for key, value in found[0].items()
            if key not in columns and not isinstance(value, (dict, list))
        ]
    shown = Table(title=what)
    for column in columns:
        shown.add_column(column)
    for row in found:
        shown.add_row(*(cell(row.get(column)) for column in columns))
    return shown


def cell(value: object) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def event_line(kind: str, data: Mapping[str, Any]) -> str:
    """Return an event as one line."""
    facts = " ".join(
        f"{key}={cell(value)}" for key, value in data.items() if key != "time" and _is_scalar(value)
    )
    return f"{kind:20} {facts}"


def _is_scalar(value: object) -> bool:
    return value is not None and not isinstance(value, (dict, list))


def report(found: Mapping[str, Any]) -> RenderableType:
    """Return a migration's report."""
    outcome = found.get("outcome") or found.get("state")
    head = Text(f"{found['id']}: {found['app']} to {found['destination']}: ")
    head.append(str(outcome), style=_GOOD.get(str(outcome), "bold"))
    if found.get("reason"):
        head.append(f" ({found['reason']})")
    parts: list[RenderableType] = [head]
    for section in ("connections", "client", "criu", "held"):
        facts = found.get(section)
        if isinstance(facts, Mapping):
            parts.append(
                Text(f"  {section}: " + ", ".join(f"{name} {cell(value)}" for name, value in facts.items()))
            )
    steps = found.get("steps")
    if steps:
        shown = Table("step", "ms")
        for step in steps:
            shown.add_row(str(step.get("name")), cell(step.get("ms")))
        parts.append(shown)
    return Group(*parts)

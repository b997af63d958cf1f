"""Mininet's CLI with the testbed's own commands.

    run NAME HOST [--service VIP:PORT] [--group GROUP] [--volume DIR]… -- COMMAND…    start a program that can be moved
    run NAME HOST --image IMAGE [--service VIP:PORT] [--volume DIR]… [-- ARGUMENT…]   … in a container
    migrate APP HOST [--mode M] [--transfer T] [--pause-budget S]     carry it to another host
    apps, services, backends, connections, migrations                 look

A mistake gets one sentence. In a script (`--script FILE`) the first command that fails makes the whole script fail.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mininet.cli import CLI
from rich.console import Console
from rich.table import Table

from topo import following
from topo.errors import TestbedError

if TYPE_CHECKING:
    from topo.testbed import Testbed

PROMPT = "p4ferry> "
RUN_OPTIONS = {"--service": "service", "--group": "group", "--image": "image"}
MIGRATE_OPTIONS = {"--mode": "mode", "--transfer": "transfer", "--pause-budget": "pause_budget"}
MIGRATE_USAGE = (
    "usage: migrate APP… HOST [--mode stop|lazy|pre|auto] [--transfer network|shared] "
    "[--pause-budget SECONDS]"
)
RUN_USAGE = (
    "usage: run NAME HOST [--service VIP:PORT] [--group GROUP] [--volume DIR]… -- COMMAND…, or with --image IMAGE and "
    "its arguments, if any"
)
PIPE_WIDTH = 200  # columns of a table that nobody looks at directly


class FerryCLI(CLI):
    """The CLI; without a testbed (plain NetworkAPI) it has Mininet's commands only."""

    prompt = PROMPT

    def __init__(self, mininet: Any, testbed: Testbed | None = None, script: Path | None = None) -> None:
        """Run until the user leaves, or to the end of the script."""
        self.testbed = testbed
        self.failed = False
        self.console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self.script = script
        super().__init__(mininet, script=None if script is None else str(script), stdin=sys.stdin)

    # ---- commands

    def do_run(self, line: str) -> None:
        """run NAME HOST [--service VIP:PORT] [--group GROUP] [--volume DIR]… -- COMMAND…: start a movable program.

        run NAME HOST --image IMAGE [--service VIP:PORT] [--volume DIR]… [-- ARGUMENT…]: start one in a container.
        """
        try:
            asked = parse_run(line)
        except ValueError as ex:
            self._fail(str(ex))
            return
        self._try(lambda bed: self._say(f"{bed.run(**asked)}"))

    def do_migrate(self, line: str) -> None:
        """migrate APP… HOST [--mode M] [--transfer T] [--pause-budget S]: carry programs together to another host.

        Ctrl-C cancels it.
        """
        try:
            (*apps, host), asked = parse_words(line.split(), 2, MIGRATE_OPTIONS, MIGRATE_USAGE, more=True)
        except ValueError as ex:
            self._fail(str(ex))
            return

        def migrate(bed: Testbed) -> None:
            report = following.migrate(bed, apps, host, self.console, **asked)
            self._say(summary(report.to_json()))
            if report.outcome != "completed":
                self.failed = True

        self._try(migrate)

    def do_apps(self, line: str) -> None:
        """apps: the programs that can be moved, and where they are."""
        self._try(lambda bed: self._table(bed.apps()))

    def do_services(self, line: str) -> None:
        """services: the VIPs."""
        self._try(lambda bed: self._table(bed.services()))

    def do_backends(self, line: str) -> None:
        """backends: who serves the VIPs."""
        self._try(lambda bed: self._table(bed.backends()))

    def do_connections(self, line: str) -> None:
        """connections: what the load balancer has pinned."""
        self._try(lambda bed: self._table(bed.connections()))

    def do_migrations(self, line: str) -> None:
        """migrations: those of this session."""

        def show(bed: Testbed) -> None:
            for report in bed.migrations():
                self._say(summary(report))

        self._try(show)

    # ---- Mininet's own, adapted

    def default(self, line: str) -> None:
        """Run `HOST COMMAND`; an unknown word fails a script."""
        first = line.split()[0] if line.split() else ""
        if first and first not in self.mn:
            self._fail(f"there is no command or node {first!r} (try help)")
            return
        super().default(line)

    def do_source(self, line: str) -> None:
        """source FILE: read commands from a file; the first one that fails ends it."""
        path = Path(line.strip())
        try:
            lines = path.read_text().splitlines()
        except OSError as ex:
            self._fail(f"cannot read {path}: {ex.strerror}")
            return
        for number, text in enumerate(lines, 1):
            command = text.split("#", 1)[0].strip()
            if not command:
                continue
            print(f"{PROMPT}{command}", flush=True)
            stop = self.onecmd(command)
            if self.failed:
                print(f"{path}:{number}: failed: {command}", file=sys.stderr)
                return
            if stop:
                return

    def emptyline(self) -> bool:
        """Do nothing on an empty line."""
        return False

    # ---- helpers

    def _try(self, action: Any) -> None:
        if self.testbed is None:
            self._fail("this network has no testbed: start it with topo/lb.py")
            return
        try:
            action(self.testbed)
        except TestbedError as ex:
            self._fail(str(ex))

    def _fail(self, message: str) -> None:
        self.failed = True
        print(message, file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _table(self, rows: Iterable[dict[str, Any]]) -> None:
        listed = list(rows)
        if not listed:
            self._say("(none)")
            return
        table = Table(*listed[0], box=None, pad_edge=False)
        for row in listed:
            table.add_row(*(_cell(value) for value in row.values()))
        self.console.print(table)


def parse_run(line: str) -> dict[str, Any]:
    """Read the words of `run` as the arguments of Testbed.run; raises ValueError with a sentence."""
    try:
        head, _, command = line.partition(" -- ")
        words, argv = shlex.split(head), shlex.split(command)
    except ValueError as ex:
        raise ValueError(f"run: {ex}") from ex
    volumes = []
    while "--volume" in words[:-1]:
        at = words.index("--volume")
        volumes.append(words[at + 1])
        del words[at : at + 2]
    names, asked = parse_words(words, 2, RUN_OPTIONS, RUN_USAGE)
    if not argv and "image" not in asked:
        raise ValueError(RUN_USAGE)
    declared = {"volumes": volumes} if volumes else {}
    return {"name": names[0], "host": names[1], "argv": argv, **asked, **declared}


def parse_words(
    words: Sequence[str], count: int, options: Mapping[str, str], usage: str, *, more: bool = False
) -> tuple[list[str], dict[str, str]]:
    """Tell `count` names (or `more`) from options with a value, each given once; raises ValueError with the usage."""
    names: list[str] = []
    asked: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            names.append(word)
            continue
        value = next(rest, None)
        if word not in options or value is None or options[word] in asked:
            raise ValueError(usage)
        asked[options[word]] = value
    if len(names) < count or (len(names) > count and not more):
        raise ValueError(usage)
    return names, asked


def _cell(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def summary(report: dict[str, Any]) -> str:
    """Return a migration's report in one line."""
    way = f"{report['id']}: {report['app']} {report['source']} -> {report['destination']}"
    if report["outcome"] != "completed":
        return f"{way}: {report['outcome']}: {report['reason']}"
    connections, criu, held = report["connections"], report["criu"], report["held"]
    text = (
        f"{way}: completed, {connections['kept']} of {connections['established']} connections kept, "
        f"frozen {criu['frozen_ms']:.1f} ms, restored in {criu['restore_ms']:.1f} ms, "
        f"{held['packets']} packets held"
    )
    if lost := held["dropped"] + held.get("receiver_drops", 0):
        text += f" and {lost} lost"
    if report.get("client"):
        text += f", client's longest gap {report['client']['gap_ms']:.1f} ms"
    if warnings := len(report.get("warnings", ())):
        text += f"; {warnings} warning{'s' if warnings > 1 else ''} in its report"
    return text

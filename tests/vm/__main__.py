"""`make vm-test`: boot kernels, run steps in them, print a table, write JUnit; exit status 0 if every step passed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from . import machine, programs, results, rootfs
from .errors import VmError
from .steps import VERIFIER, Step, plan
from .systems import DISTRIBUTIONS, System, choose

_LIMIT_S = 3 * 3600
_LEAST_MB = 1024
_RESTARTS = 3
_SCRATCH = Path("/var/tmp")
"""Where a machine's disks are while it runs: they may be too large for a /tmp in memory."""


def main() -> int:
    """Do what the command line asks for."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.plan:
            rootfs.print_plan()
            return 0
        if options.check:
            return _check(options)
        if os.geteuid() != 0:
            raise VmError("images are built as root: type sudo make vm-test")
        if options.build:
            for distribution in DISTRIBUTIONS:
                rootfs.cached(distribution, _say)
            return 0
        steps = plan(options.reduced, options.command, options.steps)
        return _run(choose(options.kernel, options.modules, options.root), steps, options)
    except VmError as ex:
        print(f"vm-test: {ex}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vm-test: interrupted; the machine and its disks are gone", file=sys.stderr)
        return 130


def _check(options: argparse.Namespace) -> int:
    """Refuse bad arguments before anything is installed for them; what only root may read, root will look at."""
    plan(options.reduced, options.command, options.steps)
    if options.memory < _LEAST_MB:
        raise VmError(f"--memory {options.memory}: a machine needs {_LEAST_MB} MB at least")
    if not 0 < options.limit < float("inf"):
        raise VmError(f"--limit {options.limit:g} is no number of seconds: give more than 0")
    with contextlib.suppress(PermissionError):
        choose(options.kernel, options.modules, options.root)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="vm-test", description=__doc__)
    made.add_argument("--kernel", default="all", help="6.1, 6.12, all, or the path of a kernel image")
    made.add_argument(
        "--modules", default="", metavar="DIR", help="lib/modules/VERSION of a kernel given by path"
    )
    made.add_argument("--root", default="", help="distribution for a kernel given by path (debian12)")
    made.add_argument("--command", default="", help="run this instead of the steps, as the user in the clone")
    made.add_argument("--steps", default="", metavar="NAMES", help="run only these")
    made.add_argument("--reduced", action="store_true", help="CI's short form")
    made.add_argument("--memory", type=int, default=4096, metavar="MB", help="of a machine (4096)")
    made.add_argument("--limit", type=float, default=_LIMIT_S, metavar="SECONDS", help="for a machine in all")
    made.add_argument("--results", type=Path, default=rootfs.CHECKOUT / ".p4ferry" / "vm", metavar="DIR")
    made.add_argument("--plan", action="store_true", help="only say which images would be built")
    made.add_argument("--check", action="store_true", help="only look at the arguments")
    made.add_argument("--build", action="store_true", help="only build the images")
    return made


def _run(systems: list[System], steps: list[Step], options: argparse.Namespace) -> int:
    """Boot one system after the other."""
    found: dict[str, tuple[machine.Outcome, list[results.Row]]] = {}
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="p4ferry-vm-", dir=_SCRATCH) as name:
        objects = Path(name) / "objects"
        if any(step.name == VERIFIER for step in steps):
            _say("compiling the programs of the engine's tests")
            _say(f"{programs.compile_all(Path(name), objects)} programs for the verifier")
        for system in systems:
            kept = options.results / system.label
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            outcome = _one(system, steps, kept, objects, options)
            made = results.rows(steps, outcome, kept / "results")
            found[system.label] = (outcome, made)
            if outcome.failure:
                _say(f"{system.label}: {outcome.failure}")
    junit = options.results / "junit.xml"
    junit.write_bytes(results.junit(found))
    text = results.table(found)
    (options.results / "table.md").write_text(text + "\n")
    print(f"\n{text}\n")
    every = [row for _, made in found.values() for row in made]
    good = sum(row.outcome == "passed" for row in every)
    for row in every:
        if row.outcome != "passed":
            print(f"--- {row.step}: {row.outcome}\n" + "\n".join(row.log.splitlines()[-25:]))
    print(f"logs and JUnit are in {options.results}")
    print(f"vm-test: {good} passed, {len(every) - good} failed")
    return 0 if all(results.passed(made) for _, made in found.values()) else 1


def _one(
    system: System, steps: list[Step], kept: Path, objects: Path, options: argparse.Namespace
) -> machine.Outcome:
    """Boot one system until it has come to its last step, and keep what it leaves."""
    outcome = _boot(system, steps, kept, objects, options)
    while outcome.is_emulators_fault and outcome.restarts < _RESTARTS:
        done = {row["name"] for row in outcome.steps}
        left = [step for step in steps if step.name not in done]
        _say(
            f"{system.label}: the emulator has run into a half-written instruction; again, from {left[0].name}"
        )
        outcome = outcome.followed_by(_boot(system, left, kept, objects, options))
    return outcome


def _boot(
    system: System, steps: list[Step], kept: Path, objects: Path, options: argparse.Namespace
) -> machine.Outcome:
    """Boot one system once, with its work disk."""
    with tempfile.TemporaryDirectory(prefix="p4ferry-vm-", dir=_SCRATCH) as name:
        scratch = Path(name)
        boot = rootfs.prepare(system, scratch, _say)
        work = scratch / "work"
        work.mkdir()
        rootfs.clone(work / "checkout")
        wanted = [{"name": step.name, "command": step.command, "limit": step.limit} for step in steps]
        (work / "plan.json").write_text(json.dumps({"steps": wanted}))
        if objects.is_dir():
            shutil.copytree(objects, work / "objects")
        if system.modules is not None:
            unwanted = shutil.ignore_patterns("build", "source")
            shutil.copytree(system.modules, work / "modules" / system.label, ignore=unwanted)
        disk = scratch / "work.img"
        machine.make_work_disk(work, disk)
        _say(f"linux {system.label} on {system.distribution.name}")
        try:
            outcome = machine.run(
                boot, disk, options.memory, options.limit, lambda text: _say(f"{system.label}: {text}")
            )
        finally:
            if (console := scratch / "console.log").exists():
                with (kept / "console.log").open("ab") as file:
                    file.write(console.read_bytes())
        machine.read_results(disk, kept, outcome)
        return outcome


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

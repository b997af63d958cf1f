"""`make zdtm`: build CRIU's test programs in a copy, move each to and fro, print a table; status 1 if one failed."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from migration.criu import Criu
from migration.errors import MigrationError
from migration.slowness import scaled
from migration.transfer.modes import Mode

from . import results, suite
from .descriptions import why_not, why_not_by
from .errors import ZdtmError
from .results import Row
from .riding import Interruption, hosts, ride
from .suite import Case
from .verdicts import Result, Verdict

_SCRATCH = Path("/var/tmp")
"""Where the copy is: files on a disk, as tests of files want them."""
_CHECK_LIMIT_S = 20.0
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for."""
    options = _parser().parse_args(arguments)
    interruption = Interruption()
    try:
        return _run(options, interruption)
    except (ZdtmError, MigrationError) as ex:
        print(f"zdtm: {ex}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("zdtm: interrupted; the hosts, the programs and the copy are gone", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="zdtm", description=__doc__)
    made.add_argument("--path", default="", help="CRIU's source tree, or its folder test/zdtm")
    made.add_argument("--tests", default="", metavar="NAMES", help='"env00 transition/fork pipe*" (all)')
    made.add_argument("--modes", default="stop lazy", help='modes of transfer ("stop lazy"; also pre, auto)')
    made.add_argument("--moves", type=int, default=4, help="how often each is moved (4)")
    made.add_argument("--junit", type=Path, metavar="FILE", help="write the results there, too")
    made.add_argument("--check", action="store_true", help="only look at the arguments")
    return made


def _run(options: argparse.Namespace, interruption: Interruption) -> int:
    """Run all that was chosen."""
    modes, source = _checked(options)
    if options.check:
        return 0
    if os.geteuid() != 0:
        raise ZdtmError("programs are moved as root: type sudo make zdtm")
    criu = Criu.find()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interruption)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="p4ferry-zdtm-", dir=_SCRATCH) as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        (scratch / "tmp").mkdir()
        (scratch / "tmp").chmod(0o1777)
        has_feature = functools.cache(functools.partial(_has_feature, criu))
        chosen = suite.choose(suite.cases(suite.copy(source, scratch)), options.tests)
        try:
            with hosts(scratch) as scene:
                for case, is_named in chosen.items():
                    for mode, result in _results(
                        case,
                        is_named,
                        modes,
                        has_feature,
                        lambda case, mode: ride(scene, case, mode, options.moves, interruption),
                    ):
                        rows.append(Row(case.label, mode, result))
                        print(rows[-1], flush=True)
        except AssertionError as ex:  # of the hosts: something was left over
            rows.append(Row("(all)", "", Result(Verdict.FAILED, f"something is left over: {ex}")))
        finally:
            _tell(rows, [mode.value for mode in modes], options.junit)
    return FAILED if results.has_failed(rows) else 0


def _checked(options: argparse.Namespace) -> tuple[list[Mode], Path]:
    """Return the modes and the folder of the tests; raises ZdtmError for arguments with which nothing can be run."""
    if not options.path:
        raise ZdtmError("ZDTM=PATH has to name a source tree of CRIU's, whose folder test/zdtm has the tests")
    if options.moves < 1:
        raise ZdtmError(f"MOVES={options.moves} is no number of moves: give 1 or more")
    if options.junit is not None and options.junit.is_dir():
        raise ZdtmError(f"JUNIT={options.junit} is a folder: name a file")
    modes, source = parse_modes(options.modes), suite.find(Path(options.path))
    suite.choose(suite.cases(source), options.tests)
    return modes, source


def _results(
    case: Case,
    is_named: bool,
    modes: Sequence[Mode],
    has_feature: Callable[[str], bool],
    run: Callable[[Case, Mode], Result],
) -> Iterator[tuple[str, Result]]:
    """Yield a test's results by mode; a single one with no mode if it is not begun."""
    if (reason := why_not(case.description, is_named=is_named)) is not None:
        yield "", Result(Verdict.LEFT_OUT, reason)
    elif (reason := suite.build(case, has_feature)) is not None:
        yield "", Result(Verdict.IMPOSSIBLE, reason)
    else:
        for mode in modes:
            reason = why_not_by(case.description, mode)
            yield mode.value, run(case, mode) if reason is None else Result(Verdict.LEFT_OUT, reason)


def parse_modes(text: str) -> list[Mode]:
    """Read modes of transfer; raises ZdtmError."""
    words = text.replace(",", " ").split()
    try:
        modes = list(dict.fromkeys(Mode(word) for word in words))
    except ValueError:
        modes = []
    if not modes:
        raise ZdtmError(f"MODES={text!r} names no mode; there are {' '.join(mode.value for mode in Mode)}")
    return modes


def _has_feature(criu: Criu, name: str) -> bool:
    """Ask CRIU whether it can do here what a test is about."""
    done = subprocess.run(
        [str(criu.binary), "check", "--feature", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=scaled(_CHECK_LIMIT_S),
    )
    return done.returncode == 0


def _tell(rows: Sequence[Row], modes: Sequence[str], junit: Path | None) -> None:
    """Print the failures once more, and the table."""
    if failed := [row for row in rows if row.result.verdict is Verdict.FAILED]:
        print("\nfailed:", *failed, sep="\n")
    print(f"\n{results.table(rows, modes)}", flush=True)
    if junit is not None:
        junit.parent.mkdir(parents=True, exist_ok=True)
        junit.write_bytes(results.junit(rows))
        print(f"JUnit is in {junit}")


if __name__ == "__main__":
    sys.exit(main())

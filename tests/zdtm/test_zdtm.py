"""`make zdtm` without CRIU's sources: what it reads, chooses and judges, and all of it with programs of our own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from migration.report import Outcome, Report
from migration.slowness import scaled
from migration.transfer.modes import Mode
from tests.zdtm import results, suite
from tests.zdtm.__main__ import main, parse_modes
from tests.zdtm.descriptions import Description, parse, why_not, why_not_by
from tests.zdtm.errors import ZdtmError
from tests.zdtm.results import Row
from tests.zdtm.verdicts import Result, Said, Verdict, against, judge
from tests.zdtm.visible import differences, look, merged
from topo.waiting import wait_until

SAMPLE = Path(__file__).with_name("sample")
PROJECT = Path(__file__).parents[2]
PASS, FAIL = Said("10:00:00: 17: PASS\n"), Said("10:00:00: 17: FAIL: a.c:7: 3 != 4\n")


def moved(outcome: Outcome = Outcome.COMPLETED, reason: str | None = None, frozen_ms: float = 0.0) -> Report:
    """Make the report of a move."""
    made = Report("1", "zdtm", "B", "C", "process", outcome, reason)
    made.criu.frozen_ms = frozen_ms
    return made


def test_descriptions_are_read() -> None:
    """All their keys; an empty one demands nothing; what is a program is not run."""
    text = (
        "{   'flavor': 'h', 'flags': 'suid reqrst', 'feature': 'timerfd',\n"
        "    'opts': '--tcp-established', 'dopts': '--ghost-limit 8M', 'arch': 'x86_64', 'timeout': '60'}\n"
    )
    found = parse(text)
    assert found == Description(
        frozenset({"h"}),
        frozenset({"suid", "reqrst"}),
        ("--tcp-established", "--ghost-limit"),
        ("timerfd",),
        frozenset({"x86_64"}),
        60.0,
    )
    assert found.is_of_root and found.needs_move and not found.is_beyond_criu
    assert parse("") == parse("{}") == Description()
    assert parse("__import__('os').getenv('X') or {}").fault == "its description is a program, and no table"
    assert parse("['a']").fault == "its description is no table"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{'flags': 'suid nouser excl samens'}", None),
        ("{'flavor': 'ns uns'}", "namespaces, mounts and a root of its own"),
        ("{'flags': 'noauto'}", "only when it is asked for by its name"),
        ("{'flags': 'crlib'}", "a plug-in of CRIU's"),
        ("{'opts': '--tcp-established --file-locks'}", None),
        ("{'ropts': '--tcp-close'}", "CRIU's option --tcp-close"),
        ("{'opts': '--manage-cgroups=full'}", "CRIU's option --manage-cgroups"),
        ("{'arch': 's390x'}", "it is for s390x"),
        ("{'arch': 'x86_64 aarch64'}", None),
    ],
)
def test_what_a_program_has_not_is_left_out(text: str, reason: str | None) -> None:
    """By name; to be root's is no reason."""
    found = why_not(parse(text), is_named=False, machine="x86_64")
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_name_overrules_noauto_and_a_mode_may_be_left_out() -> None:
    """As zdtm.py does it."""
    assert why_not(parse("{'flags': 'noauto'}"), is_named=True) is None
    assert why_not(parse("{'flags': 'crlib'}"), is_named=True) is not None
    description = parse("{'flags': 'nolazy'}")
    assert why_not_by(description, Mode.LAZY) is not None and why_not_by(description, Mode.STOP) is None


@pytest.mark.parametrize(
    ("reports", "said", "verdict", "detail"),
    [
        ([moved(frozen_ms=9), moved(frozen_ms=12)], PASS, Verdict.PASSED, "2 moves, frozen 12.0 ms"),
        ([moved()], FAIL, Verdict.FAILED, "after 1 move the test says 10:00:00: 17: FAIL: a.c:7: 3 != 4"),
        ([moved()], Said(PASS.text, False), Verdict.FAILED, "and does not end"),
        ([moved(Outcome.REFUSED, "a pipe")], PASS, Verdict.REFUSED, "a pipe"),
        ([moved(Outcome.REFUSED, "a pipe")], FAIL, Verdict.FAILED, r"refused \(a pipe\), and then the test says"),
        ([moved(Outcome.REFUSED, "a pipe", 3)], PASS, Verdict.FAILED, "after 3.0 ms in the freeze"),
        ([moved(), moved(Outcome.REFUSED, "a pipe")], PASS, Verdict.FAILED, "after 1 move the next is refused"),
        ([moved(), moved(Outcome.ROLLED_BACK, "CRIU")], PASS, Verdict.FAILED, "move 2 rolled back: CRIU"),
        ([moved(Outcome.FAILED, "lost")], Said(""), Verdict.FAILED, "move 1 failed: lost; .* says nothing"),
    ],
)  # fmt: skip
def test_verdicts(reports: Sequence[Report], said: Said, verdict: Verdict, detail: str) -> None:
    """A refusal is one only before the freeze, at the first move, and if it has left the program alone."""
    found = judge(Description(), reports, said)
    assert found.verdict is verdict
    assert re.search(detail, found.detail), found.detail


def test_a_test_that_wants_a_restore_may_fail_without_one() -> None:
    """When it is refused."""
    assert (
        judge(parse("{'flags': 'reqrst'}"), [moved(Outcome.REFUSED, "so")], FAIL).verdict is Verdict.REFUSED
    )


def test_what_the_report_has_warned_of_is_told_with_a_failure() -> None:
    """So that one sees whether the test has found just that."""
    report = moved()
    report.warnings.append("the CPU clocks begin anew")
    assert judge(Description(), [report], FAIL).detail.endswith(
        "(the report warns: the CPU clocks begin anew)"
    )


def test_what_fails_unmoved_cannot_run_here() -> None:
    """A failure counts only if the same test passes where it is left alone."""
    failed = Result(Verdict.FAILED, "after 4 moves")
    assert against(failed, PASS) == failed
    assert against(failed, FAIL).verdict is Verdict.IMPOSSIBLE
    seen = judge(Description(), [moved()], PASS, "process 2: gone")
    assert against(seen, PASS) == seen and against(seen, PASS, True).verdict is Verdict.PASSED
    assert against(failed, PASS, True) == failed
    assert against(Result(Verdict.PASSED, ""), FAIL).verdict is Verdict.PASSED


def test_what_everybody_sees_is_compared() -> None:
    """But for what changes by itself, and for neighbours that the kernel has merged."""
    before = {"process 2": "alive", "process 2, descriptor 3": "/a", "process 2, SigPnd": "0"}
    again = before | {"process 2, SigPnd": "1"}
    assert differences(before, again, again) == ""
    after = {"process 2": "alive", "process 2, descriptor 4": "/a", "process 2, SigPnd": "2"}
    assert differences(before, again, after) == (
        "process 2, descriptor 3: /a → gone; process 2, descriptor 4: new, /a"
    )
    assert judge(Description(), [moved()], PASS, "process 2: gone").verdict is Verdict.FAILED
    lines = [
        "1000-2000 rw-p 0 0:0 0",
        "2000-3000 rw-p 0 0:0 0",
        "3000-4000 r--p 0 0:0 7    /lib/a b",
        "5000-6000 r--p 0 0:0 7 /lib/a b",
    ]
    assert merged(lines) == [
        (0x1000, 0x3000, "rw-p"), (0x3000, 0x4000, "r--p /lib/a b"), (0x5000, 0x6000, "r--p /lib/a b"),
    ]  # fmt: skip
    here = look(os.getpid())
    assert here[f"process {os.getpid()}"] == "alive" and here[f"process {os.getpid()}, descriptor 0"]


def test_the_word_has_to_be_the_last() -> None:
    """PASS in another line, or as a part of a word, is none."""
    assert PASS.is_pass and not FAIL.is_pass
    assert not Said("PASS\nand more\n").is_pass and not Said("BYPASS\n").is_pass and not Said("").is_pass


def test_the_folder_is_found_copied_and_chosen_from(tmp_path: Path) -> None:
    """What was built in the user's folder is not copied, and nothing is written there."""
    tree = tmp_path / "criu"
    shutil.copytree(SAMPLE, tree / "test" / "zdtm")
    for name in ("counting", "counting.o", "counting.pid", "counting.out"):
        (tree / "test/zdtm/static" / name).touch()
    assert suite.find(tree) == suite.find(tree / "test") == suite.find(tree / "test" / "zdtm")
    with pytest.raises(ZdtmError, match="there is no folder test/zdtm with tests at"):
        suite.find(tmp_path)
    made = suite.copy(suite.find(tree), tmp_path / "copy")
    names = {path.name for path in (made / "static").iterdir()}
    assert {"counting.c", "daemon.h", "Makefile", "apart.desc"} <= names
    assert not names & {"counting", "counting.o", "counting.pid", "counting.out"}
    found = suite.cases(made)
    assert [case.label for case in found] == [
        f"static/{name}" for name in ("apart", "broken", "counting", "noticing", "packets", "sulking")
    ]
    assert len(suite.choose(found, "")) == 6
    chosen = suite.choose(found, "static/packets, *ing")
    assert {case.name: named for case, named in chosen.items()} == {
        "packets": True, "counting": False, "noticing": False, "sulking": False,
    }  # fmt: skip
    with pytest.raises(ZdtmError, match="TESTS=env99 names no test"):
        suite.choose(found, "env99")
    environment = suite.environment(next(case for case in found if case.name == "packets"))
    assert "ZDTM_UID" not in environment and environment["TMPDIR"] == str(tmp_path / "copy" / "tmp")


def test_modes() -> None:
    """By their names, each once."""
    assert parse_modes("stop, lazy stop") == [Mode.STOP, Mode.LAZY]
    for text in ("", "stop fast"):
        with pytest.raises(ZdtmError, match="there are stop lazy pre auto"):
            parse_modes(text)


def test_table_and_junit() -> None:
    """A line for each verdict; what was not begun counts in every mode; control characters stay out of XML."""
    rows = [
        Row("static/a", "stop", Result(Verdict.PASSED, "4 moves", 2.0)),
        Row("static/a", "lazy", Result(Verdict.FAILED, "FAIL \x1b[1m\nhere", 3.0)),
        Row("static/b", "", Result(Verdict.LEFT_OUT, "it wants more")),
    ]
    assert results.has_failed(rows) and not results.has_failed(rows[:1])
    text = results.table(rows, ["stop", "lazy"])
    assert "passed             1       0" in text and "left out           1       1" in text
    stop, lazy, none = ET.fromstring(results.junit(rows))
    assert (stop.get("failures"), lazy.get("failures"), none.get("skipped")) == ("0", "1", "1")
    assert "FAIL [1m here" in str(rows[1])


def test_without_sources_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """And the status 2."""
    assert main(["--path", ""]) == 2
    assert capsys.readouterr().err == (
        "zdtm: ZDTM=PATH has to name a source tree of CRIU's, whose folder test/zdtm has the tests\n"
    )


def command(*arguments: str) -> list[str]:
    """Return the command line of a run with our own programs."""
    return [sys.executable, "-m", "tests.zdtm", "--path", str(SAMPLE), *arguments]


def copies() -> set[Path]:
    """List the copies there are."""
    return set(Path("/var/tmp").glob("p4ferry-zdtm-*"))


@pytest.mark.long
@pytest.mark.net
def test_programs_of_its_kind_are_moved_and_heard(tmp_path: Path) -> None:
    """One of each verdict, by stop and by post-copy; the user's folder stays as it is, and the copy goes."""
    before, there = sorted(SAMPLE.rglob("*")), copies()
    done = subprocess.run(
        command("--moves", "3", "--junit", str(tmp_path / "junit.xml")),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=scaled(200),
    )
    lines = {tuple(line.split()[:3]): line for line in done.stdout.splitlines() if line.startswith("static/")}
    print(done.stdout, done.stderr)
    for mode in ("stop", "lazy"):
        assert "3 moves" in lines["static/counting", mode, "passed"]
        assert (
            "after 3 moves the test says FAIL: it is in another network"
            in lines["static/noticing", mode, "failed"]
        )
        assert "a pipe in packet mode" in lines["static/packets", mode, "refused"]
        assert "it fails without a move, too" in lines["static/sulking", mode, "impossible"]
    assert "no-such-header.h" in lines["static/broken", "-", "impossible"]
    assert "no flavor h" in next(line for line in lines.values() if line.startswith("static/apart"))
    assert done.returncode == 1
    assert ET.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
    assert sorted(SAMPLE.rglob("*")) == before and not copies() - there


@pytest.mark.net
def test_nothing_is_left_when_it_is_interrupted() -> None:
    """Not even in the middle of a move."""
    there = copies()
    running = subprocess.Popen(
        command("--tests", "counting", "--moves", "1000"),
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert wait_until(lambda: any(_runs(folder) for folder in copies() - there), 60)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=scaled(60))
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130, errors
    assert "zdtm: interrupted" in errors
    assert not copies() - there
    assert not Path(f"/dev/shm/p4ferry-test-{running.pid}").exists()


def _runs(folder: Path) -> bool:
    """Say whether a test of a copy is ready, and a move is likely to be under way."""
    return bool(list(folder.glob("test/zdtm/static/*.pid")))

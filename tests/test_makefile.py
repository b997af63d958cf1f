"""The Makefile: what is given reaches a program as it was typed, PLAN=1 does nothing, and mistakes cost a sentence."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TARGETS = re.findall(r"^TARGETS := (.*)$", (CHECKOUT / "Makefile").read_text(), re.M)[0].split()
WORDS = """x "a" $(touch broken) `touch broken` $$(touch broken) 'b c' $HOME \\; touch broken; *"""
"""What make or a shell would make something of."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout whose scripts only print how they were called."""
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts" / "with-args", tmp_path / "scripts")
    for name in ("setup", "as-root", "images", "lock", "distclean"):
        script = tmp_path / "scripts" / name
        script.write_text(
            "#!/bin/bash\n"
            f'printf \'{name} %s %s|\' "$CONTAINERS$VM$PASSENGERS" "${{PLAN:+plan}}"; printf \'<%s>\' "$@"; echo\n'
        )
        script.chmod(0o755)
    return tmp_path


def make(checkout: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make as somebody would type it, not as the make that runs this test."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "GIVEN_"))}
    return subprocess.run(
        ["make", *words], cwd=checkout, env={**plain, **environment},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("vm-test", {"KERNEL": "kernel", "MODULES": "modules", "ROOT": "root", "COMMAND": "command", "STEPS": "steps"}),
        ("zdtm", {"ZDTM": "path", "TESTS": "tests", "MODES": "modes", "MOVES": "moves", "JUNIT": "junit"}),
    ],
)  # fmt: skip
def test_what_is_given_is_not_read_by_make_nor_by_a_shell(
    checkout: Path, target: str, options: dict[str, str]
) -> None:
    """Each in one word, both where arguments are looked at and where they are used; from the environment, too."""
    for done in (
        make(checkout, target, *(f"{name}={WORDS}" for name in options)),
        make(checkout, target, **dict.fromkeys(options, WORDS)),
    ):
        assert done.returncode == 0, done.stderr
        looked, used = done.stdout.splitlines()
        for option in options.values():
            assert f"<--{option}={WORDS}>" in looked and f"<--{option}={WORDS}>" in used
    assert not (checkout / "broken").exists()


def test_args_are_words(checkout: Path) -> None:
    """Quotes join them, and that is all."""
    for target in ("run", "images", "demo-pods", "passengers"):
        done = make(checkout, target, f"ARGS={WORDS}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith(
            "<x><a><$(touch><broken)><`touch><broken`><$$(touch><broken)><b c><$HOME><;><touch><broken;><*>"
        )
    assert not (checkout / "broken").exists()
    assert make(checkout, "run").stdout.endswith("<topo/lb.py><--demo><echo>\n")


def test_a_plan_is_all_that_is_done(checkout: Path) -> None:
    """For every target, with what its set-up would take."""
    extra = dict.fromkeys(
        ("containers", "engines", "demo-containers", "demo-pods", "demo-switch-container"), "1"
    )
    extra |= {"vm-test": "1", "vm-setup": "1", "passengers": "full", "passengers-setup": "full"}
    for target in TARGETS:
        done = make(checkout, target, "PLAN=1")
        assert (done.stdout, done.stderr) == (f"setup {extra.get(target, '')} plan|<>\n", ""), target
    assert make(checkout, "run", "vm-test", "clean", PLAN="1").stdout == "setup 1 plan|<>\n"
    assert make(checkout, "setup", "PLAN=0").stdout == "setup  |<>\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("rum", "there is no target rum; `make help` lists them"),
        ("run KERNAL=6.1", "KERNAL=…: there is no such variable; there are ARGS COMMAND "),
        ("demo-pods ENGINE=crio", "ENGINE=crio is neither docker nor podman"),
        ("passengers RANDOM=many", "RANDOM=many is no number of moves: give 1 or more"),
        ("run ARGS='--demo", "ARGS cannot be split into words: no closing quotation: '--demo"),
    ],
)
def test_mistakes(checkout: Path, words: str, sentence: str) -> None:
    """A sentence, status 2, and nothing is run but set-up, which may be needed to know better."""
    done = make(checkout, *words.split(maxsplit=1))
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[0]
    assert "as-root" not in done.stdout


def test_every_target_is_known() -> None:
    """Each rule's name is in TARGETS, which says what can be asked for."""
    rules = set(re.findall(r"^([a-z-]+):(?!=)", (CHECKOUT / "Makefile").read_text(), re.M))
    assert rules - {"plan"} == set(TARGETS)


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("topo.main", "--demo tennis", "argument --demo: invalid choice: 'tennis'"),
        ("topo.main", "--demo pod", "--demo pod needs hosts that are pods"),
        ("tests.vm", "--kernel=/no/such", "vm-test: KERNEL=/no/such is neither one of 6.1, 6.12, all, nor the path"),
        ("tests.vm", "--steps=echo", "vm-test: STEPS=echo names what is no step; there are provision "),
        ("tests.vm", "--root=debian13", "vm-test: KERNEL=all: MODULES= and ROOT= are for a kernel"),
        ("tests.zdtm", "--path=/no/such", "zdtm: there is no folder test/zdtm with tests at /no/such"),
        ("tests.zdtm", "--path=tests/zdtm/sample --tests=tennis", "zdtm: TESTS=tennis names no test"),
    ],
)  # fmt: skip
def test_arguments_are_refused_before_anything_is_installed(
    module: str, arguments: str, sentence: str
) -> None:
    """By modules that need nothing that set-up installs; --check, and no more, is what it asks them for."""
    bare = f"import runpy, sys; sys.path.insert(0, '.'); runpy.run_module('{module}', run_name='__main__')"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-B", "-c", bare, *arguments.split(), "--check"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert sentence in done.stderr.splitlines()[-1]

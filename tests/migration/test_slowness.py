"""Time-outs grow with the slowness of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from migration import slowness


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("", None),
        ("12.5", 12.5),
        ("1", 1.0),
        ("0.5", None),
        ("-3", None),
        ("nan", None),
        ("x", None),
        ("100", 100.0),
        ("1e9", None),
        ("inf", None),
    ],
)
def test_what_a_user_may_set(text: str, factor: float | None) -> None:
    """A number from 1 to 100; nothing makes time-outs longer than a hundred times."""
    assert slowness.parse(text) == factor


def test_measurement_is_within_its_range() -> None:
    """Whatever machine this is."""
    assert 1.0 <= slowness.measure() <= 100.0


def test_time_outs_follow_the_environment() -> None:
    """Each module's constants are made when it is imported; children inherit what was measured."""
    script = (
        "from migration import deadline, proccover, slowness\nimport os\n"
        "print(deadline.Timeouts().of('dump'), proccover.TIMEOUT, slowness.scaled(2), os.environ['P4FERRY_SLOW'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"P4FERRY_SLOW": "4"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1200.0", "20.0", "8.0", "4.0"]


@pytest.mark.parametrize("text", ["0", "nan", "fast"])
def test_what_is_no_factor_is_refused(text: str) -> None:
    """In a sentence, by whatever program asks first."""
    done = subprocess.run(
        [sys.executable, "-c", "import migration.deadline"],
        env={"P4FERRY_SLOW": text}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    sentence = f"P4FERRY_SLOW={text} is no number from 1 to 100: unset it, and it is measured\n"
    assert (done.returncode, done.stderr) == (1, sentence)

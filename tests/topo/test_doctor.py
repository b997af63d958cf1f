"""What the doctor says: its JSON form, its files, and checks that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from migration.slowness import scaled
from topo import paths
from topo.doctor import CHECKS, doctor
from topo.doctor.findings import Checks, Finding, Status, fine, needed, optional
from topo.doctor.kernel import check_modules
from topo.doctor.machine import describe, version_of
from topo.doctor.report import as_json, examine
from topo.doctor.software import check_criu, check_pycriu
from topo.doctor.toolchain import reason_of
from topo.errors import TestbedError
from topo.modules import Kernel

LB = paths.CHECKOUT / "topo" / "lb.py"


def _fails() -> Finding:
    raise OSError("no such thing")


SOME: Checks = {
    "one": lambda: fine("well", version="1"),
    "two": lambda: optional("is [not] there", "much"),
}
BAD: Checks = {**SOME, "three": lambda: needed("is not there", "type: this"), "four": _fails}


def _lb(*arguments: str) -> subprocess.CompletedProcess[str]:
    # fmt: off
    return subprocess.run([sys.executable, str(LB), *arguments], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=scaled(120), check=False)
    # fmt: on


def test_findings_as_json() -> None:
    """Every check with its status, its line and what it measured, the time among it; and the machine."""
    found = as_json(examine(BAD))
    assert found["version"] == 1
    assert set(found["machine"]) == {
        "kernel", "distribution", "architecture", "python", "processors", "memory_bytes", "slowness",
    }  # fmt: skip
    assert [(c["name"], c["status"]) for c in found["checks"]] == [
        ("one", "fine"),
        ("two", "optional"),
        ("three", "needed"),
        ("four", "needed"),
    ]
    one, two, _, four = found["checks"]
    assert one["detail"] == "well" and one["measured"]["version"] == "1" and one["measured"]["ms"] >= 0
    assert two["detail"] == "is [not] there; lost: much"
    assert "no such thing" in four["detail"]
    assert json.loads(json.dumps(found)) == found


def test_the_table_has_the_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup; what is needed is listed once more, and is the exit status."""
    assert doctor(checks=BAD) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["one", "fine", "well"]
    assert "is [not] there; lost: much" in lines[1]
    assert lines[-1] == "Missing and needed: three, four."
    assert doctor(checks=SOME) == 0


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_json_on_standard_output_is_alone(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So that a program can read it."""
    assert doctor(json_file=Path(name), checks=BAD) == 1
    assert len(json.loads(capsys.readouterr().out)["checks"]) == 4


def test_standard_output_on_a_full_disk() -> None:
    """A sentence, also when Python ends."""
    script = (
        "from topo.doctor import report, TestbedError\n"
        "try: report.print_out('{}')\nexcept TestbedError as ex: raise SystemExit(str(ex))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "standard output cannot be written: No space left on device\n",
    )


def test_json_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Besides the table."""
    assert doctor(json_file=tmp_path / "d.json", checks=SOME) == 0
    assert len(json.loads((tmp_path / "d.json").read_text())["checks"]) == 2
    assert "fine" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["json_file", "bundle"])
def test_a_wrong_path_is_a_sentence_before_anything_is_examined(option: str, tmp_path: Path) -> None:
    """A folder, a folder that is not there, and for a bundle a file that is."""
    checks: Checks = {"never": lambda: pytest.fail("a check ran")}
    wrong = [(tmp_path, "a folder"), (tmp_path / "no" / "x", "there is no folder")]
    if option == "bundle":
        (tmp_path / "there").write_text("mine")
        wrong.append((tmp_path / "there", "there is a file of that name"))
    for path, says in wrong:
        with pytest.raises(TestbedError, match=says) as error:
            doctor(**{option: path}, checks=checks)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--json"], 2, "argument --json: expected one argument"),
        (["--demo", "echo", "--json"], 2, "argument --json: expected one argument"),
        (["--bundle", "x"], 2, "argument --bundle: it is an option of --doctor"),
        (
            ["--doctor", "--bundle", "/no/such/place"],
            1,
            "--bundle /no/such/place: there is no folder /no/such",
        ),
        (
            ["--doctor", "--bundle", "/dev/stdout"],
            1,
            "--bundle /dev/stdout: there is a file of that name already",
        ),
        (["--doctor", "--json", "/proc"], 1, "--json /proc: that is a folder"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], status: int, says: str) -> None:
    """One sentence; --json without a file is for --doctor only."""
    done = _lb(*arguments)
    assert (
        done.returncode == status and done.stderr.strip().splitlines()[-1].startswith(f"lb.py: {says}")
    ) or (done.returncode == status and f"error: {says}" in done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("5.15.0-105-generic", (5, 15)),
        ("6.1.0-18-amd64", (6, 1)),
        ("6.12+deb13-cloud-amd64", (6, 12)),
        ("6.18-rc1", (6, 18)),
        ("6.6+", (6, 6)),
        ("5.15.167.4-microsoft-standard-WSL2", (5, 15)),
        ("what", (0, 0)),
    ],
)
def test_kernels_call_their_releases_many_things(release: str, version: tuple[int, int]) -> None:
    """Two numbers begin them all."""
    assert version_of(release) == version


def test_missing_modules_are_named(tmp_path: Path) -> None:
    """With the kernel and what to do; one that nothing goes without is needed."""
    for name, text in (("modules.dep", "kernel/veth.ko:\n"), ("modules.builtin", "")):
        path = tmp_path / "lib/modules/6.8.0-31-generic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = check_modules(Kernel("6.8.0-31-generic", tmp_path))
    assert found.status is Status.NEEDED
    assert "kernel 6.8.0-31-generic has no sch_ingress (the hook of tc" in found.detail
    assert found.measured["veth"] == "loadable" and found.measured["cls_bpf"] == "missing"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Traceback …\n  …\na.b.PipelineRejected: the kernel's verifier: 958: (bc)\n",
            "the kernel's verifier: 958: (bc)",
        ),
        ("Killed", "Killed"),
        ("", "exit status 1"),
    ],
)
def test_a_refused_programs_reason_has_no_class(said: str, reason: str) -> None:
    """What the verifier said is what a user can use."""
    assert reason_of(subprocess.CalledProcessError(1, "python", stderr=said)) == reason


@pytest.mark.net
def test_a_criu_that_was_named_is_the_one_that_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the way out is to name another one, or none."""
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho 'wrong libc' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("P4FERRY_CRIU", str(broken))
    for finding in (check_criu(), check_pycriu()):
        assert finding.status is Status.NEEDED
        assert finding.detail == f"CRIU at {broken} does not work (wrong libc); unset P4FERRY_CRIU"


def test_the_doctor_of_this_machine_as_json(tmp_path: Path) -> None:
    """Every check is there, with the machine that it examined, and what it measured."""
    done = _lb("--doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["kernel"] == os.uname().release
    assert found["machine"]["distribution"] == describe()["distribution"]
    checks = {check["name"]: check for check in found["checks"]}
    assert list(checks) == list(CHECKS)
    programs = checks["eBPF"]["measured"]
    assert programs["libbpf"].startswith("v1.")
    for name in ("forward", "load_balancer"):
        assert programs[name]["load_ms"] > 0
        assert programs[name].get("verified_instructions", 1000) >= 1000
    assert checks["CRIU"]["measured"]["version"] in checks["CRIU"]["detail"]
    assert checks["kernel modules"]["measured"]["veth"] in ("built in", "loaded", "loadable", "unknown")

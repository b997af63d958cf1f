"""p4runtime-shell, as it is on PyPI, drives the switch.

It pins an old protobuf, so it lives in an environment of its own, .p4ferry/shell-venv, made here once.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dataplane.compiler import compile_program
from tests.dataplane.p4runtime import process
from tests.dataplane.p4runtime.test_finsy_client import run_script

pytestmark = pytest.mark.net

VENV = process.CHECKOUT / ".p4ferry" / "shell-venv"

SESSION = """
import sys
import p4runtime_sh.shell as sh
from p4runtime_sh.p4runtime import P4RuntimeWriteException

def session():
    print("tables:", *sorted(table.name for table in sh.P4Objects(sh.P4Type.table)))
    entry = sh.TableEntry("Ingress.route")(action="Ingress.forward")
    entry.match["address"] = "10.0.2.0/24"
    entry.action["port"] = "2"
    entry.action["src_mac"] = "08:00:00:00:00:fe"
    entry.action["dst_mac"] = "08:00:00:00:02:02"
    entry.insert()
    for found in sh.TableEntry("Ingress.route").read():
        print("prefix length", found.match["address"].lpm.prefix_len, "to port", found.action["port"].value)
    entry.action["port"] = "3"
    entry.modify()
    print("now port", [found.action["port"].value for found in sh.TableEntry("Ingress.route").read()])
    entry.delete()
    print("left:", len(list(sh.TableEntry("Ingress.route").read())))
    try:
        entry.delete()
    except P4RuntimeWriteException as ex:
        print("again:", ex)
    counter = next(iter(sh.CounterEntry("Ingress.service_counter").read()))
    print("counter", counter.index, counter.packet_count)

address, p4info, program = sys.argv[1:]
sh.setup(device_id=7, grpc_addr=address, election_id=(0, 1), config=sh.FwdPipeConfig(p4info, program))
try:
    session()
finally:
    sh.teardown()
"""


@pytest.fixture(scope="session")
def shell_python() -> Path:
    """Make the environment, or take the one that is there."""
    python = VENV / "bin" / "python"
    if not (VENV / "complete").exists():
        try:
            subprocess.run(["/usr/bin/python3", "-m", "venv", "--clear", str(VENV)], check=True, timeout=60)
            pip = [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "p4runtime-shell",
            ]
            subprocess.run(pip, check=True, timeout=180, capture_output=True)
        except (OSError, subprocess.SubprocessError) as ex:
            pytest.skip(f"p4runtime-shell cannot be installed: {ex}")
        (VENV / "complete").touch()
    return python


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return load_balancer's P4Info and JSON as files."""
    result = compile_program(process.CHECKOUT / "p4src" / "load_balancer.p4")
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "p4info.txt").write_text(str(result.p4info))
    (folder / "program.json").write_text(json.dumps(result.bmv2_json))
    return folder / "p4info.txt", folder / "program.json"


def test_shell_lists_inserts_and_reads_back(shell_python: Path, compiled: tuple[Path, Path]) -> None:
    """And modifies, deletes, reads a counter, and understands our errors."""
    with process.running("--no-p4", "--device-id", "7") as (switch, _):
        done = subprocess.run(
            [str(shell_python), "-c", SESSION, switch.address, *map(str, compiled)],
            capture_output=True, text=True, timeout=60, check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "prefix length 24 to port b'\\x02'",
        "now port [b'\\x03']",
        "left: 0",
        "counter 0 0",
    ):
        assert line in lines, done.stdout
    assert "Ingress.connection" in done.stdout
    assert "NOT_FOUND" in done.stdout.split("again:")[1]


def test_finsy_script_on_the_kernel(compiled: tuple[Path, Path]) -> None:
    """The example of docs/, on the real switch."""
    with process.running("--no-p4", "--device-id", "7") as (switch, _):
        printed = run_script(switch.address, 7, *map(str, compiled), "arp", "address=10.0.1.254", "drop")
    assert "connection_source" in printed
    assert f"P4TableEntry(table_id='arp', match={{'address': {0x0A0001FE}}}" in printed

"""Say what works on this machine: every check tries the real thing, answers in one line, and says what it measured.

An answer is "fine", "optional" (missing; the line says what is lost) or "needed" (missing; the line says what to
type). New check: one function in the module of its subject, one row in CHECKS.

`findings` (what an answer is) → `machine`, `kernel`, `toolchain`, `software` (the checks) → `report` (table, JSON);
`bundle` packs a bug report's files, `redaction` takes the machine's addresses and names out of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from topo.doctor import kernel, machine, software, toolchain
from topo.doctor.findings import Checks, Finding, Status
from topo.doctor.report import STANDARD_OUTPUT, as_json, examine, print_table, write_json
from topo.errors import TestbedError

__all__ = ["CHECKS", "Finding", "Status", "doctor", "examine"]

CHECKS: Checks = {
    "kernel": machine.check_kernel,
    "machine": machine.check_machine,
    "privileges": kernel.check_root,
    "kernel modules": kernel.check_modules,
    "network": kernel.check_namespaces,
    "link emulation": kernel.check_netem,
    "hold queues": kernel.check_hold_queues,
    "clang": toolchain.check_clang,
    "eBPF": toolchain.check_bpf,
    "CRIU": software.check_criu,
    "pycriu": software.check_pycriu,
    "dirty tracking": software.check_dirty_tracking,
    "Mininet": software.check_mininet,
    "Redis": software.check_redis,
    "Docker": software.check_docker,
    "Podman": software.check_podman,
    "runc": software.check_runc,
    "BMv2 and p4c": toolchain.check_bmv2,
    "Vagrant": software.check_vagrant,
}


def doctor(json_file: Path | None = None, bundle: Path | None = None, checks: Checks = CHECKS) -> int:
    """Print all findings; the exit status is 0 if nothing that is needed is missing.

    They are also written to `json_file`, or printed as JSON instead if that is standard output. `bundle` is a file
    that everything that a bug report needs is packed into. Raises TestbedError if a file cannot be written.
    """
    from topo.doctor.bundle import pack

    is_printed = json_file is not None and str(json_file) in STANDARD_OUTPUT
    for option, path in (("--json", None if is_printed else json_file), ("--bundle", bundle)):
        if path is not None:
            _check_place(option, path)
    if bundle is not None and bundle.exists():
        raise TestbedError(f"--bundle {bundle}: there is a file of that name already, choose another one")
    findings = examine(checks)
    missing = [name for name, finding in findings.items() if finding.status is Status.NEEDED]
    if json_file is not None:
        write_json(None if is_printed else json_file, as_json(findings))
    if not is_printed:
        print_table(findings)
        if missing:
            print(f"\nMissing and needed: {', '.join(missing)}.")
    if bundle is not None:
        print(pack(bundle, as_json(findings)), file=sys.stderr if is_printed else sys.stdout)
    return 1 if missing else 0


def _check_place(option: str, path: Path) -> None:
    """Refuse a file that cannot be written before anything is examined."""
    if path.is_dir():
        raise TestbedError(f"{option} {path}: that is a folder, a file is needed")
    if not path.absolute().parent.is_dir():
        raise TestbedError(f"{option} {path}: there is no folder {path.absolute().parent}")

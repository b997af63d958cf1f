"""P4 programs: from the compiler to the kernel's verifier."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from topo import paths
from topo.compile import Target, compile_p4
from topo.doctor.findings import (
    SETUP,
    Finding,
    fine,
    first_line,
    last_line,
    milliseconds_since,
    needed,
    optional,
    run,
)
from topo.errors import TestbedError
from topo.modules import distribution

PROGRAMS = ("forward", "load_balancer")
# Loads without attaching; prints how long it took, and what the verifier went through.
_LOAD = """
import json, sys, time
from pathlib import Path
from dataplane.switch.engine import EbpfEngine
engine = EbpfEngine(device_id=4000)
try:
    begin = time.perf_counter()
    pipeline = engine.load(Path(sys.argv[1]).read_bytes())
    milliseconds = round((time.perf_counter() - begin) * 1000, 1)
    print(json.dumps({"load_ms": milliseconds, "verified_instructions": pipeline.verified_insns}))
    pipeline.close()
finally:
    engine.close()
"""


def check_clang() -> Finding:
    """Compile for BPF."""
    clang = shutil.which("clang")
    if clang is None:
        return needed("clang is not installed", SETUP)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int probe(void *context) { return 0; }\n")
        done = run([clang, "-O2", "-target", "bpf", "-c", str(source), "-o", str(Path(folder) / "probe.o")])
    if done.returncode != 0:
        return needed(
            f"clang cannot compile for BPF: {last_line(done)}", "install a clang with the BPF target"
        )
    version = first_line(run([clang, "--version"]))
    return fine(version, version=version)


def check_bpf() -> Finding:
    """Let the kernel verify the programs of our own networks."""
    if importlib.util.find_spec("dataplane.switch.engine") is None:
        return needed("the embedded switch is not importable", SETUP)
    if (libbpf := _libbpf_version()) is None:
        return needed(*_why_no_libbpf())
    if os.geteuid() != 0:
        return needed("only root can load BPF programs", "type: sudo python3 topo/lb.py --doctor")
    measured: dict[str, Any] = {"libbpf": libbpf}
    for name in PROGRAMS:
        try:
            measured[name] = _load(paths.P4SRC / f"{name}.p4")
        except TestbedError as ex:
            return needed(f"p4ferry-p4c: {str(ex).splitlines()[0]}", "see make test", **measured)
        except subprocess.CalledProcessError as ex:
            return needed(
                f"{name}.p4 on kernel {platform.release()}: {reason_of(ex)}",
                "send the file that --bundle makes, or boot another kernel",
                **measured,
            )
    said = ", ".join(f"{name} ({_instructions(measured[name])})" for name in PROGRAMS)
    return fine(f"P4 compiles to eBPF and passes the verifier: {said}", **measured)


def reason_of(failed: subprocess.CalledProcessError) -> str:
    """Return the last line of what a Python program said when it failed, without the exception's class."""
    lines = str(failed.stderr).strip().splitlines() or [f"exit status {failed.returncode}"]
    return re.sub(r"^[\w.]+: ", "", lines[-1])


def _libbpf_version() -> str | None:
    """Return the version of the libbpf that the engine loads, such as v1.1; None if there is none."""
    try:
        tell = ctypes.CDLL("libbpf.so.1").libbpf_version_string
    except (OSError, AttributeError):
        return None
    tell.restype = ctypes.c_char_p
    return str(tell().decode())


def _why_no_libbpf() -> tuple[str, str]:
    """Return what is missing, and what to do: set-up cannot install what a distribution does not have."""
    try:
        ctypes.CDLL("libbpf.so.0")
    except OSError:
        return "libbpf.so.1 is not installed", SETUP
    system = distribution()["PRETTY_NAME"]
    return (
        f"{system} has libbpf 0.x only (libbpf.so.0)",
        "install libbpf 1.x (Debian 12, Ubuntu 24.04 have it)",
    )


def _load(source: Path) -> dict[str, Any]:
    """Compile and load a program without attaching it anywhere; returns what was measured."""
    begin = time.perf_counter()
    program = compile_p4(source, Target.EBPF)
    compiled = milliseconds_since(begin)
    done = run([str(paths.VENV_PYTHON), "-c", _LOAD, str(program.bmv2_json)])
    done.check_returncode()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not found["verified_instructions"]:  # kernels before 5.16 do not tell
        del found["verified_instructions"]
    return {"p4_compile_ms": compiled, **found}


def _instructions(found: dict[str, Any]) -> str:
    verified = found.get("verified_instructions")
    loaded = f"{found['load_ms']:.0f} ms"
    return f"{verified:,} instructions, {loaded}" if verified else loaded


def check_bmv2() -> Finding:
    """Ask for BMv2 and p4c."""
    missing = [tool for tool in ("simple_switch_grpc", "p4c-bm2-ss") if shutil.which(tool) is None]
    if missing:
        return optional(f"{' and '.join(missing)} not on PATH", "--target bmv2")
    return fine("simple_switch_grpc and p4c-bm2-ss")

"""C to a BPF object: clang as a child process, and a cache of what it made.

The cache is keyed by everything that goes in: the source, the headers, the flags, and clang itself. An object
appears in the cache under its final name only when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dataplane.switch.engine.verifier import SOURCE_NAME
from dataplane.switch.pipeline import PipelineRejected
from dataplane.switch.slowness import scaled

INCLUDE = Path(__file__).parent / "include"

FLAGS = (
    "-O2",
    "-g",
    "-target",
    "bpf",
    "-mcpu=v3",  # 5.15 takes it; v4 is for 6.6 and later, and what a compiler takes by itself differs
    "-fno-strict-aliasing",
    "-Wall",
    # Not all warnings: a newer compiler has more of them, and must compile our programs nevertheless.
    "-Werror=implicit-function-declaration",
    "-Werror=incompatible-pointer-types",
    "-Werror=int-conversion",
    "-Werror=return-type",
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-unused-but-set-variable",
    "-Wno-unused-label",
    "-Wno-pass-failed",
    "-Wno-tautological-compare",
    "-Wno-tautological-constant-out-of-range-compare",
    "-Wno-parentheses-equality",
    "-Wno-compare-distinct-pointer-types",
)

_TIMEOUT_S = scaled(60.0)


def default_cache() -> Path:
    """Return the user's cache directory for compiled pipelines."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "p4ferry"


class Compiler:
    """Turns C source into the bytes of a BPF object."""

    def __init__(self, cache: Path, command: str = "clang", flags: Sequence[str] = FLAGS) -> None:
        self.cache = cache
        self.command = command
        self.flags = flags

    def compile(self, source: str) -> bytes:
        """Return the object for a source, from the cache if it is there; raises PipelineRejected."""
        clang = shutil.which(self.command)
        if clang is None:
            raise PipelineRejected(f"the C compiler {self.command} is not installed (run make setup)")
        key = self._key(source, Path(clang))
        cached = self.cache / f"{key}.o"
        try:
            return cached.read_bytes()
        except OSError:
            pass  # not there, or not ours to read: compile
        return self._run(clang, source, key)

    def _key(self, source: str, clang: Path) -> str:
        real = clang.resolve().stat()
        digest = hashlib.sha256(f"{clang} {real.st_size} {real.st_mtime_ns} {self.flags}".encode())
        for header in sorted(INCLUDE.glob("*.h")):
            digest.update(header.read_bytes())
        digest.update(source.encode())
        return digest.hexdigest()[:32]

    def _run(self, clang: str, source: str, key: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="p4ferry-") as name:
            c_file, o_file = Path(name) / SOURCE_NAME, Path(name) / "pipeline.o"
            c_file.write_text(source)
            command = [
                clang,
                *self.flags,
                *_multiarch(),
                f"-I{INCLUDE}",
                "-c",
                str(c_file),
                "-o",
                str(o_file),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode:
                kept = self._keep(key, source)
                errors = "\n".join(line for line in done.stderr.splitlines() if "error" in line)[:2000]
                raise PipelineRejected(
                    f"clang does not accept the generated program {kept}: {errors or done.stderr[:2000]}"
                )
            data = o_file.read_bytes()
        self._store(key, source, data)
        return data

    def _keep(self, key: str, source: str) -> Path:
        """Keep a source that failed, for whoever looks into it."""
        path = self.cache / f"{key}.c"
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        except OSError:
            return Path("(not kept)")
        return path

    def _store(self, key: str, source: str, data: bytes) -> None:
        """Put an object into the cache; without a writable cache everything works, only slower."""
        self._keep(key, source)
        partial = self.cache / f"{key}.{os.getpid()}"
        try:
            partial.write_bytes(data)
            partial.rename(self.cache / f"{key}.o")
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _multiarch() -> list[str]:
    """Return the include path of <asm/types.h>, which Debian keeps apart per architecture."""
    return [f"-I{path.parent}" for path in Path("/usr/include").glob("*-linux-gnu/asm")][:1]

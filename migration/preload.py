"""A library that is loaded into CRIU, for what it cannot do by itself. `make setup` compiles it, else its first use.

- Where root lacks CAP_SYS_RESOURCE, prlimit(2) does not tell CRIU the resource limits of another user's program, though
  everyone may read them in /proc/PID/limits. The library reads them there.
- What CRIU changes in the threads of a program is written down (undolog.c), for the case that it is killed (guard.py).
- CRIU makes every eventfd without EFD_SEMAPHORE; the library knows which ones were semaphores (notifications.py).
- A terminal that was opened as /dev/tty is taken for the slave that it is (devtty.c).
- A lazy-pages daemon does not serve faults all the time (lazypages.c).
- While a program is dumped, the proc of its PID namespace lies over /proc (proccover.py); CRIU's own is at `PROC` then.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .errors import MigrationError
from .slowness import scaled

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("preload.c", "undolog.c", "devtty.c", "lazypages.c")
)
STORE = Path(__file__).resolve().parent.parent / ".p4ferry" / "lib"
PROC = "/proc/bus"  # a folder of every proc, whatever is configured
COMPILERS = ("clang", "cc")
_COMPILE_TIMEOUT = scaled(60.0)


class CannotMake(MigrationError):
    """The library cannot be made; says why."""


@functools.cache
def library() -> Path:
    """Return the library, compiled now if it is not there; raises CannotMake."""
    name = hashlib.sha256(
        b"".join(one.read_bytes() for one in SOURCES) + platform.machine().encode()
    ).hexdigest()[:16]
    path = STORE / f"criu-{name}.so"
    if re.search(r"[\s:$]", str(path)):  # ld.so(8): nothing in LD_PRELOAD can be quoted
        raise CannotMake(f"{path} cannot be loaded from a path with a space, a colon or a dollar sign")
    if not path.exists():
        try:
            _compile(path)
        except OSError as ex:
            raise CannotMake(f"{path} cannot be made: {ex}") from ex
    return path


def _compile(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        said = f"neither {' nor '.join(COMPILERS)} is installed"
        for compiler in COMPILERS:
            command = [
                compiler,
                "-O2",
                "-shared",
                "-fPIC",
                "-nostdlib",
                "-fno-builtin",
                "-o",
                str(made),
                *map(str, SOURCES),
            ]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT, start_new_session=True
                )
            except FileNotFoundError:
                continue
            except subprocess.TimeoutExpired:
                said = f"{compiler} was not through after {_COMPILE_TIMEOUT:.0f} s"
                continue
            if done.returncode == 0:
                made.replace(path)
                return
            said = (done.stderr.strip().splitlines() or [f"{compiler} failed"])[0]
        raise CannotMake(f"{SOURCES[0].name} cannot be compiled: {said}")


def environment(undo: Path | None = None) -> dict[str, str]:
    """Return what a CRIU process has in its environment so that the library is loaded; raises CannotMake.

    What a dump changes in its program is written to `undo`, for guard.py.
    """
    told = {} if undo is None else {"P4FERRY_UNDO": str(undo)}
    return {"LD_PRELOAD": str(library()), "P4FERRY_PROC": PROC, **told}


if __name__ == "__main__":  # scripts/setup: so that the first move does not wait for the compiler
    try:
        library()
    except CannotMake as ex:
        sys.exit(f"{ex}")

"""Which line of CRIU's log is the cause: recorded logs, and what is known of how CRIU writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from migration import criu_log
from migration.errors import CriuFailed

LOGS = Path(__file__).parent / "logs"
RLIMIT = "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted"
DEVICE = "Can't dump file 3 of that type [20600] (chr 10:232)"


def ordinary(count: int) -> str:
    """Return lines of which CRIU writes many."""
    return "\n".join(f"(00.0{n:05}) 1234 fdinfo {n}: pos: 0 flags: 100000/0" for n in range(count))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        # CRIU 4.2.1: a program with /dev/kvm open (-v4, shortened at the beginning).
        ((LOGS / "dump-device.log").read_text(), DEVICE),
        # CRIU 4.2.1: its PID is taken (-v4, shortened in the middle).
        ((LOGS / "restore-pid.log").read_text(), "Can't fork for 22039: File exists"),
        # The same as migrations have it logged (-v2).
        (
            f"{RLIMIT}\nError (criu/cr-restore.c:1237): Can't fork for 22039: File exists\n"
            "Error (criu/cr-restore.c:2331): Restoring FAILED.\n",
            "Can't fork for 22039: File exists",
        ),
        # CRIU 3.17.1 on Linux 6.18.
        (
            "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n"
            "Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable\n"
            "Error (criu/kerndat.c:1615): kerndat_vdso_fill_symtable failed when initializing kerndat.\n"
            "Error (criu/crtools.c:260): Could not initialize kernel features detection.\n",
            "vdso: Unexpected rt vDSO area bounds",
        ),
        # CRIU 4.2.1: the process ended while it was dumped.
        (
            f"{RLIMIT}\nError (compel/src/lib/infect.c:417): Unable to detach from 19919: No such process\n"
            "Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
            "Dumping FAILED.",
        ),
        # The kind of CRIU 4.1.1 on Linux 6.16 and newer.
        (
            f"(00.000001) {RLIMIT}\n(00.02)  1234: Error (criu/sockets.c:1): sockets: Can't get 1:16 opt: "
            "Operation not supported\n(00.03) Error (criu/cr-dump.c:2): Dump files (pid: 1234) failed with -1\n"
            "(00.04) Error (criu/cr-dump.c:3): Dumping FAILED.\n",
            "sockets: Can't get 1:16 opt: Operation not supported",
        ),
        # An error of the restorer, which logs without a time.
        (
            "pie: 55: Error (criu/pie/restorer.c:2): Unable to restore itimer: -22\n"
            "(00.1) Error (criu/cr-restore.c:1): 55 exited, status=1\n"
            "(00.1) Error (criu/cr-restore.c:9): Restoring FAILED.",
            "Unable to restore itimer: -22",
        ),
        # Whatever CRIU survived is not the cause, known or not.
        (f"Error (criu/x.c:1): an unknown grumble\n{ordinary(60)}\nError (criu/y.c:2): it broke", "it broke"),
        (f"Error (criu/x.c:1): it broke\n{ordinary(20)}\nError (criu/y.c:2): it gave up", "it broke"),
        # It was killed, long after what it survived.
        (f"Error (criu/x.c:1): an unknown grumble\n{ordinary(60)}", None),
        (RLIMIT, None),
        ("Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory", None),
        ("", None),
        ("Error is a word that a program's name may have\nWarn  (criu/x.c:1): careful", None),
    ],
)
def test_cause(log: str, expected: str | None) -> None:
    """Neither the first error nor the last as such."""
    assert criu_log.cause(criu_log.errors(log)) == expected


def test_message_of_a_migration() -> None:
    """It names the cause, and keeps all lines."""
    lines = ["Unable to open fd=3 id=0x5", "Can't bind: Address already in use", "Restoring FAILED."]
    failed = CriuFailed("restore it on h3", lines)
    assert str(failed) == "CRIU could not restore it on h3: Can't bind: Address already in use"
    assert failed.lines == lines

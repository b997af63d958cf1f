"""What runc hands on to CRIU for us: /etc/criu/runc.conf, while a container moves.

Docker's API has no word for open TCP connections, Podman's command none for some of what follows. CRIU reads this file
for each of runc's requests, and it has the last word. Whatever was in the file comes first, and is all there is again
when the last migration is over; a note in /run tells whoever cleans up after a killed controller.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

from ..shared import Shared

CONF = Path("/etc/criu/runc.conf")
NOTE = Path("/run/p4ferry.criu-runc-conf")
ABSENT = "\0absent"
OPTIONS = (
    "tcp-established",
    "file-locks",
    "link-remap",
    "ghost-limit 67108864",
    "network-lock skip",  # the network holds the packets
)


def in_force() -> AbstractContextManager[None]:
    """Have the file say what a migration needs, as long as the block runs."""
    return _SHARED.use()


def _write() -> None:
    put_back()
    before = CONF.read_text() if CONF.exists() else ABSENT
    NOTE.write_text(before)
    CONF.parent.mkdir(exist_ok=True)
    own = "" if before == ABSENT else before.rstrip("\n") + "\n"
    CONF.write_text(own + "\n".join(OPTIONS) + "\n")


def put_back() -> None:
    """Let the file be what it was before this process, or one that was killed, changed it."""
    if not NOTE.exists():
        return
    before = NOTE.read_text()
    if before == ABSENT:
        CONF.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            CONF.parent.rmdir()
    else:
        CONF.write_text(before)
    NOTE.unlink()


_SHARED = Shared(_write, put_back)

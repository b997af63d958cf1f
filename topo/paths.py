"""Where things are: the checkout, what set-up made in it, and the place for one run's files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".p4ferry"
BUILD = STATE / "build"
P4SRC = CHECKOUT / "p4src"
VENV_PYTHON = CHECKOUT / ".venv" / "bin" / "python"
RUNS = Path(os.environ.get("P4FERRY_RUNS", "/run/p4ferry"))
IMAGES = Path(os.environ.get("P4FERRY_IMAGES", "/dev/shm/p4ferry"))


def keep_checkout_removable() -> None:
    """Keep this process, if it is root in another user's checkout, and its children from writing bytecode into it."""
    if _has_other_owner():
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def give_to_owner(*made: Path) -> None:
    """Give what root has made in another user's checkout to that user, who could not remove it otherwise."""
    if _has_other_owner():
        owner = CHECKOUT.stat()
        for path in (p for p in made if CHECKOUT in p.parents):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _has_other_owner() -> bool:
    return os.geteuid() == 0 and CHECKOUT.stat().st_uid != 0


def criu_binary() -> Path | None:
    """Return the CRIU that set-up found to work, if there is one."""
    binary = STATE / "bin" / "criu"
    return binary if binary.exists() else None

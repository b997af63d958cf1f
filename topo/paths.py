"""Where things are: the checkout, what set-up made in it, and the place for one run's files."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".p4ferry"
BUILD = STATE / "build"
P4SRC = CHECKOUT / "p4src"
VENV_PYTHON = CHECKOUT / ".venv" / "bin" / "python"
RUNS = Path(os.environ.get("P4FERRY_RUNS", "/run/p4ferry"))
IMAGES = Path(os.environ.get("P4FERRY_IMAGES", "/dev/shm/p4ferry"))


def criu_binary() -> Path | None:
    """Return the CRIU that set-up found to work, if there is one."""
    binary = STATE / "bin" / "criu"
    return binary if binary.exists() else None

"""Commands that only root may run, for a user who has sudo: unpacking packages, and talking to engines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence


def as_root(command: Sequence[str]) -> list[str]:
    """Put sudo before a command unless this is root, or there is no sudo: the command then says what it lacks."""
    if os.geteuid() == 0 or shutil.which("sudo") is None:
        return list(command)
    return ["sudo", *command]

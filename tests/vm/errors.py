"""What goes wrong with virtual machines, in a sentence."""

from __future__ import annotations


class VmError(Exception):
    """A machine cannot be made or run; the message says what to do."""

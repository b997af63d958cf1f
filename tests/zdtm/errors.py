"""What keeps the tests from being begun, in a sentence."""

from __future__ import annotations


class ZdtmError(Exception):
    """The folder, the names or the modes that were asked for are none; the message says what to do."""

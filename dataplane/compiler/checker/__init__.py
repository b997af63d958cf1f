"""Names to declarations, expressions to types, constants to values."""

from .declarations import Checker

__all__ = ["Checker"]

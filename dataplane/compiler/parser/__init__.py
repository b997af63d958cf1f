"""Tokens to syntax tree: recursive descent, one method per grammar rule (P4_16 appendix "P4 grammar")."""

from .declarations import Parser

__all__ = ["Parser"]

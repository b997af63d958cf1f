"""Syntax tree to `ir`: instances made, calls inlined, structs dissolved."""

from .program import lower_program

__all__ = ["lower_program"]

"""`ir` to BMv2 JSON, as p4c-bm2-ss writes it (behavioral-model's docs/JSON_format.md, version 2.23)."""

from .program import to_json

__all__ = ["to_json"]

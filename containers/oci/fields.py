"""Typed values out of JSON documents that others wrote: a wrong type is one sentence, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ImageInvalid

MAX_DOCUMENT = 4 << 20
"""Bytes of a JSON document; registries accept no larger manifest either."""


def parse(data: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object."""
    if len(data) > MAX_DOCUMENT:
        raise ImageInvalid(f"{what} has {len(data)} bytes, more than {MAX_DOCUMENT}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as ex:
        raise ImageInvalid(f"{what} is not JSON") from ex
    if not isinstance(found, dict):
        raise ImageInvalid(f"{what} is not a JSON object")
    return found


def render(document: Mapping[str, Any] | list[Mapping[str, Any]]) -> bytes:
    """Write a JSON document, the same bytes for the same content."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def text(document: Mapping[str, Any], key: str, what: str, default: str | None = None) -> str:
    """Return a string; null counts as absent, as Go's encoder writes it."""
    value = document.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ImageInvalid(f"{what} has no text {key!r}")
    return value


def size(document: Mapping[str, Any], key: str, what: str) -> int:
    """Return a whole number that is not negative."""
    value = document.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ImageInvalid(f"{what} has no size {key!r}")
    return value


def section(document: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    """Return an object, empty if absent."""
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ImageInvalid(f"{what} has a {key!r} that is not an object")
    return value


def objects(document: Mapping[str, Any], key: str, what: str, most: int) -> list[dict[str, Any]]:
    """Return a list of objects, with a bound on its length."""
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ImageInvalid(f"{what} has no list {key!r}")
    if len(value) > most:
        raise ImageInvalid(f"{what} has {len(value)} {key!r}, more than {most}")
    return value


def texts(document: Mapping[str, Any], key: str, what: str) -> tuple[str, ...]:
    """Return a list of strings, empty if absent."""
    value = document.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImageInvalid(f"{what} has a {key!r} that is not a list of texts")
    return tuple(value)


def labels(document: Mapping[str, Any], key: str, what: str) -> dict[str, str]:
    """Return an object whose values are strings, empty if absent."""
    found = section(document, key, what)
    if not all(isinstance(value, str) for value in found.values()):
        raise ImageInvalid(f"{what} has a {key!r} whose values are not all texts")
    return found

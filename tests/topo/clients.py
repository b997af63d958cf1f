"""What a measuring client must have found."""

from __future__ import annotations

from typing import Any


def assert_clean(result: dict[str, Any]) -> None:
    """Every byte came back, on the connections that the client began with."""
    assert [result[k] for k in ("lost_bytes", "duplicated_bytes", "corrupt_bytes", "resets", "errors")] == [
        0, 0, 0, 0, [],
    ], result  # fmt: skip
    assert result["replies"] == result["requests"] > 0

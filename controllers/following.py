"""Keeping something as the rows ask for, as they change: what LeftPorts and Hairpins have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

AGAIN_S = 1.0
"""After which what could not be done is tried again."""
_PAUSE_S = 0.05


async def follow_forever(
    changed: asyncio.Event, working: asyncio.Lock, follow: Callable[[], Awaitable[bool]]
) -> None:
    """Call `follow` whenever something has `changed`, alone; it returns False if something is to be tried again."""
    while True:
        await changed.wait()
        changed.clear()
        async with working:
            is_done = await follow()
        if not is_done:
            asyncio.get_running_loop().call_later(AGAIN_S, changed.set)
        await asyncio.sleep(_PAUSE_S)

"""The event loop on which every controller of this process runs, in a thread of its own.

There is one, and it is never closed: grpc.aio hands the completions of all its calls out through whichever loop wakes
up first, and one that belongs to a closed loop makes it drop those behind it.
"""

from __future__ import annotations

import asyncio
import threading

from migration.processors import assisting

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the loop; it runs."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(_loop,), name="controller", daemon=True).start()
        return _loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    with assisting():
        loop.run_forever()

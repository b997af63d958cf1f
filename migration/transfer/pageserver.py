"""CRIU's page server at the destination: takes the pages of one dump over a link and writes them into its folder.

It listens to one connection, made beforehand, and so is ready before the freeze. The dump worker at the other end
tells it to end; when it has, every page is in the folder, and the page maps with them.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..criu import Criu
from ..custody import Custody
from ..errors import MigrationError
from ..model import Host
from ..namespaces import URGENT, set_priority, urgency
from ..processors import assisting
from ..slowness import scaled
from .helper import Helper
from .link import Link, uncorked

PAGE_SERVER_LOG = "page-server.log"
# From the dump's last page until the server has closed its files.
FLUSH_TIMEOUT = scaled(10.0)
# Once it has all pages it is behind the threads here, unlike other processes of CRIU's: they are waited for when its
# process has done everything and is taken to pieces, which takes 1 ms.
NICE = 0


class PageServer:
    """A running page server that writes into `folder`; `parent` is the folder of an earlier round, relative to it."""

    def __init__(
        self,
        criu: Criu,
        custody: Custody,
        destination: Host,
        folder: Path,
        link: Link,
        parent: str | None = None,
    ) -> None:
        self._link = link
        self._thread = threading.Thread(target=self._wait, name="page-server", daemon=True)
        self._has_time = threading.Event()
        self._has_done_it = False
        self._failed: MigrationError | None = None
        self._helper = Helper(
            criu,
            custody,
            destination,
            ["page-server", "-D", str(folder), *(["--prev-images-dir", parent] if parent else [])],
            folder / PAGE_SERVER_LOG,
            f"take the pages on {destination.name}",
            link.far,
        )
        set_priority(self.pid, NICE)
        link.far.close()  # when the server is gone, the dump worker is to notice

    @property
    def pid(self) -> int:
        """Its PID."""
        return self._helper.pid

    def wait_until_ready(self) -> None:
        """Return when it serves."""
        self._helper.wait_until_ready()
        # From now on, since starting a thread takes its time.
        self._thread.start()

    def use(self, options: Any, fd: int) -> None:
        """Point a dump request at it; the worker has the near end as its descriptor `fd`."""
        options.ps.fd = fd
        options.ps.port = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See that nothing of a dump stays in its connection while the block runs, and that it goes ahead of others.

        The dump ends when it has taken every page, the program standing still; beside busy processes it would get a
        fraction of a processor, and only one processor is left to it (processors.py).
        """
        set_priority(self.pid, URGENT)
        try:
            with uncorked(self._link.near):
                yield
        finally:
            set_priority(self.pid, NICE)

    def finish(self) -> None:
        """Return when nothing more will come into the folder; `confirm` says whether all of it is there.

        The server closes the connection when it has closed its files. Its end follows, and takes as long again.
        """
        poller = select.poll()
        poller.register(self._link.near, select.POLLRDHUP)
        if not poller.poll(FLUSH_TIMEOUT * 1000):
            raise MigrationError("the page server at the destination did not finish")

    def ask(self) -> None:
        """Begin to ask how it ended, which takes the keeper and this interpreter a millisecond."""
        self._has_time.set()

    def confirm(self) -> None:
        """See, after `finish` and `ask`, that the server has done its work."""
        self.ask()
        self._thread.join(FLUSH_TIMEOUT)
        if self._failed is not None:
            raise self._failed
        if not self._has_done_it:
            raise MigrationError("the page server at the destination did not say how it ended")

    def _wait(self) -> None:
        try:
            with assisting(), urgency():
                self._has_time.wait()
                self._has_done_it = self._helper.wait_for_end(FLUSH_TIMEOUT)
        except MigrationError as ex:
            self._failed = ex

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._helper.close()
        self._has_time.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._link.close()

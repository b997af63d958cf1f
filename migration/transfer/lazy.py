"""Post-copy: the program runs at its destination, and its pages follow, those that it touches first.

CRIU's dump worker keeps the frozen program's pages in pipes and serves them over a link; a lazy-pages daemon at the
destination fetches them and fills them in through userfaultfd. Building the copy takes some pages already, so
the worker serves from before the restore on, while the original is still there, frozen:

    dump (post-dump) → serve → restore → commit → the copy runs → the last page is there → the original is killed

The pipes hold the original's own pages, not copies of them. A process that ends has its kernel write into its memory:
0 where each thread's end is waited for, FUTEX_OWNER_DIED into robust mutexes, what asynchronous reads still bring. So
the original stays frozen until the copy has every page, and only then is killed. Once the copy has run it never runs
again, whatever happens.

Three things in CRIU 4.2 need care, since nobody must ever run twice, or run with wrong memory:

- When its peer is through or hangs up, a serving worker kills the original, or, asked to leave it running or because
  something failed, lets it run; a worker that is killed lets it run, too. None of that may happen at a time that is
  not ours. So CRIU is asked to leave it running, and it gets a SIGSTOP once it is frozen: whoever lets go of
  it, it stands still until `back_out` sends SIGCONT.
- After that the original and CRIU have its connections open until the last page, and their kernel would go on
  sending for them: so they are disconnected, without a word to the peers. Its listeners stop listening.
- When a daemon dies its userfaultfd closes, and the kernel fills what is missing with zeros. So a second descriptor
  is kept here, and the copy killed before it is closed. But that keeps a userfaultfd in the daemon's epoll set when
  the daemon has closed its own, which it does for each process that is complete, and what it then hears of it makes it
  spin or fail. So this goes only for a program of one process, whose daemon ends when that is complete. The copy of
  several is killed as soon as the daemon has ended.

After the commit a lost server or daemon is the end of the program: part of its memory was nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .. import preload, tree
from ..criu import Criu, Gate, Worker
from ..custody import Custody
from ..deadline import Deadline
from ..errors import CriuFailed, MemoryLost, MigrationError
from ..freezer import pin, unpin
from ..images import INVENTORY_IMAGE
from ..model import Host
from ..repair import disconnect, getfd, unrepair
from ..slowness import scaled
from .helper import Helper
from .home import LAZY_CONFIG
from .hugepages import collapse
from .link import Link, enlarge, uncork
from .missing import Missing, lazy_ranges, userfaultfds
from .pipelimit import large_pipes
from .relay import GRACE, listen
from .stalls import Asking, Watch

LAZY_LOG = "lazy-pages.log"
GATE_TIMEOUT = scaled(10.0)
# So long the program may be got ready for a short freeze; what is not done by then stays as it is.
COLLAPSE_SECONDS = 3.0
TURN = 0.02  # seconds between two looks at what is going on
STOPPED = (
    "its last pages came so slowly that it was stopped (SIGSTOP) and continued for them: its parent, a handler of "
    "SIGCONT and system calls that say EINTR then could notice"
)
END_TIMEOUT = scaled(5.0)  # in which an original that was killed is gone


class LazyPages:
    """The post-copy of one migration."""

    def __init__(
        self, criu: Criu, custody: Custody, pid: int, destination: Host, folder: Path, moved: Path, link: Link
    ) -> None:
        self._custody, self._pid, self._link = custody, pid, link
        self._moved = moved
        for end in (link.near, link.far):
            enlarge(end)
        collapse(tree.processes(pid), COLLAPSE_SECONDS)
        self._folder = folder / "lazy"
        self._folder.mkdir(mode=0o700)
        self._config = folder / LAZY_CONFIG
        # Over RPC, CRIU takes a page server's descriptor for all dumps but lazy ones.
        self._config.write_text("ps-socket 4\n")
        self._stack = ExitStack()
        self._stack.enter_context(large_pipes())
        self._gate = Gate(self._folder / INVENTORY_IMAGE)
        self._uffd = -1
        """The userfaultfd of a copy of one process."""
        self._serves = False
        self._stopped: list[int] = []
        self._end_source: Callable[[], None] | None = None
        """Kills the original, which stands still for its pages since the commit."""
        self._received = 0
        self.pages_done_ms: float | None = None
        self.warnings: list[str] = []
        """What the program could see of it, for the report."""
        self._began = 0.0
        try:
            self._daemon = Helper(
                criu,
                custody,
                destination,
                ["lazy-pages", "-D", str(self._folder), "-W", str(self._folder), "--page-server"],
                self._folder / LAZY_LOG,
                f"fetch the pages on {destination.name}",
                link.far,
                preload.environment(),  # lazypages.c
            )
            self._stack.callback(self._daemon.close)
            self._relay = self._start_relay(destination, moved)
            self._stack.callback(self._end_relay)
        except BaseException:
            self._stack.close()  # else the machine's pipes would stay as large as we wanted them
            raise

    def _start_relay(self, destination: Host, moved: Path) -> int:
        """Start what stands between the restore worker and the daemon."""
        argv = [sys.executable, "-m", "migration.transfer.relay", str(self._folder), str(GRACE)]
        with listen(str(moved)) as listener:
            return self._custody.start_criu(destination.pid, argv, listener)

    def _end_relay(self) -> None:
        self._custody.kill(self._relay, signal.SIGKILL)
        self._custody.wait(self._relay, 5)

    def adjust_dump(self, options: Any) -> None:
        """Make a dump keep its pages and serve them."""
        options.lazy_pages = True
        options.leave_running = True
        options.config_file = str(self._config)

    def wait_until_ready(self) -> None:
        """Return when the daemon waits for its images."""
        self._gate.wait_for(self._daemon.pid, GATE_TIMEOUT)

    def serve(self, dumper: Worker, moved: Path, inventory: bytes) -> None:
        """Let the dump worker serve, and the daemon know the image; the original stays frozen."""
        if not self._daemon.is_running():
            raise self._daemon.failure()
        dumper.answer(True)
        dumper.wait_for("status-ready")
        self._serves = True
        dumper.answer(True)
        for file in moved.glob("*.img"):
            if file.name != INVENTORY_IMAGE:
                os.link(file, self._folder / file.name)
        try:
            self._gate.open(inventory)
        except OSError as ex:
            raise self._daemon.failure() from ex
        self._daemon.wait_until_ready()

    def frozen(self, pids: Iterable[int]) -> None:
        """Make the original stand still even if its tracer dies."""
        self._stopped = list(pids)
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def end_watch(self, dumper: Worker) -> EndWatch:
        """Return what is to be seen to while the copy is built: without these two it would wait for its pages."""
        return EndWatch({dumper.pid: dumper.failure, self._daemon.pid: self._daemon.failure})

    def guard(self) -> None:
        """Once the copy is built: make sure that its missing pages never turn into zeros."""
        files = userfaultfds(self._daemon.pid)
        if not files or not self._daemon.is_running():
            raise self._daemon.failure()
        if len(files) == 1:
            self._uffd = getfd(self._daemon.pid, files[0].fd)

    def commit(self, dumper: Worker) -> None:
        """See that everything is there for a copy that is to run without its pages."""
        self._began = time.monotonic()
        if not self._daemon.is_running():
            raise self._daemon.failure()
        if not self._custody.is_running(dumper.pid):
            raise dumper.failure()
        # Both ends are corked, which would keep the last words back.
        uncork(self._link.near)
        uncork(self._link.far)
        self._link.near.close()  # from now on the daemon sees it when the worker is gone

    def running(self, pids: Iterable[int], kill: Callable[[], None]) -> None:
        """The copy runs: take the original its connections, and `kill` it when its last page is there."""
        self._end_source = kill
        disconnect(pids)

    def complete(self, copy: int, deadline: Deadline) -> None:
        """Wait until the last page is there; raises MemoryLost, the copy having been killed.

        After the deadline the program does nothing but wait for its pages.
        """
        if self.pages_done_ms is not None:
            return
        try:
            self._wait_for_pages(copy, deadline)
        except MigrationError as ex:
            if self._uffd >= 0 and not tree.is_running(copy):  # it waited for its pages until its own end
                self._end_fetching()
                return
            self._kill(copy)
            self._daemon.close()  # so that the worker at the other end hears that it is over, and lets go
            self.release_source()
            raise MemoryLost(
                f"{ex}; part of the program's memory was still at the source and is lost, so it was ended"
            ) from ex
        self._end_fetching()

    def _end_fetching(self) -> None:
        """Let go of a copy that needs no page any more."""
        self._daemon.close()
        self._close_uffd()  # what is missing now is empty: the kernel may fill it in
        self.pages_done_ms = round((time.monotonic() - self._began) * 1000, 3)
        self.release_source()

    def release_source(self) -> None:
        """End the original, if it has been kept for its pages; twice is once."""
        if self._end_source is None:
            return
        for pid in self._stopped:
            give_way(pid)
        with contextlib.suppress(ProcessLookupError):
            self._end_source()
        self._end_source = None
        self._custody.wait_for_death(self._pid, END_TIMEOUT)  # it has ports that a way home needs

    def _wait_for_pages(self, copy: int, deadline: Deadline) -> None:
        watch = self._watch(Missing(lazy_ranges(self._moved)), copy)
        while not self._daemon.wait_for_end(TURN):
            if not tree.is_running(copy):  # it has come to an end, and needs nothing any more
                return
            if self._uffd >= 0 and len(userfaultfds(self._daemon.pid)) > 1:
                self._close_uffd()  # it has forked
            watch.look()
            if watch.is_stuck or deadline.is_over():
                self._ask_for_all(copy)
                return

    def _watch(self, missing: Missing, copy: int) -> Watch:
        return Watch(missing, copy, self._link.received)

    def _ask_for_all(self, copy: int) -> None:
        """Let the program stand still and ask for every page that it has not got, which the daemon cannot refuse."""
        self.warnings.append(STOPPED)
        missing = Missing(lazy_ranges(self._moved))
        pin(tree.processes(copy))
        try:
            asking = Asking(lambda: missing.touch_all(tree.processes(copy)))
            watch = self._watch(missing, copy)
            while not self._daemon.wait_for_end(TURN):
                if asking.has_all:
                    return
                if asking.is_over:  # one process has forked another meanwhile
                    asking = Asking(lambda: missing.touch_all(tree.processes(copy)))
                watch.look()
        finally:
            unpin(copy)

    def _kill(self, copy: int) -> None:
        self._custody.kill(copy, signal.SIGKILL)
        self._custody.wait(copy, 5)

    @property
    def received(self) -> int:
        """Return how many bytes have arrived over the link."""
        with contextlib.suppress(OSError):  # it is closed
            self._received = self._link.received()
        return self._received

    def stand_down(self) -> None:
        """End the daemon, and with it the serving."""
        self._daemon.close()
        assert self.received >= 0
        self._link.close()

    def back_out(self, dumper: Worker, pids: Iterable[int]) -> bool:
        """Before the commit: let the original run again, wherever CRIU stands."""
        if not self._stopped:
            return False
        if not self._serves and self._custody.is_running(dumper.pid):
            dumper.answer(False)
        # It hangs up on us in any case: what it would say does not matter.
        dumper.close()
        unrepair(pids)
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()
        return True

    def close(self) -> None:
        """End the daemon and an original that has been committed, and let go of the rest."""
        self.release_source()
        self.stand_down()
        self._stack.close()
        self._close_uffd()

    def _close_uffd(self) -> None:
        if self._uffd >= 0:
            os.close(self._uffd)
        self._uffd = -1


class EndWatch:
    """Processes that must not end while something else is waited for; a descriptor that can be polled."""

    def __init__(self, failures: Mapping[int, Callable[[], CriuFailed]]) -> None:
        """Watch some, with what says why each has ended."""
        self._poll = select.epoll()
        self._failures: dict[int, Callable[[], CriuFailed]] = {}
        for pid, failure in failures.items():
            try:
                process = os.pidfd_open(pid)
            except ProcessLookupError as ex:
                self.close()
                raise failure() from ex
            self._failures[process] = failure
            self._poll.register(process, select.EPOLLIN)

    def fileno(self) -> int:
        """Return what is readable when one has ended."""
        return self._poll.fileno()

    def go_on(self) -> None:
        """Say which one has ended; raises CriuFailed."""
        for process, _ in self._poll.poll(0):
            raise self._failures[process]()

    def close(self) -> None:
        """End watching."""
        self._poll.close()
        for process in self._failures:
            os.close(process)

    def __enter__(self) -> EndWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fetches_pages(pid: int) -> bool:
    """Say whether a process is a lazy-pages daemon with a program that waits for pages."""
    return bool(userfaultfds(pid))


def give_way(pid: int) -> None:
    """Let a process that is about to be killed free its memory when nobody else wants the processor.

    Freeing a GiB takes a tenth of a second, just when the copy is to run.
    """
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))

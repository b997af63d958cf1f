"""What both ends of a migration saw, as capture files: ID-source-h2.pcap and ID-destination-h3.pcap.

Captured in this process, on each host's interface, from before anything is asked of the program or the network until
the migration is over. Whatever goes wrong with that is logged, and none of the migration's business.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataplane.switch.capture import Capture, PcapFile, Tap, open_socket
from migration.namespaces import in_netns

LOG = logging.getLogger(__name__)

LIMIT = 256 << 20  # bytes of one file


@dataclass(frozen=True)
class End:
    """One end of a migration: its part, its host, a process in the host's network, the interface."""

    part: str
    host: str
    pid: int
    interface: str


@contextmanager
def captured(folder: Path | None, migration: str, *ends: End) -> Iterator[None]:
    """Capture at the ends of a migration while the block runs; without a folder just run it."""
    with ExitStack() as stack:
        if folder is not None:
            taps = [tap for end in ends if (tap := _tap(folder, migration, end)) is not None]
            stack.enter_context(closing(Capture(taps)))
        yield


def _tap(folder: Path, migration: str, end: End) -> Tap | None:
    path = folder / f"{migration}-{end.part}-{end.host}.pcap"
    try:
        packets = in_netns(end.pid, lambda: open_socket(end.interface))
        try:
            file = PcapFile(path, LIMIT)
        except OSError:
            packets.close()
            raise
    except OSError as ex:
        LOG.warning("%s is not written: %s", path, ex)
        return None
    return Tap(packets, file, file)

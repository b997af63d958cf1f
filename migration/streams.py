"""How far each TCP connection of a checkpoint had sent, read from its tcp-stream-*.img while the program stands still.

The file is one message, then the connection's queues, which may be megabytes: only the message is read. Of the
folder a thousand such files cost a thousand opens, so they are opened relative to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .images import as_sent, spoken, tcp_stream_image
from .inet import InetSocket
from .steering import IpProtocol, Spoken

# Magics, length and message take about 100 bytes.
_ENOUGH = 512


def inner_streams(
    images: Path, sockets: Iterable[InetSocket], own: IPv4Address, tcp_stream: Any
) -> dict[str, bytes]:
    """Return, by name, the images of connections within the host that must be changed before a restore.

    CRIU sends on what a connection had not sent yet, as soon as its socket is there. If the peer is another socket of
    the same restore, and not there yet, the kernel answers with a reset. So what waits in the queue of such a
    connection counts as sent, and is sent again.
    """
    found = {}
    for socket in sockets:
        is_inner = socket.remote.is_loopback or socket.remote == own
        if not is_inner or socket.protocol != IpProtocol.TCP or not socket.is_connection:
            continue
        name = tcp_stream_image(socket.inode)
        path = images / name
        if path.exists() and (image := as_sent(path.read_bytes(), tcp_stream)) is not None:
            found[name] = image
    return found


def sent_by_inode(images: Path, sockets: Iterable[InetSocket], tcp_stream: Any) -> dict[int, Spoken]:
    """Return, by inode, how far the image counts a connection's bytes as sent."""
    found = {}
    folder = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for socket in sockets:
            if socket.protocol != IpProtocol.TCP or not socket.is_connection:
                continue
            try:
                fd = os.open(tcp_stream_image(socket.inode), os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                continue
            try:
                found[socket.inode] = spoken(os.read(fd, _ENOUGH), tcp_stream)
            finally:
                os.close(fd)
    finally:
        os.close(folder)
    return found

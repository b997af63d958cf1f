"""A server on port 7000 whose connections stay in the state that their first line names, until a file "go" is there.

It then does what is left to do in that state, and writes what it has read, or how it ended, into a file named
after the connection's first line.
"""

import hashlib
import socket
import sys
import threading
import time
from pathlib import Path

folder = Path(sys.argv[1])


def wait_for_go() -> None:
    while not (folder / "go").exists():
        time.sleep(0.01)


def fill(connection: socket.socket) -> bytes:
    """Write until the peer's window and our queue are full; return the hash of what was written."""
    sent = hashlib.sha256()
    block = bytes(range(256)) * 64
    connection.settimeout(0.3)
    try:
        while True:
            sent.update(block[: connection.send(block)])
    except TimeoutError:
        connection.settimeout(None)
    return sent.hexdigest().encode()


def read_all(connection: socket.socket) -> bytes:
    """Read to the end; return the hash of what there was."""
    read = hashlib.sha256()
    while data := connection.recv(1 << 16):
        read.update(data)
    return read.hexdigest().encode()


def serve(connection: socket.socket, name: str) -> bytes:
    match name:
        case "close_wait":  # the peer has said its last word
            read = read_all(connection)
            wait_for_go()
            connection.sendall(b"late" * 100_000)
            return read
        case "fin_wait2":  # we have
            connection.shutdown(socket.SHUT_WR)
            wait_for_go()
            return read_all(connection)
        case "fin_wait1" | "closing":  # we have, and the peer has not taken it all
            sent = fill(connection)
            connection.shutdown(socket.SHUT_WR)
            (folder / f"{name}.filled").touch()
            wait_for_go()
            return sent + read_all(connection)
        case "last_ack":  # both have
            sent = fill(connection)
            read = read_all(connection)
            connection.shutdown(socket.SHUT_WR)
            (folder / f"{name}.filled").touch()
            wait_for_go()
            return sent + read
        case "send_queue":
            sent = fill(connection)
            (folder / f"{name}.filled").touch()
            wait_for_go()
            return sent
        case "receive_queue":
            wait_for_go()
            return read_all(connection)
    raise ValueError(name)


def accepted(connection: socket.socket) -> None:
    name = b""
    while not name.endswith(b"\n"):
        name += connection.recv(1)
    result = serve(connection, name.decode().strip())
    connection.close()
    part = folder / f"{name.decode().strip()}.part"
    part.write_bytes(result)
    part.rename(part.with_suffix(".result"))


with socket.create_server(("0.0.0.0", 7000)) as listener:
    print("ok 1", flush=True)
    while True:
        threading.Thread(target=accepted, args=(listener.accept()[0],), daemon=True).start()

"""Either end of a flow of numbered datagrams.

`count PORT` says what it got when it is asked; `send ADDRESS PORT` sends without end; `try ADDRESS PORT` does without
ever waiting, until its input ends, and says how many it has sent and how often there was no room.
"""

import itertools
import select
import socket
import struct
import sys
import time

NUMBER = struct.Struct("!I")


def count(port: int) -> None:
    """Count datagrams and those that come behind a later one; an empty datagram is answered with both."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    print("ready", flush=True)
    got = overtaken = last = 0
    while True:
        data, peer = sock.recvfrom(2048)
        if not data:
            sock.sendto(struct.pack("!II", got, overtaken), peer)
            continue
        (number,) = NUMBER.unpack_from(data)
        overtaken += number <= last
        got, last = got + 1, number


def send(address: str, port: int) -> None:
    """Send numbered datagrams, some ten thousand a second."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    print("ready", flush=True)
    for number in itertools.count(1):
        sock.send(NUMBER.pack(number).ljust(200))
        if number % 10 == 0:
            time.sleep(0.001)


def try_to_send(address: str, port: int) -> None:
    """Send numbered datagrams as fast as a receiver takes them, and lose those that there is no room for."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((address, port))
    sock.setblocking(False)
    sent = refused = 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        for _ in range(10):
            try:
                sock.send(NUMBER.pack(sent + 1).ljust(600))
                sent += 1
            except BlockingIOError:
                refused += 1
    print(sent, refused, flush=True)


if sys.argv[1] == "count":
    count(int(sys.argv[2]))
elif sys.argv[1] == "send":
    send(sys.argv[2], int(sys.argv[3]))
else:
    try_to_send(sys.argv[2], int(sys.argv[3]))

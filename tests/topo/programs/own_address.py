"""Says what it sees of its own address, in one line of JSON every 100 ms: own_address.py ADDRESS."""

import json
import socket
import sys
import time

ME = sys.argv[1]
server = socket.create_server((ME, 7300))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((ME, 5300))
datagrams.settimeout(3)
dual = socket.create_server(("::", 7301), family=socket.AF_INET6, dualstack_ipv6=True)
inner = socket.create_connection((ME, 7300))
accepted, _ = server.accept()
mapped = socket.create_connection((ME, 7301))
mapped_accepted, _ = dual.accept()
ports = [inner.getsockname()[1], mapped.getsockname()[1]]
fresh = 8000


def bind() -> str:
    """Open a server at the own address, and call it there."""
    global fresh
    fresh += 1
    with (
        socket.create_server((ME, fresh)) as listener,
        socket.create_connection((ME, fresh), 3) as made,
        listener.accept()[0] as taken,
    ):
        made.sendall(b"bound")
        return taken.recv(10).decode()


def call() -> list[object]:
    """Call the server that was there from the beginning."""
    with socket.create_connection((ME, 7300), 3) as made, server.accept()[0] as taken:
        made.sendall(b"called")
        return [taken.recv(10).decode(), taken.getsockname(), made.getpeername()]


def send() -> list[object]:
    """Send a datagram to oneself, and be answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(3)
        made.sendto(b"sent", (ME, 5300))
        said, sender = datagrams.recvfrom(10)
        datagrams.sendto(said, sender)
        answer, answerer = made.recvfrom(10)
        return [answer.decode(), answerer]


while True:
    seen: dict[str, object] = {
        "bound": [one.getsockname()[:2] for one in (server, datagrams, accepted, mapped_accepted)],
        "mss": server.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG),
        "inner": [one.getsockname()[1] for one in (inner, mapped)] == ports,
        "ends": [inner.getsockname() == accepted.getpeername(), inner.getpeername()],
        "mapped": [mapped_accepted.getpeername()[:2] == ("::ffff:" + ME, ports[1]), mapped.getsockname()[0]],
    }
    for what in (bind, call, send):
        try:
            seen[what.__name__] = what()
        except OSError as ex:
            seen[what.__name__] = str(ex)
    inner.sendall(b"x")
    mapped.sendall(b"x")
    seen["alive"] = [accepted.recv(1) == b"x", mapped_accepted.recv(1) == b"x"]
    print(json.dumps(seen), flush=True)
    time.sleep(0.1)

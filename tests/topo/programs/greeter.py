"""Says its name to whoever connects or sends a datagram: greeter.py NAME PORT… (PORT/udp)."""

import socket
import sys
import threading


def serve_tcp(listener: socket.socket) -> None:
    """Greet, and close."""
    while True:
        connection, _ = listener.accept()
        connection.sendall(sys.argv[1].encode())
        connection.close()


def serve_udp(receiver: socket.socket) -> None:
    """Greet every datagram."""
    while True:
        _, sender = receiver.recvfrom(9000)
        receiver.sendto(sys.argv[1].encode(), sender)


threads = []
for place in sys.argv[2:]:
    port, _, kind = place.partition("/")
    if kind == "udp":
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("0.0.0.0", int(port)))
        threads.append(threading.Thread(target=serve_udp, args=(receiver,)))
    else:
        threads.append(threading.Thread(target=serve_tcp, args=(socket.create_server(("", int(port))),)))
for thread in threads:
    thread.start()
print("listens", flush=True)

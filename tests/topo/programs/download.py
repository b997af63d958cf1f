"""A server of downloads: reads how many bytes are wanted, writes them into the socket at once, and closes."""

import socket
import sys
import threading

SO_SNDBUFFORCE = 32


def serve(connection: socket.socket) -> None:
    """Leave everything to the kernel."""
    wanted = int(connection.recv(100))
    connection.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
    connection.sendall((bytes(range(256)) * (wanted // 256 + 1))[:wanted])
    connection.close()


listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=128)
ballast = bytes(int(sys.argv[2]) << 20) if len(sys.argv) > 2 else b""
print("listens", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

"""A server whose listener has no SO_REUSEADDR: strict.py PORT [FILE]. It writes 200 kB, and closes at once.

With a file it keeps that locked, so it has to end where it was before its copy is built.
"""

import fcntl
import os
import socket
import sys

SO_SNDBUFFORCE = 32
locked = [os.open(name, os.O_RDWR | os.O_CREAT) for name in sys.argv[2:]]
for file in locked:
    fcntl.lockf(file, fcntl.LOCK_EX)
listener = socket.socket()
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen()
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 20)
    connection.sendall(b"x" * 200_000)
    connection.close()

"""Talks over connections, and prints a line now and then; "wrong" if anything is lost, doubled or cut.

talker.py serve PORT | ask ADDRESS PORT | self ADDRESS PORT (opens one more connection to itself after every few lines)
"""

import itertools
import socket
import sys
import threading
import time


def serve(listener: socket.socket) -> None:
    """Give everybody back what they say."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    """Give back what comes."""
    while said := connection.recv(4096):
        connection.sendall(said)


def ask(connections: list[socket.socket], number: int) -> None:
    """Say a number on every connection and hear it."""
    for connection in connections:
        said = b"%08d" % number
        connection.sendall(said)
        heard = b""
        while len(heard) < len(said):
            part = connection.recv(len(said) - len(heard))
            if not part:
                print("wrong: closed", flush=True)
                sys.exit(1)
            heard += part
        if heard != said:
            print("wrong:", heard, flush=True)


def main() -> None:
    """Talk."""
    kind, *address = sys.argv[1:]
    if kind in ("serve", "self"):
        listener = socket.create_server(("", int(address[-1])))
        if kind == "serve":
            serve(listener)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
    target = (address[0], int(address[1]))
    connections = [socket.create_connection(target)]
    for number in itertools.count():
        ask(connections, number)
        if number % 5 == 0:
            print(number, len(connections), flush=True)
        if number % 20 == 0 and kind == "self" and len(connections) < 12:
            connections.append(socket.create_connection(target))
        time.sleep(0.01)


try:
    main()
except OSError as ex:
    print("wrong:", ex, flush=True)
    raise

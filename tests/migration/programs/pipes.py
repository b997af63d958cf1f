"""Pipes, FIFOs and UNIX sockets: with data in them, between parent and child, and with descriptors under way."""

import os
import socket
import sys
from pathlib import Path

from rounds import rounds

folder = Path(sys.argv[1])
full_r, full_w = os.pipe2(os.O_NONBLOCK)
full = os.write(full_w, b"f" * (1 << 20))
fifo = folder / "fifo"
os.mkfifo(fifo)
fifo_rw = os.open(fifo, os.O_RDWR)
os.write(fifo_rw, b"first")

stream, stream_child = socket.socketpair()
packets, packets_child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
dgram_path, abstract = str(folder / "dgram"), f"\0{os.getpid()}-{folder.name}"
dgram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
dgram.bind(dgram_path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(str(folder / "listener"))
listener.listen()
hidden = socket.socket(socket.AF_UNIX)
hidden.bind(abstract)
hidden.listen()

if os.fork() == 0:  # echoes what comes over the sockets
    while True:
        stream_child.sendall(stream_child.recv(100))
        packets_child.send(packets_child.recv(100))

waiting, unread = socket.socketpair()
waiting.sendall(b"unread")
given, taken = socket.socketpair()
with (folder / "given").open("w+") as file:  # under way between two sockets, open nowhere else
    file.write("given away")
    file.flush()
    socket.send_fds(given, [b"fd"], [file.fileno()])


def check(number: int) -> None:
    try:
        os.write(full_w, b"more")
        raise AssertionError("the full pipe has room")
    except BlockingIOError:
        pass
    os.write(fifo_rw, b"%d" % number)
    assert os.read(fifo_rw, 100) == (b"first1" if number == 1 else b"%d" % number)
    for sock in (stream, packets):
        sock.send(b"%d" % number)
        assert sock.recv(100) == b"%d" % number
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"%d" % number, dgram_path)
    assert dgram.recv(100) == b"%d" % number
    for name, accepting in ((str(folder / "listener"), listener), (abstract, hidden)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(name)
            accepting.accept()[0].close()
    assert unread.recv(100, socket.MSG_PEEK) == b"unread"
    if number % 5 == 0:
        data, fds, _, _ = socket.recv_fds(taken, 10, 1)
        assert data == b"fd"
        assert os.pread(fds[0], 100, 0) == b"given away"
        socket.send_fds(given, [b"fd"], fds)
        os.close(fds[0])


rounds(check)

"""Waits for a file FLAG, writes one line to OUT, and ends with STATUS. It has MEBIBYTES, and so many children."""

import os
import sys
import time
from pathlib import Path

flag, out, status, mebibytes, children = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
memory = bytearray(mebibytes << 20)
for at in range(0, len(memory), 4096):
    memory[at] = at % 251 + 1
for _ in range(children):
    if os.fork() == 0:
        while True:
            time.sleep(0.01)
print("ready", flush=True)
while not Path(flag).exists():
    time.sleep(0.0005)
log = os.open(out, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, b"order shipped\n")
os._exit(status)

"""Counts in a thread; the main thread has ended (pthread_exit(3)), a zombie that the kernel keeps for the other."""

import ctypes
import threading
import time


def count() -> None:
    """Go on forever."""
    number = 0
    while True:
        number += 1
        print(number, flush=True)
        time.sleep(0.02)


threading.Thread(target=count).start()
ctypes.CDLL(None).pthread_exit(None)

"""Mininet nodes and networks: P4 switches, hosts, the network API, the CLI, and `lb.py`, the main program."""

import contextlib
import logging

from topo import paths

paths.keep_checkout_removable()

# Importing Mininet makes every logger of the process, whoever asks for it later, print as Mininet's own does.
with contextlib.suppress(ImportError):  # the doctor says what is missing
    import mininet.log  # noqa: F401
logging.setLoggerClass(logging.Logger)

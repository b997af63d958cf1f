"""Mininet nodes and networks: P4 switches, hosts, the network API, the CLI, and `lb.py`, the main program."""

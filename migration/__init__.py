"""Carry a running program to another host: checkpoint, rewrite, transfer, restore, or roll back.

Knows processes, CRIU and images; knows nothing of P4 or Mininet. What it needs of the network it asks of a
`steering.Steering`, which the caller brings.
"""

"""Maglev's consistent table: which backend serves which slot of a service.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4: every
backend has a permutation of the slots, given by an offset and a skip; the backends take turns, each taking the
next slot of its own permutation that is still free. A backend of weight w takes w turns where one of weight 1
takes one. When a backend comes or goes, nearly all slots of the others stay.

The permutations come from a backend's id, not from its address: a backend that moves keeps its slots. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

SLOTS = 1021
"""As in load_balancer.p4 (MAGLEV_SLOTS): prime, so that every skip visits every slot."""

MAX_WEIGHT = 100


def permutation(backend: int, slots: int = SLOTS) -> tuple[int, int]:
    """Return a backend's (offset, skip)."""
    digest = blake2b(backend.to_bytes(8, "big"), digest_size=16).digest()
    offset = int.from_bytes(digest[:8], "big") % slots
    skip = int.from_bytes(digest[8:], "big") % (slots - 1) + 1
    return offset, skip


def build(weights: Mapping[int, int], slots: int = SLOTS) -> list[int]:
    """Return the backend of every slot, or an empty list if no backend has a positive weight."""
    backends = sorted(backend for backend, weight in weights.items() if weight > 0)
    if not backends:
        return []
    table = [0] * slots
    walks = {backend: permutation(backend, slots) for backend in backends}
    step = dict.fromkeys(backends, 0)
    heaviest = max(weights[backend] for backend in backends)
    credit = dict.fromkeys(backends, 0)
    free = slots
    while free:
        for backend in backends:
            credit[backend] += weights[backend]
            if credit[backend] < heaviest:
                continue
            credit[backend] -= heaviest
            offset, skip = walks[backend]
            slot = (offset + step[backend] * skip) % slots
            while table[slot]:
                step[backend] += 1
                slot = (offset + step[backend] * skip) % slots
            table[slot] = backend
            step[backend] += 1
            free -= 1
            if not free:
                break
    return table

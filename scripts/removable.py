#!/usr/bin/env python3
"""Print which of the named packages can be removed without taking anything along: nothing that stays depends on them.

    dpkg-query -W -f="$FORMAT" | scripts/removable.py NAME…      FORMAT: see below

Asking apt-get for every package by itself takes minutes. Standard library only.
A dependency with alternatives is met if one of them stays.
"""

import re
import sys

FORMAT = r"${db:Status-Status}\t${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n"


def names_of(relation):
    # type: (str) -> list[str]
    """Return the names in `a (>= 1) | b:any [amd64]`."""
    found = (re.match(r"\s*([A-Za-z0-9][A-Za-z0-9+.-]*)", part) for part in relation.split("|"))
    return [match.group(1) for match in found if match]


def removable(listing, wanted):
    # type: (str, list[str]) -> list[str]
    """Return those of the wanted packages that nothing needs but other such packages; see above."""
    provided = {}  # type: dict[str, set[str]]
    needs = {}  # type: dict[str, list[list[str]]]
    for line in listing.splitlines():
        status, name, provides, depends = line.split("\t")
        if status != "installed":
            continue
        for what in [name, *(n for relation in provides.split(",") for n in names_of(relation))]:
            provided.setdefault(what, set()).add(name)
        needs[name] = [names for relation in depends.split(",") if (names := names_of(relation))]
    candidates = {name.partition(":")[0] for name in wanted}
    stays = [name for name in needs if name not in candidates]
    kept = set(stays)
    while stays:
        for alternatives in needs[stays.pop()]:
            providers = {package for name in alternatives for package in provided.get(name, ())}
            if not providers & kept:
                kept |= providers
                stays += providers
    return [name for name in wanted if name.partition(":")[0] not in kept]


if __name__ == "__main__":
    print("\n".join(removable(sys.stdin.read(), sys.argv[1:])))

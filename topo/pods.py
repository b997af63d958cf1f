#!/usr/bin/env python3
"""Pods that move: a network whose hosts are pods, Redis and a backend in one of them, a client outside.

    sudo python3 topo/pods.py [--engine docker|podman] [--count N] [any option of topo/lb.py]

It is `lb.py --hosts ENGINE --demo pod`; the CLI comes after the scenario. Works under any python, as lb.py does.
"""

import sys

from lb import use_environment  # type: ignore[import-not-found]  # beside this file


def translate(words):
    # type: (list[str]) -> list[str]
    """Return lb.py's words for ours."""
    own = [
        "--hosts" + word[len("--engine") :] if word.split("=")[0] == "--engine" else word for word in words
    ]
    return ["--demo", "pod", "--hosts", "podman"] + own  # noqa: RUF005 - the last --hosts counts


if __name__ == "__main__":
    use_environment(__file__)
    from topo.main import main

    sys.exit(main(translate(sys.argv[1:]), "pods.py"))

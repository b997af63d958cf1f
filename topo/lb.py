#!/usr/bin/env python3
"""p4ferry's main program: build the network, start controller and apps, run a demo, give the Mininet CLI.

    sudo python3 topo/lb.py [--target ebpf|bmv2] [--topology single|triangle] [--hosts process|runc|docker|podman]
                           [--demo echo|redis|pod] [--count N] [--script FILE] [--json FILE]

Works from any directory and under any python 3: it starts itself again under the project's environment, and in a
checkout that is not root's by way of scripts/as-root, so that its owner can remove what is made there.
"""

import os
import signal
import sys

CHECKOUT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - any python


def _owner():
    # type: () -> int
    """Return who owns the checkout."""
    return os.stat(CHECKOUT).st_uid  # noqa: PTH116


def use_environment(script):
    # type: (str) -> None
    """Start a script again under the project's environment unless this is it; any python 3 must be able to run this."""
    environment = os.path.join(CHECKOUT, ".venv")  # noqa: PTH118
    if os.path.realpath(sys.prefix) != os.path.realpath(environment):
        python = os.path.join(environment, "bin", "python")  # noqa: PTH118
        if not os.access(python, os.X_OK):
            sys.exit("p4ferry is not set up: type `make setup` in " + CHECKOUT)
        command = [python, os.path.realpath(script)] + sys.argv[1:]  # noqa: RUF005
        if os.geteuid() == 0 and _owner() != 0 and "PYTHONDONTWRITEBYTECODE" not in os.environ:
            command[:0] = [python, "-B", os.path.join(CHECKOUT, "scripts", "as-root")]  # noqa: PTH118
        os.execv(python, command)
    here = os.path.join(CHECKOUT, "topo")  # noqa: PTH118
    sys.path[:] = [CHECKOUT] + [p for p in sys.path if os.path.realpath(p or ".") != here]


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` nothing is there that would have to go
    use_environment(__file__)
    from topo.main import main

    sys.exit(main(sys.argv[1:]))

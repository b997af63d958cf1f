"""`make bench`, `python -m bench [NAME [OPTIONS]]`: run one benchmark, or all with their default options."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "throughput": "one TCP stream through the load balancer, against a hand-written program",
    "gap": "the pause that a client sees, hold on and off",
    "hold": "packets held and let go, in the switch and at the controller",
    "redis": "the pause of Redis: empty, under 20,000 operations a second, and with 1 GiB in lazy mode",
    "affinity": "connections that survive changes of the pool, against selection by hash modulo N",
    "p4runtime": "inserts, deletes and reads over gRPC into the kernel",
    "timeline": "where every millisecond of a migration goes, as a picture",
    "scale": "the pause with many connections, and of programs that move at once",
    "crowd": "how a move grows with the threads and processes of a program",
    "soak": "many migrations over four programs: nothing breaks, nothing is left",
    "start": "P4 compiler, switch and testbed: how long until they are there",
}


def main() -> int:
    """Run what the command line names."""
    names = sys.argv[1:2] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            print(f"bench: there is no benchmark {name}; there are:", file=sys.stderr)
            for known, what in BENCHMARKS.items():
                print(f"  {known:<12}{what}", file=sys.stderr)
            return 2
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        importlib.import_module(f"bench.{name}").main(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())

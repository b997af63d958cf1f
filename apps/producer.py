#!/usr/bin/env python3
"""A producer: increments a counter in Redis at a steady rate over one connection, and checks every reply.

    producer.py --connect HOST:PORT [--key counter] [--rate 1000] [--duration S | --requests N]
                [--json FILE|-] [--status FILE]

Without --duration and --requests it goes on until SIGINT or SIGTERM. As the only writer of its key it must be told
each value once, one more than the last: the acknowledged values are kept as runs [first, last], so one run means that
none was lost, doubled, or out of order. The connection is never made anew. It leaves with status 0 if nothing was
wrong. --status names a file that holds the result so far, replaced ten times a second.
Needs Debian's python3-redis.
"""

from __future__ import annotations

import json
import os
import sys

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120

from apps.echo.client import Unreachable
from apps.kept.connection import KeptRedis, RedisError
from apps.kept.options import Status, Until, client_parser
from apps.kept.watch import Watch, clock


class Producer:
    """Increments, and remembers what it was told."""

    def __init__(self, redis: KeptRedis, key: str, rate: float) -> None:
        self.watch = Watch(redis.sock, rate)
        self.runs: list[list[int]] = []
        self._redis = redis
        self._key = key

    def run(self, until: Until, status: Status) -> None:
        """Increment until told to stop, or until the connection is lost."""
        watch = self.watch
        while not until.is_over(now := clock(), watch.requests):
            status.maybe(now)
            watch.wait()
            watch.request()
            try:
                value = int(self._redis.client.incr(self._key))
            except (RedisError, OSError, ValueError) as ex:
                watch.fail(ex)
                return
            watch.reply()
            self._note(value)

    def _note(self, value: int) -> None:
        if self.runs and value == self.runs[-1][1] + 1:
            self.runs[-1][1] = value
        else:
            self.runs.append([value, value])

    @property
    def is_clean(self) -> bool:
        """Say whether every reply was as it had to be."""
        return len(self.runs) <= 1 and not self.watch.errors and not self._redis.reconnects

    def result(self, done: bool) -> str:
        """Sum up as JSON."""
        return json.dumps(
            {
                "mode": "producer",
                "pid": os.getpid(),
                "key": self._key,
                "acknowledged": sum(last - first + 1 for first, last in self.runs),
                "last": self.runs[-1][1] if self.runs else None,
                "runs": self.runs[-100:],
                "wrong_replies": max(0, len(self.runs) - 1),
                "reconnects": self._redis.reconnects,
                **self.watch.result(done),
            }
        )


def main() -> int:
    """Do what the command line asks."""
    parser = client_parser("producer.py", "increment a counter in Redis, over one connection", rate=1000)
    parser.add_argument("--key", default="counter", help="the key to increment (counter)")
    options = parser.parse_args()
    until = Until(clock(), options.duration, options.requests)
    host, port = options.connect
    try:
        redis = KeptRedis(host, port, options.wait)
    except Unreachable as ex:
        print(f"producer: {ex}", file=sys.stderr)
        return 1
    producer = Producer(redis, options.key, options.rate)
    status = Status(options.status, options.json, producer.result)
    producer.run(until, status)
    status.finish()
    for error in producer.watch.errors:
        print(f"producer: {error}", file=sys.stderr)
    return 0 if producer.is_clean else 2


if __name__ == "__main__":
    sys.exit(main())

"""One TCP stream through the load balancer, against the hand-written program that does the same rewriting.

Both networks stand at the same time; their runs alternate, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence

from bench.baseline.network import CLIENT, SERVER, VIP, HandWrittenNetwork
from bench.statistics import machine, median
from topo.testbed import LoadBalancerNetwork, Testbed

PORT = 5201
CONGESTION = "cubic"  # bbr, some kernels' default, paces itself and measures its own pacing


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench throughput")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args(arguments)
    ours: list[float] = []
    theirs: list[float] = []
    with HandWrittenNetwork(PORT), Testbed(LoadBalancerNetwork(hosts=3)) as net:
        net.run("iperf", host="h2", argv=["iperf3", "-s", "-p", str(PORT)], service=f"{VIP}:{PORT}")
        client = ["nsenter", "--target", str(net.host("h1").pid), "--net"]
        yardstick = ["ip", "netns", "exec", CLIENT]
        with subprocess.Popen(
            ["ip", "netns", "exec", SERVER, "iperf3", "-s", "-p", str(PORT)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server:
            try:
                for _ in range(options.runs):
                    ours.append(stream(client, options.seconds))
                    theirs.append(stream(yardstick, options.seconds))
            finally:
                server.terminate()
    result = {
        "runs": options.runs,
        "p4ferry_gbit": [round(v, 2) for v in ours],
        "hand_written_gbit": [round(v, 2) for v in theirs],
        "p4ferry_median_gbit": round(median(ours), 2),
        "hand_written_median_gbit": round(median(theirs), 2),
        "ratio": round(median(ours) / median(theirs), 3),
        "flags": f"iperf3, 1 stream, {options.seconds} s a run, {CONGESTION}, MTU 1500, offloads on",
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


def stream(enter: Sequence[str], seconds: int) -> float:
    """Run one iperf3 client; returns Gbit/s as the receiver counted them."""
    # fmt: off
    command = [*enter, "iperf3", "--client", VIP, "--port", str(PORT), "--time", str(seconds),
               "--congestion", CONGESTION, "--connect-timeout", "5000", "--json"]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    report = json.loads(done.stdout)
    if done.returncode != 0 or "error" in report:
        raise RuntimeError(f"iperf3: {report.get('error', done.stderr)}")
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e9

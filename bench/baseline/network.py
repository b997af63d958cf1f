"""A client and a server joined by the hand-written tc program: the yardstick's own little network."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("rewrite.c")
CLIENT, SERVER = "p4f-base-c", "p4f-base-s"  # namespaces
CLIENT_IF, SERVER_IF = "p4fbase-c", "p4fbase-s"  # the switch's ends, in the root namespace
CLIENT_MAC, SERVER_MAC, OWN_MAC = "08:00:00:00:01:01", "08:00:00:00:02:02", "08:00:00:00:00:fe"
VIP = "10.0.0.100"


class HandWrittenNetwork:
    """Two namespaces and the program between them; a context manager."""

    def __init__(self, port: int) -> None:
        """Take the TCP port that is rewritten."""
        self.port = port

    def __enter__(self) -> HandWrittenNetwork:
        try:
            self._hosts()
            self._program()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove links and namespaces (a namespace's links would go too, but only some time later)."""
        for name in (CLIENT_IF, SERVER_IF):
            subprocess.run(["ip", "link", "del", name], stderr=subprocess.DEVNULL, check=False)
        for name in (CLIENT, SERVER):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)

    def _hosts(self) -> None:
        for name, link, mac, number in (
            (CLIENT, CLIENT_IF, CLIENT_MAC, 1),
            (SERVER, SERVER_IF, SERVER_MAC, 2),
        ):
            inside = ["ip", "-n", name]
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", link, "up")
            _run(*inside, "link", "set", "eth0", "address", mac, "up")
            _run(*inside, "link", "set", "lo", "up")
            _run(*inside, "addr", "add", f"10.0.{number}.{number}/24", "dev", "eth0")
            _run(*inside, "route", "add", "default", "via", f"10.0.{number}.254")
            _run(*inside, "neigh", "add", f"10.0.{number}.254", "lladdr", OWN_MAC, "dev", "eth0")

    def _program(self) -> None:
        """Compile for exactly this network, and attach to both ports."""
        defines = {
            "VIP": _number(VIP),
            "SERVER": _number("10.0.2.2"),
            "PORT": str(self.port),
            "CLIENT_IF": _index(CLIENT_IF),
            "SERVER_IF": _index(SERVER_IF),
            "CLIENT_MAC": _bytes(CLIENT_MAC),
            "SERVER_MAC": _bytes(SERVER_MAC),
            "OWN_MAC": _bytes(OWN_MAC),
        }
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "rewrite.o"
            flags = [f"-D{name}={value}" for name, value in defines.items()]
            headers = [f"-I{path.parent}" for path in Path("/usr/include").glob("*-linux-gnu/asm")][:1]
            # fmt: off
            _run("clang", "-O2", "-g", "-target", "bpf", *headers, *flags,
                 "-c", str(SOURCE), "-o", str(target))
            for link in (CLIENT_IF, SERVER_IF):
                _run("tc", "qdisc", "add", "dev", link, "clsact")
                _run("tc", "filter", "add", "dev", link, "ingress", "bpf", "direct-action",
                     "object-file", str(target), "section", "tc")
            # fmt: on


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _index(link: str) -> str:
    return Path(f"/sys/class/net/{link}/ifindex").read_text().strip()


def _number(address: str) -> str:
    return "0x" + "".join(f"{int(part):02x}" for part in address.split("."))


def _bytes(mac: str) -> str:
    return "{" + ",".join(f"0x{part}" for part in mac.split(":")) + "}"

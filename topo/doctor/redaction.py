"""Taking the machine's own addresses and names out of text, by placeholders that stay the same throughout.

    192.0.2.7 → <address-1>    02:42:… → <mac-1>    the host's name → <host>
    alice → <user-1>    /home/alice → <home-1>

Two rules. What this machine is known by (`Machine`) is replaced everywhere. In logs, whatever looks like an address is
replaced as well unless it is one of the testbed's own: a program's peers are nobody's business either. The testbed's
own addresses (10.0.x.y, 172.31.x.y, 08:00:00:…) stay: without them a log says nothing.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from pyroute2 import IPRoute

from topo import management, paths

_OWN_NETWORKS = (
    ip_network("10.0.0.0/16"),  # hosts and services: topo/plan.py
    management.NETWORK.network,
    *map(ip_network, ("127.0.0.0/8", "0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")),
    *map(
        ip_network, ("::/127", "ff00::/8", "fe80::a00:ff:fe00:0/104")
    ),  # the last: of MAC addresses 08:00:00:…
)
_OWN_MACS = ("08:00:00:", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "33:33:", "01:00:5e:", "01:80:c2:")
# Names that say nothing of whose machine it is, and that logs are full of.
_COMMON_NAMES = frozenset({"root", "localhost", "ip6-localhost", "ip6-loopback", "p4ferry", "nobody"})
_USER_IDS = range(1000, 65534)  # of people: login.defs(5), UID_MIN; nobody is 65534
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?!\w)"
)
_HOME = r"(?<!\w)/(?:home|Users)/[^/\s\"':,;)\]}<]+"  # somebody's, here or elsewhere
_MAC = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![\w:-])")


@dataclass(frozen=True)
class Machine:
    """What a machine and the people on it are known by."""

    addresses: frozenset[str] = frozenset()
    macs: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    homes: frozenset[str] = frozenset()
    checkout: str = ""

    @classmethod
    def of_this_one(cls) -> Machine:
        """Ask the kernel and the user database."""
        addresses, macs = _interfaces()
        people = [entry for entry in pwd.getpwall() if entry.pw_uid in _USER_IDS]
        users = {entry.pw_name for entry in people} | {os.environ.get("SUDO_USER", "")}
        full_names = {entry.pw_gecos.split(",")[0] for entry in people}
        homes = {entry.pw_dir for entry in people} | {os.environ.get("HOME", "")}
        return cls(
            addresses,
            macs,
            frozenset(_names(_host_names())),
            frozenset(_names(users | full_names)),
            frozenset(home.rstrip("/") for home in homes if home.count("/") > 1 or home == "/root"),
            str(paths.CHECKOUT),
        )


def _interfaces() -> tuple[frozenset[str], frozenset[str]]:
    """Return the addresses and MAC addresses of the interfaces of this network namespace."""
    with IPRoute() as ip:
        links = [link.get_attr("IFLA_ADDRESS") for link in ip.get_links()]
        found = [entry.get_attr("IFA_ADDRESS") for entry in ip.get_addr()]
        found += [entry.get_attr("IFA_LOCAL") for entry in ip.get_addr()]
    addresses = frozenset(a for a in found if a and not ip_address(a).is_loopback)
    macs = frozenset(m.lower() for m in links if m and not m.lower().startswith(_OWN_MACS))
    return addresses, macs


def _host_names() -> set[str]:
    names = {socket.gethostname(), os.uname().nodename}
    for file in ("/etc/hostname", "/etc/mailname"):
        try:
            names.add(Path(file).read_text().strip())
        except (OSError, UnicodeDecodeError):
            continue
    names |= {name.partition(".")[0] for name in names}
    return names | {name.lower() for name in names}


def _names(found: Iterable[str]) -> set[str]:
    return {name for name in found if len(name) > 1 and name.lower() not in _COMMON_NAMES}


@dataclass
class Redactor:
    """Replaces what a machine is known by; the same thing gets the same placeholder in every text."""

    machine: Machine
    _given: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: dict[str, str] = {}
        for kind, things in (
            ("address", self.machine.addresses),
            ("mac", self.machine.macs),
            ("user", self.machine.users),
            ("home", self.machine.homes),
        ):
            known |= {thing: self._placeholder(kind, thing) for thing in sorted(things)}
        for address in self.machine.addresses:
            known |= dict.fromkeys(_other_forms(address), known[address])
        known |= dict.fromkeys(self.machine.hosts, "<host>")
        if self.machine.checkout:
            known[self.machine.checkout] = "<checkout>"
        known |= {mac.replace(":", "-"): known[mac] for mac in self.machine.macs}
        known |= {thing.upper(): placeholder for thing, placeholder in known.items() if ":" in thing}
        self._known = known
        longest_first = sorted(known, key=len, reverse=True)
        # A placeholder's own words are no names: a user may be called "home".
        self._pattern = re.compile(
            r"<(?:address|mac|user|home)-\d+>|<host>|<checkout>"
            + "".join(f"|(?<![A-Za-z0-9]){re.escape(thing)}(?![A-Za-z0-9])" for thing in longest_first)
            + f"|(?P<home>{_HOME})"
        )

    def known(self, text: str) -> str:
        """Replace what this machine is known by."""
        return self._pattern.sub(self._replaced, text)

    def log(self, text: str) -> str:
        """Replace that, and every address that is not the testbed's own."""
        text = self.known(text)
        text = _MAC.sub(self._unless("mac", lambda mac: mac.lower().startswith(_OWN_MACS)), text)
        text = _IPV6.sub(self._unless("address", _is_own), text)
        return _IPV4.sub(self._unless("address", _is_own), text)

    def _replaced(self, found: re.Match[str]) -> str:
        return self._placeholder("home", found[0]) if found["home"] else self._known.get(found[0], found[0])

    def _unless(self, kind: str, is_own: Callable[[str], bool]) -> Callable[[re.Match[str]], str]:
        def replaced(found: re.Match[str]) -> str:
            thing, rest = found[0], ""
            if thing.endswith(":") and not thing.endswith("::"):
                thing, rest = thing[:-1], ":"
            return found[0] if is_own(thing) else self._placeholder(kind, thing.lower()) + rest

        return replaced

    def _placeholder(self, kind: str, thing: str) -> str:
        given = self._given.setdefault(kind, {})
        return given.setdefault(thing, f"<{kind}-{len(given) + 1}>")


def _is_own(text: str) -> bool:
    """Return True for an address of the testbed's, and for what only looks like an address."""
    try:
        address = ip_address(text)
    except ValueError:
        return True
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == network.version and address in network for network in _OWN_NETWORKS)


def _other_forms(text: str) -> set[str]:
    """Return how else an address is written: as a number (journals), in full."""
    address = ip_address(text)
    forms = {address.exploded}
    if isinstance(address, IPv4Address):
        forms |= {str(int(address)), f"::ffff:{address}", f"{int(address):08x}", f"0x{int(address):08x}"}
    return forms - {text}

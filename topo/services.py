"""Services as users name them."""

from __future__ import annotations

from ipaddress import IPv4Address

from migration.steering import Endpoint, IpProtocol
from topo.errors import BadApp


def parse_service(text: str) -> Endpoint:
    """Parse "VIP:PORT" or "VIP:PORT/udp"; raises BadApp."""
    address, _, rest = text.partition(":")
    number, _, protocol = rest.partition("/")
    try:
        kind = IpProtocol[(protocol or "tcp").upper()]
        vip, port = IPv4Address(address), int(number)
    except (KeyError, ValueError) as ex:
        raise BadApp(f"service {text!r} is not VIP:PORT such as 10.0.0.100:7000 (or …/udp)") from ex
    if not 1 <= port <= 65535:
        raise BadApp(f"service {text!r}: {port} is not a port from 1 to 65535")
    return Endpoint(kind, vip, port)

"""Changing a Mininet network while it runs: what its start does for all hosts and links, done for one.

Switches that take ports at run time have `attach` and `detach`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def join(net: Any, add: Callable[..., Any], node1: Any, node2: Any, **options: Any) -> Any:
    """Link two nodes of a running network with Mininet's own `add`; returns the link.

    The switches among them forward over it at once. If one refuses, there is no link.
    """
    link = add(node1, node2, **options)
    try:
        for intf in (link.intf1, link.intf2):
            if hasattr(intf.node, "attach"):
                intf.node.attach(intf)
    except BaseException:
        net.delLink(link)
        raise
    return link


def part(net: Any, link: Any) -> None:
    """Remove a link from a running network."""
    for intf in (link.intf1, link.intf2):
        if hasattr(intf.node, "detach"):
            intf.node.detach(intf)
    net.delLink(link)


def remove_host(net: Any, host: Any) -> None:
    """Remove a host, and its links, from a running network."""
    for link in [link for link in net.links if host in (link.intf1.node, link.intf2.node)]:
        part(net, link)
    net.delHost(host)

"""Changing a running network, without Mininet: a link that a switch refuses is taken back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from topo import running
from topo.errors import BadNetwork


class Node:
    """A node, and what was asked of it; one that refuses takes no ports while it runs."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.asked: list[str] = []

    def attach(self, intf: Any) -> None:
        """Take a port."""
        if self.refuses:
            raise BadNetwork("s1: takes ports only when it starts")
        self.asked.append(f"attach {intf.name}")

    def detach(self, intf: Any) -> None:
        """Give up a port."""
        self.asked.append(f"detach {intf.name}")


class Net:
    """What is used of Mininet."""

    def __init__(self) -> None:
        self.links: list[Any] = []
        self.hosts: list[Any] = []

    def add(self, one: Any, two: Any) -> Any:
        """Add a link."""
        ends = [SimpleNamespace(name=f"eth{number}", node=node) for number, node in enumerate((one, two))]
        self.links.append(SimpleNamespace(intf1=ends[0], intf2=ends[1]))
        return self.links[-1]

    def delLink(self, link: Any) -> None:
        """Remove a link."""
        self.links.remove(link)

    def delHost(self, host: Any) -> None:
        """Remove a host."""
        self.hosts.remove(host)


def test_switches_know_of_links_that_come_and_go() -> None:
    """A host that goes takes its links along; nodes that are no switches are not asked."""
    net, host, switch = Net(), object(), Node()
    net.hosts.append(host)
    for _ in range(2):
        running.join(net, net.add, host, switch)
    running.part(net, net.links[0])
    running.remove_host(net, host)
    assert switch.asked == ["attach eth1", "attach eth1", "detach eth1", "detach eth1"]
    assert (net.hosts, net.links) == ([], [])


def test_a_refused_link_is_no_link() -> None:
    """The sentence is the switch's."""
    net = Net()
    with pytest.raises(BadNetwork, match="takes ports only when it starts"):
        running.join(net, net.add, object(), Node(refuses=True))
    assert net.links == []

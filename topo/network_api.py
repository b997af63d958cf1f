"""Describe a network and run it, with p4-utils' method names.

A network is first only described (nodes, links and settings are dataclasses); `startNetwork` checks the description,
compiles the P4 programs, and builds it in Mininet; `stopNetwork` removes all of it, also after a failed start. The
camelCase names are p4-utils'; links' and interfaces' settings are addressed by the two nodes, as there. `addDocker` and
`addPodman` are containernet's, `addPod` is ours. Hosts and links can also be added and removed while the network runs
(`topo.running`).

    net = NetworkAPI()
    net.addP4RuntimeSwitch("s1")
    net.setP4Source("s1", "p4src/forward.p4")
    net.addHost("h1"); net.addHost("h2")
    net.addLink("h1", "s1"); net.addLink("h2", "s1")
    net.l3()
    net.enableCli()
    net.startNetwork()
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from mininet.log import setLogLevel
from mininet.net import Mininet

from topo import modules, running, shaping
from topo.compile import CompiledProgram, Target, compile_p4
from topo.containers.engine import ENGINES
from topo.containers.host import CONTAINER_HOSTS, link_options
from topo.containers.pod import Pod
from topo.containers.podspec import parse_pod
from topo.containers.provision import PAUSE
from topo.containers.spec import parse_spec
from topo.containers.switch import ContainerStarter
from topo.description import HostNode, LinkEnd, LinkPair, Survivors, SwitchNode
from topo.errors import BadNetwork, MissingTool, TestbedError
from topo.hosts import AdoptedLink, ProcessHost, disable_offloads
from topo.plan import GRPC_BASE
from topo.switches import Bmv2Switch, EbpfSwitch, P4RuntimeSwitch

INTERFACE_NAME_MAX = 15  # IFNAMSIZ without its terminating zero


class NetworkAPI:
    """A network of hosts and P4 switches; a context manager that stops it."""

    def __init__(self, target: Target | str = Target.EBPF, log_dir: Path | str = "log") -> None:
        """Choose what runs the P4 programs, and where switch logs go when they are enabled."""
        self.target = Target(target)
        self.log_dir = Path(log_dir)
        self.pcap_dir = Path("pcap")
        self.load_programs = True
        self.switch_container: str | None = None
        """The container engine that the switches' processes are started by; None starts them on the machine."""
        self.survivors: Survivors | None = None
        """What the network's hosts and switches live in, when they are to outlive this process."""
        self.net: Mininet | None = None
        self._hosts: dict[str, HostNode] = {}
        self._switches: dict[str, SwitchNode] = {}
        self._links: list[LinkPair] = []
        self._cli = False
        self._arp_tables = True
        self._strategy: str | None = None
        self._l3_taken: set[str] = set()

    def __enter__(self) -> NetworkAPI:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopNetwork()

    # ---- description: nodes

    def addHost(self, name: str, **opts: Any) -> str:
        """Add a host; `ip` ("10.0.1.1/24"), `mac` and `defaultRoute` ("via 10.0.1.254") are Mininet's."""
        return self._add_described(name, None, opts)

    def addDocker(self, name: str, **opts: Any) -> str:
        """Add a host that is a Docker container; takes addHost's and containernet's parameters (`dimage`, …)."""
        return self._add_described(name, "docker", opts)

    def addPodman(self, name: str, **opts: Any) -> str:
        """Add a host that is a Podman container; takes the same parameters as addDocker."""
        return self._add_described(name, "podman", opts)

    def addPod(self, name: str, engine: str = "docker", **opts: Any) -> str:
        """Add a host that is a pod: one address for several containers (`topo.containers.pod`).

        Takes addHost's parameters, and `sysctls`, `port_bindings`, `labels` and `rm`. Containers are started in it when
        the network runs: `net["p1"].addContainer("redis", "redis")`.
        """
        if engine not in ENGINES:
            raise BadNetwork(f"{name}: {engine!r} is not an engine of pods (there are: {', '.join(ENGINES)})")
        parse_pod(name, PAUSE, **opts)
        return self._add_described(name, engine, opts, is_pod=True)

    def _add_described(
        self, name: str, engine: str | None, opts: dict[str, Any], *, is_pod: bool = False
    ) -> str:
        self._check_new(name)
        if engine is not None and not is_pod:
            parse_spec(name, opts.get("dimage"), **{k: v for k, v in opts.items() if k != "dimage"})
        default_route = opts.pop("defaultRoute", None)
        host = HostNode(
            name, opts.pop("ip", None), opts.pop("mac", None), default_route, opts, engine, is_pod
        )
        if self.net is not None:
            self._add_host(self.net, host)
        self._hosts[name] = host
        return name

    def removeHost(self, name: str) -> None:
        """Remove a host, a container or not, with its links."""
        self._host(name)
        if self.net is not None:
            running.remove_host(self.net, self.net[name])
        self._links = [link for link in self._links if name not in _nodes(link)]
        del self._hosts[name]

    removeDocker = removePodman = removePod = removeHost

    def addP4RuntimeSwitch(self, name: str, **opts: Any) -> str:
        """Add a P4 switch; takes p4-utils' `device_id`, `grpc_port`, `p4_src`, `log_enabled`, `pcap_dump`."""
        self._check_new(name)
        source = opts.pop("p4_src", None)
        self._switches[name] = SwitchNode(
            name,
            Path(source) if source else None,
            opts.pop("device_id", None),
            opts.pop("grpc_port", None),
            opts.pop("log_enabled", False),
            opts.pop("pcap_dump", False),
            opts,
        )
        return name

    def addP4Switch(self, name: str, **opts: Any) -> str:
        """Add a P4 switch; all of ours serve P4Runtime, none serves Thrift."""
        return self.addP4RuntimeSwitch(name, **opts)

    def setP4Source(self, name: str, p4_src: str | Path) -> None:
        """Set a switch's P4 program."""
        self._switch(name).p4_source = Path(p4_src)

    def setP4SourceAll(self, p4_src: str | Path) -> None:
        """Set every switch's P4 program."""
        for switch in self._switches.values():
            switch.p4_source = Path(p4_src)

    def setP4SwitchId(self, name: str, id: int) -> None:
        """Set a switch's P4Runtime device id."""
        self._switch(name).device_id = id

    def setGrpcPort(self, name: str, port: int) -> None:
        """Set where a switch serves P4Runtime."""
        self._switch(name).grpc_port = port

    def setDefaultRoute(self, name: str, default_route: str) -> None:
        """Set a host's default gateway."""
        self._host(name).default_route = f"via {default_route}"

    # ---- description: links

    def addLink(
        self, node1: str, node2: str, port1: int | None = None, port2: int | None = None, **opts: Any
    ) -> None:
        """Join two nodes; ports are numbered from 1 at switches and 0 at hosts unless given.

        Takes p4-utils' and Mininet's `addr1`, `addr2`, `intfName1`, `intfName2`, and for both directions `bw` (Mbit/s),
        `delay` and `jitter` (milliseconds, or as "10ms"), `loss` (percent) and `max_queue_size` (packets).
        """
        for node in (node1, node2):
            if node not in self._hosts and node not in self._switches:
                raise BadNetwork(f"link {node1}-{node2}: there is no node {node}")
        if node1 == node2:
            raise BadNetwork(f"link {node1}-{node2}: a node cannot be linked to itself")
        known = {"addr1", "addr2", "intfName1", "intfName2"}
        if unknown := sorted(set(opts) - known - set(shaping.OPTIONS)):
            raise BadNetwork(f"link {node1}-{node2}: option {unknown[0]} is not supported")
        ends = (
            LinkEnd(node1, port1, opts.get("addr1"), None, opts.get("intfName1")),
            LinkEnd(node2, port2, opts.get("addr2"), None, opts.get("intfName2")),
        )
        link = LinkPair(ends, shaping.parse(f"{node1}-{node2}", opts))
        self._links.append(link)
        if self.net is not None:
            try:
                self._join(self.net, link)
            except BaseException:
                self._links.remove(link)
                raise

    def removeLink(self, node1: str, node2: str) -> None:
        """Remove the first link between two nodes."""
        pair = self._link(node1, node2)
        if self.net is not None:
            running.part(self.net, self.net.linksBetween(self.net[node1], self.net[node2])[0])
        self._links.remove(pair)

    def setIntfPort(self, node1: str, node2: str, port: int) -> None:
        """Set the port number of node1's interface towards node2."""
        self._end(node1, node2).port = port

    def setIntfIp(self, node1: str, node2: str, ip: str) -> None:
        """Set the address ("10.0.1.1/24") of node1's interface towards node2."""
        try:
            self._end(node1, node2).ip = str(IPv4Interface(ip))
        except ValueError as ex:
            raise BadNetwork(f"{node1}-{node2}: {ip!r} is no IPv4 address with prefix length") from ex

    def setIntfMac(self, node1: str, node2: str, mac: str) -> None:
        """Set the MAC of node1's interface towards node2."""
        self._end(node1, node2).mac = mac

    def setIntfName(self, node1: str, node2: str, name: str) -> None:
        """Set the name of node1's interface towards node2."""
        self._end(node1, node2).intf = name

    def setBw(self, node1: str, node2: str, bw: float) -> None:
        """Limit a link to `bw` Mbit/s."""
        self._shape(self._link(node1, node2), bw=bw)

    def setDelay(self, node1: str, node2: str, delay: float | str) -> None:
        """Delay what passes a link by milliseconds, or a time such as "10ms"."""
        self._shape(self._link(node1, node2), delay=delay)

    def setLoss(self, node1: str, node2: str, loss: float) -> None:
        """Lose a percentage of what passes a link."""
        self._shape(self._link(node1, node2), loss=loss)

    def setMaxQueueSize(self, node1: str, node2: str, max_queue_size: int) -> None:
        """Let so many packets wait at a link."""
        self._shape(self._link(node1, node2), max_queue_size=max_queue_size)

    def setBwAll(self, bw: float) -> None:
        """Limit every link to `bw` Mbit/s."""
        self._shape(*self._links, bw=bw)

    def setDelayAll(self, delay: float | str) -> None:
        """Delay what passes any link."""
        self._shape(*self._links, delay=delay)

    def setLossAll(self, loss: float) -> None:
        """Lose a percentage of what passes any link."""
        self._shape(*self._links, loss=loss)

    def setMaxQueueSizeAll(self, max_queue_size: int) -> None:
        """Let so many packets wait at every link."""
        self._shape(*self._links, max_queue_size=max_queue_size)

    def _shape(self, *links: LinkPair, **options: Any) -> None:
        """Change the settings of links that are not built yet."""
        if self.net is not None:
            raise BadNetwork("links are shaped before the network is started")
        for link in links:
            link.shape = shaping.parse(link.name, link.shape | options)

    def l3(self) -> None:
        """Give every host a /24 of its own, 10.X.Y.2 on switch X as its Y-th host, with gateway 10.X.Y.1."""
        self._strategy = "l3"

    def disableArpTables(self) -> None:
        """Leave the hosts' ARP tables empty (with `l3`, they know their gateway's MAC otherwise)."""
        self._arp_tables = False

    # ---- description: options

    def setLogLevel(self, level: str) -> None:
        """Set Mininet's log level: debug, info, output, warning, error, critical."""
        setLogLevel(level)

    def setCompiler(self, **opts: Any) -> None:
        """Accept p4-utils' call; the target decides the compiler, and P4Info is always written."""

    def enableCli(self) -> None:
        """Give the CLI when the network has started."""
        self._cli = True

    def disableCli(self) -> None:
        """Return from `startNetwork` when the network has started."""
        self._cli = False

    def enableLog(self, name: str, log_dir: str | Path = "log") -> None:
        """Let one switch write its log to `log_dir`."""
        self._switch(name).log_enabled = True
        self.log_dir = Path(log_dir)

    def enableLogAll(self, log_dir: str | Path = "log") -> None:
        """Let every switch write its log to `log_dir`."""
        for name in self._switches:
            self.enableLog(name, log_dir)

    def enablePcapDump(self, name: str, pcap_dir: str | Path = "pcap") -> None:
        """Let one switch write what passes its ports to `pcap_dir`."""
        self._switch(name).pcap_dump = True
        self.pcap_dir = Path(pcap_dir)

    def enablePcapDumpAll(self, pcap_dir: str | Path = "pcap") -> None:
        """Let every switch write what passes its ports to `pcap_dir`."""
        for name in self._switches:
            self.enablePcapDump(name, pcap_dir)

    # ---- looking at it

    def hosts(self) -> list[str]:
        """List the hosts' names."""
        return list(self._hosts)

    def p4switches(self) -> list[str]:
        """List the switches' names."""
        return list(self._switches)

    def program(self, name: str) -> CompiledProgram:
        """Return a started switch's compiled program."""
        program = self._switch(name).assigned_program
        if program is None:
            raise BadNetwork(f"switch {name} has no P4 program yet")
        return program

    # ---- running it

    def startNetwork(self) -> None:
        """Build and start everything, then give the CLI if it is enabled; on failure nothing is left."""
        if self.net is not None:
            raise BadNetwork("the network is running already")
        modules.prepare(modules.Use.LINKS, *([modules.Use.EBPF] if self.target is Target.EBPF else []))
        self._number_ports()
        if self._strategy == "l3":
            self._assign_l3()
        self._assign_macs()
        try:
            with ThreadPoolExecutor(1) as pool:  # compile while Mininet builds
                compiled = pool.submit(self._compile)
                self._build()
                compiled.result()
            self._start_switches()
        except FileNotFoundError as ex:  # Mininet calls many small programs
            self.stopNetwork()
            raise MissingTool(f"{ex.filename} is not there: make doctor says what is missing") from ex
        except BaseException:
            self.stopNetwork()
            raise
        if self._cli:
            from topo.cli import FerryCLI

            try:
                FerryCLI(self.net)
            finally:
                self.stopNetwork()

    def stopNetwork(self) -> None:
        """Stop and remove whatever was started."""
        net, self.net = self.net, None
        if net is not None:
            net.stop()

    @property
    def _switch_class(self) -> type[P4RuntimeSwitch]:
        return EbpfSwitch if self.target is Target.EBPF else Bmv2Switch

    def _compile(self) -> None:
        sources = {s.p4_source for s in self._switches.values() if s.p4_source}
        programs = {source: compile_p4(source, self.target) for source in sources}
        for switch in self._switches.values():
            switch.assigned_program = programs.get(switch.p4_source) if switch.p4_source else None

    def _build(self) -> None:
        """Make hosts, switches and links in Mininet."""
        switch_class = self._switch_class
        switch_class.command()  # say at once what is missing
        if not switch_class.offload and shutil.which("ethtool") is None:
            raise MissingTool("ethtool is not installed: it must switch offloads off for BMv2 (make setup)")
        Mininet.inited = True  # Mininet.init would only raise resource limits, which not every root may
        is_adopted = self.survivors is not None and self.survivors.are_adopted
        net = self.net = Mininet(controller=None, switch=switch_class, host=ProcessHost, build=False)
        self._add_hosts(net)
        self._add_switches(net)
        for link in self._links:
            options = {"cls": AdoptedLink} if is_adopted else shaping.links(link.name, link.shape)
            self._add_link(net, net.addLink, link, **options)
            if not switch_class.offload and not is_adopted:
                self._disable_offloads(net, link)
        net.build()

    def _add_link(self, net: Mininet, add: Callable[..., Any], link: LinkPair, **options: Any) -> None:
        """Let Mininet make a link in one way or another."""
        one, two = link.ends
        options |= {"port1": one.port, "port2": two.port, "addr1": one.mac, "addr2": two.mac}
        options |= link_options(net[one.node], net[two.node])
        try:
            add(one.node, two.node, **options, intfName1=one.intf, intfName2=two.intf)
        except TestbedError:
            raise
        except Exception as ex:  # Mininet raises nothing more specific
            raise BadNetwork(f"link {one.node}-{two.node}: {str(ex).strip()}") from ex

    def _disable_offloads(self, net: Mininet, link: LinkPair) -> None:
        for end in link.ends:
            if end.node in self._switches:
                disable_offloads(str(net[end.node].intfs[end.port]))

    def _add_hosts(self, net: Mininet) -> None:
        for host in self._hosts.values():
            self._add_host(net, host)

    def _add_host(self, net: Mininet, host: HostNode) -> None:
        ends = [link.end(host.name) for link in self._links if host.name in _nodes(link)]
        first = ends[0] if ends else LinkEnd(host.name)
        params = dict(host.params)
        if host.default_route:
            params["defaultRoute"] = host.default_route
        if host.is_pod:
            params |= {"cls": Pod, "engine": host.engine}
            if self.survivors is not None:
                params["adopted"] = self.survivors.pods.get(host.name)
        elif host.engine is not None:
            params["cls"] = CONTAINER_HOSTS[host.engine]
        elif self.survivors is not None and host.name in self.survivors.holders:
            params["holder"] = self.survivors.holders[host.name]
            params["adopted"] = self.survivors.are_adopted
        offload = self._switch_class.offload
        net.addHost(host.name, ip=host.ip or first.ip, mac=host.mac or first.mac, offload=offload, **params)

    def _join(self, net: Mininet, link: LinkPair) -> None:
        """Make a link while the network runs, and configure a host that has no other."""
        self._number_ports()
        if self._strategy == "l3":
            self._assign_l3()
        self._assign_macs()
        shape = shaping.links(link.name, link.shape)
        self._add_link(net, partial(running.join, net, net.addLink), link, **shape)
        if not self._switch_class.offload:
            self._disable_offloads(net, link)
        for end in link.ends:
            host = self._hosts.get(end.node)
            if host is not None and len(net[end.node].intfList()) == 1:
                route = {"defaultRoute": host.default_route} if host.default_route else {}
                net[end.node].configDefault(ip=host.ip or end.ip, mac=end.mac, **route)
        self._set_gateway_arp(link)

    def _add_switches(self, net: Mininet) -> None:
        for index, switch in enumerate(self._switches.values(), 1):
            if switch.log_enabled:
                self.log_dir.mkdir(parents=True, exist_ok=True)
            if switch.pcap_dump:
                self.pcap_dir.mkdir(parents=True, exist_ok=True)
            survival: dict[str, Any] = {}
            if self.survivors is not None:
                survival = {"outlives_us": True, "adopted": self.survivors.switches.get(switch.name)}
            if self.switch_container is not None:
                survival["starter"] = ContainerStarter(switch.name, self.switch_container)
            net.addSwitch(
                switch.name,
                device_id=switch.device_id or index,
                grpc_port=switch.grpc_port or GRPC_BASE + index - 1,
                log_dir=self.log_dir,
                log_enabled=switch.log_enabled,
                pcap_dump=switch.pcap_dump,
                pcap_dir=self.pcap_dir,
                **survival,
                **switch.params,
            )

    def _start_switches(self) -> None:
        """Start all processes, then wait for all."""
        assert self.net is not None
        for node in self.net.switches:
            program = self._switches[node.name].assigned_program
            node.bmv2_json = program.bmv2_json if program and self.load_programs else None
        self.net.start()
        for node in self.net.switches:
            node.wait_ready()
        for link in self._links:
            self._set_gateway_arp(link)

    def _set_gateway_arp(self, link: LinkPair) -> None:
        """Tell a host the MAC of its gateway, as p4-utils' l3 does."""
        assert self.net is not None
        if self._strategy != "l3" or not self._arp_tables:
            return
        one, two = link.ends
        for host, switch in ((one, two), (two, one)):
            if host.node in self._hosts and switch.node in self._switches and host.ip:
                gateway = str(IPv4Interface(host.ip).network.network_address + 1)
                mac = self.net[switch.node].intfs[switch.port].MAC()
                self.net[host.node].setARP(gateway, mac)

    # ---- numbers and addresses

    def _number_ports(self) -> None:
        """Give every link end that has none the lowest free port number of its node."""
        taken: dict[str, set[int]] = {}
        for end in self._ends():
            if end.port is not None:
                if end.port in taken.setdefault(end.node, set()):
                    raise BadNetwork(f"{end.node}: port {end.port} is used by two links")
                taken[end.node].add(end.port)
        for end in self._ends():
            used = taken.setdefault(end.node, set())
            if end.port is None:
                first = 0 if end.node in self._hosts else 1
                end.port = next(n for n in range(first, len(used) + 2) if n not in used)
                used.add(end.port)
            name = end.intf or f"{end.node}-eth{end.port}"
            if len(name) > INTERFACE_NAME_MAX:
                raise BadNetwork(f"{end.node}: interface name {name} is longer than {INTERFACE_NAME_MAX}")

    def _assign_l3(self) -> None:
        switches = {name: number for number, name in enumerate(self._switches, 1)}
        for link in self._links:
            one, two = link.ends
            for host, switch in ((one, two), (two, one)):
                node = self._hosts.get(host.node)
                if node is None or switch.node not in switches or host.ip is not None:
                    continue
                prefix = next(
                    p for p in _prefixes(switches[switch.node]) if f"{p}.2/24" not in self._l3_taken
                )
                host.ip = f"{prefix}.2/24"
                self._l3_taken.add(host.ip)
                node.default_route = node.default_route or f"via {prefix}.1"

    def _assign_macs(self) -> None:
        """Give every interface that has none a MAC: hosts' from their address (as p4-utils), switches' by port."""
        switches = {name: number for number, name in enumerate(self._switches, 1)}
        for number, end in enumerate(self._ends(), 1):
            host = self._hosts.get(end.node)
            ip = end.ip or (host.ip if host else None)
            if end.mac is not None:
                continue
            if host is not None and host.mac is not None:
                end.mac = host.mac
            elif ip is not None:
                tail = IPv4Interface(ip).ip.packed
                end.mac = "00:00:" + ":".join(f"{byte:02x}" for byte in tail)
            elif host is None:
                end.mac = f"02:00:00:{switches[end.node]:02x}:{(end.port or 0) >> 8:02x}:{(end.port or 0) & 255:02x}"
            else:
                end.mac = f"02:00:01:00:{number >> 8:02x}:{number & 255:02x}"

    def _ends(self) -> list[LinkEnd]:
        return [end for link in self._links for end in link.ends]

    # ---- looking up

    def _check_new(self, name: str) -> None:
        if name in self._hosts or name in self._switches:
            raise BadNetwork(f"there is a node {name} already")

    def _host(self, name: str) -> HostNode:
        if name not in self._hosts:
            raise BadNetwork(f"there is no host {name}")
        return self._hosts[name]

    def _switch(self, name: str) -> SwitchNode:
        if name not in self._switches:
            raise BadNetwork(f"there is no switch {name}")
        return self._switches[name]

    def _end(self, node1: str, node2: str) -> LinkEnd:
        return self._link(node1, node2).end(node1)

    def _link(self, node1: str, node2: str) -> LinkPair:
        for link in self._links:
            if _nodes(link) == {node1, node2}:
                return link
        raise BadNetwork(f"there is no link {node1}-{node2}")


def _nodes(link: LinkPair) -> set[str]:
    return {end.node for end in link.ends}


def _prefixes(switch: int) -> Iterator[str]:
    """Yield the networks of a switch's hosts."""
    for number in itertools.count(1):
        yield f"10.{switch}.{number}"

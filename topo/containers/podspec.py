"""What a pod, and a container in one, are to be: containernet's parameters, told apart and checked.

The pod has the network, so what is about addresses, published ports and network settings is said of the pod; everything
else is said of a container. Pure, as `spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from topo.containers.spec import HOST_PARAMETERS, ContainerSpec, parse_spec
from topo.errors import BadNetwork

POD_PARAMETERS = frozenset({"sysctls", "port_bindings", "labels", "rm"})
"""What a pod takes besides a host's own parameters."""
OF_THE_POD = ("network_mode", "port_bindings", "ports", "publish_all_ports", "dns", *sorted(HOST_PARAMETERS))
"""What no container in a pod has for itself."""
_NET = "net."  # sysctls of the network namespace


def parse_pod(name: str, image: str, **params: Any) -> ContainerSpec:
    """Read a pod's parameters as those of its sandbox; raises BadNetwork."""
    for parameter in params:
        if parameter not in POD_PARAMETERS | HOST_PARAMETERS:
            known = ", ".join(sorted(POD_PARAMETERS | HOST_PARAMETERS))
            raise BadNetwork(f"{name}: a pod has no parameter {parameter}; it has {known}")
    return replace(parse_spec(name, image, **params), has_input=False, cap_add=())


def parse_member(pod: str, name: str, image: object, command: object, **params: Any) -> ContainerSpec:
    """Read the parameters of a container in a pod; raises BadNetwork."""
    for parameter, value in params.items():
        if parameter in OF_THE_POD or (parameter == "sysctls" and _has_network(value)):
            raise BadNetwork(f"{name}: {parameter} is a matter of its pod: give it to addPod({pod!r}, …)")
    return replace(parse_spec(name, image, command, **params), publish_all_ports=False)


def _has_network(sysctls: object) -> bool:
    names = sysctls if isinstance(sysctls, Mapping | list | tuple) else [sysctls]
    return any(str(name).startswith(_NET) for name in names)

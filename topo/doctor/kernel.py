"""What the kernel lets this process do: privileges, modules, network namespaces, queueing disciplines."""

from __future__ import annotations

import os
import platform
import uuid

from migration import tree
from migration.transfer.pipelimit import CAP_SYS_RESOURCE
from topo import modules
from topo.doctor.findings import Finding, fine, last_line, needed, optional, run
from topo.modules import Kernel, State
from topo.netem import has_netem

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}


def check_root() -> Finding:
    """Ask for root and its capabilities."""
    if os.geteuid() != 0:
        return needed("not root", "type: sudo python3 topo/lb.py --doctor", uid=os.geteuid())
    missing = [name for name, bit in _CAPABILITIES.items() if not tree.may(bit)]
    if missing:
        return needed(
            f"root without {', '.join(missing)}",
            "start the container or VM with full privileges",
            missing=missing,
        )
    if not tree.may(CAP_SYS_RESOURCE):
        # prlimit(2): limits of another user's process are not read. Our own CRIU gets them elsewhere (preload.py).
        return optional(
            "root without CAP_SYS_RESOURCE",
            "migrations of Docker's and Podman's containers that run as another user than root "
            "(plain programs and runc's containers move, whoever runs them)",
            missing=["CAP_SYS_RESOURCE"],
        )
    return fine("root, with all capabilities", missing=[])


def check_modules(kernel: Kernel | None = None) -> Finding:
    """Ask for the kernel's modules; none is loaded by asking."""
    kernel = kernel or Kernel()
    states = kernel.states()
    system = modules.distribution()["ID"]
    measured = {module.name: state.value for module, state in states.items()}
    missing = [module for module, state in states.items() if state is State.MISSING]
    if serious := [m for m, state in states.items() if m.is_needed and modules.why_not(m, state) is not None]:
        names = ", ".join(f"{module.name} ({module.purpose})" for module in serious)
        return needed(
            f"kernel {kernel.release} has no {names}", modules.remedy(kernel, serious[0], system), **measured
        )
    if missing:
        return optional(
            f"kernel {kernel.release} has no {', '.join(module.name for module in missing)} "
            f"({modules.remedy(kernel, missing[0], system)})",
            "; ".join(dict.fromkeys(module.lost for module in missing)),
            **measured,
        )
    if kernel.was_updated:
        return optional(
            f"the modules of kernel {kernel.release} are gone: {modules.updated(kernel)}",
            "what is not loaded by now, until you reboot",
            **measured,
        )
    counts = [(state, list(states.values()).count(state)) for state in State]
    return fine(", ".join(f"{count} {state.value}" for state, count in counts if count), **measured)


def check_namespaces() -> Finding:
    """Make a network namespace with a veth pair whose one end takes a tc (clsact) hook."""
    name = f"p4f{uuid.uuid4().hex[:6]}"
    script = f"ip link add {name}a type veth peer name {name}b && tc qdisc add dev {name}a clsact"
    done = run(["unshare", "--net", "--mount", "sh", "-c", script])
    if done.returncode != 0:
        return needed(
            f"namespaces, veth or tc: {last_line(done)}",
            f"kernel {platform.release()} lacks CONFIG_VETH or NET_SCH_INGRESS, or may not load them",
        )
    return fine("network namespaces, veth pairs, tc clsact")


def check_netem() -> Finding:
    """Ask for netem, which link delay and loss need."""
    if not has_netem():
        return optional(f"kernel {platform.release()} has no netem", "link delay and loss")
    return fine("netem")


def check_hold_queues() -> Finding:
    """Make what held packets wait behind in the switch: a macvlan with a token bucket."""
    script = (
        "ip link add pfa type veth peer name pfb && ip link add link pfa name pfq type macvlan mode private"
        " && tc qdisc add dev pfq root tbf rate 8bit burst 65549 limit 1mb"
    )
    done = run(["unshare", "--net", "sh", "-c", script])
    if done.returncode != 0:
        return optional(
            f"macvlan or tbf: {last_line(done)}", "speed: held packets go to the controller and back"
        )
    return fine("macvlan and tbf: held packets wait in the kernel")

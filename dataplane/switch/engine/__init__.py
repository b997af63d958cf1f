"""The engine: BMv2 JSON to C to a BPF object that runs on real interfaces. See README.md in this folder.

The two public classes are imported when they are first asked for: loading a compiled object (`libbpf`, `check`) needs
nothing but Python and libbpf.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataplane.switch.engine.engine import EbpfEngine
    from dataplane.switch.engine.running import EbpfPipeline

__all__ = ["EbpfEngine", "EbpfPipeline"]


def __getattr__(name: str) -> object:
    """Import a public class."""
    if name == "EbpfEngine":
        from dataplane.switch.engine.engine import EbpfEngine

        return EbpfEngine
    if name == "EbpfPipeline":
        from dataplane.switch.engine.running import EbpfPipeline

        return EbpfPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

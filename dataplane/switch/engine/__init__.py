"""The engine: BMv2 JSON to C to a BPF object that runs on real interfaces. See README.md in this folder."""

from dataplane.switch.engine.engine import EbpfEngine
from dataplane.switch.engine.running import EbpfPipeline

__all__ = ["EbpfEngine", "EbpfPipeline"]

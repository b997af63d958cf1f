"""A P4 switch in the kernel: BMv2 JSON becomes an eBPF program, driven through P4Runtime.

`pipeline` is the seam between the two halves: `engine` (code generation, loading, maps, packets) implements
it, `p4runtime` (the gRPC service) drives it. Neither half imports the other's modules.
"""

"""The embedded P4 toolchain: `compiler` (P4_16 to BMv2 JSON and P4Info) and `switch` (BMv2 JSON to eBPF)."""

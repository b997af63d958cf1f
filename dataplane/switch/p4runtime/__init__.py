"""P4Runtime v1 on top of any `dataplane.switch.pipeline.Engine`. See README.md in this folder.

errors, bytestrings, schema, matches    values and messages (pure)
tables, reads, arrays, digests, packet_io, arbitration    one kind of entity each (pure, on a `Pipeline`)
forwarding, serialized, device          state of a pipeline; pipelines and controllers of a device
controller, status, service, server     the gRPC side
"""

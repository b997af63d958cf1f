"""Container hosts: Mininet hosts that are Docker or Podman containers, configured from outside.

`spec` says what a container is to be, `limits` what it may use (both pure); an engine (`engine`, `docker_engine`,
`podman_engine`) makes and removes it; `host` is the Mininet node, which enters it with `enter`; `leftovers` finds
what crashed runs left behind.
"""

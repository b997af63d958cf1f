"""Moving containers that are an engine's own: Docker's and Podman's.

    driver.py     what is asked of an engine, and what it says of a container
    docker.py     Docker, by its daemon's API
    podman.py     Podman, by its command
    gate.py       an engine's restore that waits, everything ready, for its image
    image.py      an image that is restored stopped
    layer.py      the writable layer on its way
    criuconf.py   what runc has no option for
    cgroup.py     the freezer of a container's control group
    passage.py    one container on its way
    runtime.py    the runtime of a Migrator

See docs/engines.md for how a container moves.
"""

"""Checkpoint archives: checked, as OCI images, to and from a registry on this machine, and to Podman.

    names.py       what is in an archive, by name
    checkpoint.py  is this an archive, and safe to unpack?
    image.py       archive to image and back
    reference.py   HOST:PORT/NAME:TAG, on this machine
    registry.py    push and pull
    restore.py     podman container restore --import
    private.py     files that only their owner can read
    commands.py    `p4ferry checkpoint …`

An archive holds a program's memory, so it and all that is made of it has mode 0600, and is in nobody's sight before it
is whole.
"""

"""Builds the demos' images from the distribution's packages, and hands images to engines. Nothing is pulled.

recipes.py   which images there are, and what each runs
packages.py  mmdebstrap's output, reduced to what runs
own.py       images without a package: one C program, compiled here; an empty root
build.py     recipe and packages to layers in an OCI image layout; only what has changed
archives.py  one image as a tar that `podman load` or `docker load` reads
engines.py   those commands
__main__.py  scripts/images
"""

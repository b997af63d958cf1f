"""Container images and checkpoint archives, as files: no engine, no network host, nothing else of the project.

oci/      OCI images on disk: layouts, manifests, layers, and how a layer becomes a folder
images/   builds the demos' images from the distribution's packages
archive/  checkpoint archives: what is in them, as OCI images, to and from a registry on this machine
"""

"""OCI images on disk: pure leaves first, then what reads and writes files.

fields.py      typed values out of JSON documents
digests.py     sha256 digests, and copying with a digest and a bound
descriptor.py  what points to a blob
manifest.py    which blobs an image has; the index that lists images
config.py      what an image runs
compression.py gzip and zstd, bounded
tarcheck.py    is a tar safe to unpack?
layer.py       a layer's tar, the same bytes for the same files
layout.py      the folder that holds images
tree.py        a folder that files are put into without ever leaving it
unpack.py      an image's layers, as a folder
"""

"""A layer's bytes depend on its files and on nothing else."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import time

from hypothesis import given
from hypothesis import strategies as st

from containers.images.packages import nodes
from containers.oci import digests, layer
from containers.oci.layer import Node

NODES = (
    Node("usr/bin/tool", 0o755, b"#!/bin/sh\n"),
    Node("usr/bin/set-id", 0o4755, b"1"),
    layer.link("bin", "usr/bin"),
    Node("tmp", 0o1777),
    Node("var/lib/redis", 0o755, uid=101, gid=101),
    Node("usr/share/" + "long/" * 60 + "file", data=b"x" * 5000),
    Node("usr/share/ümlaut", data=b""),
)


def written(found: list[Node]) -> tuple[bytes, layer.Layer]:
    """Return a layer's bytes, and what is said of them."""
    target = io.BytesIO()
    described = layer.write(found, target, 1_735_689_600)
    return target.getvalue(), described


def test_the_same_files_give_the_same_bytes_in_any_order() -> None:
    """Neither the order in which files were found nor the time matters."""
    first, described = written(list(NODES))
    for seed in range(5):
        shuffled = list(NODES)
        random.Random(seed).shuffle(shuffled)
        again, same = written(shuffled)
        assert (again, same) == (first, described)
        time.sleep(0.3 if seed == 0 else 0)  # over a second's end, now and then
    assert described.descriptor.digest == digests.of(first)
    assert described.descriptor.size == len(first)
    assert described.diff_id == digests.of(gzip.decompress(first))


def test_entries_are_sorted_with_parents_and_one_time() -> None:
    """Numeric owners, no names, one time for all, parents before what is in them."""
    with tarfile.open(fileobj=io.BytesIO(written(list(NODES))[0])) as tar:
        found = tar.getmembers()
    names = [info.name for info in found]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert names[:3] == ["bin", "tmp", "usr"]
    assert {info.mtime for info in found} == {1_735_689_600}
    assert {(info.uname, info.gname) for info in found} == {("", "")}


@given(st.dictionaries(st.sampled_from(["a", "a/b", "a/b/c", "d", "e/f"]), st.binary(max_size=9)))
def test_what_is_written_is_read_back(files: dict[str, bytes]) -> None:
    """A layer that is taken from an image is what it was."""
    leaves = {path: data for path, data in files.items() if not any(p.startswith(f"{path}/") for p in files)}
    wanted = layer.tree(Node(path, data=data) for path, data in leaves.items())
    packed, _ = written(list(wanted.values()))
    assert nodes(io.BytesIO(packed)) == wanted


def test_a_difference_holds_what_is_new_or_changed() -> None:
    """The upper layer of two."""
    lower = layer.tree([Node("a/b", data=b"1"), Node("a/c", data=b"1")])
    upper = layer.tree([Node("a/b", data=b"1"), Node("a/c", data=b"2"), Node("d/e", data=b"3")])
    assert list(layer.difference(lower, upper)) == ["a/c", "d", "d/e"]

"""Manifests, indexes and configurations that others wrote: read, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containers.errors import ImageInvalid, ImageMissing
from containers.oci import config, descriptor, digests, layout, manifest
from containers.oci.config import Image, ImageConfig
from containers.oci.descriptor import Descriptor, Platform
from containers.oci.layout import Layout
from containers.oci.manifest import Index, Manifest

from .tars import image, member

DIGEST = digests.of(b"x")
LAYER = Descriptor(descriptor.LAYER_GZIP, DIGEST, 10, {"a": "b"})
MANIFEST = Manifest(Descriptor(descriptor.CONFIG, DIGEST, 2), (LAYER,), {"name": "value"})
IMAGE = Image(ImageConfig(("a",), ("b",), {"C": "d"}, "/e", "f"), (DIGEST,), created="2025-01-01T00:00:00Z")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
READERS: list[tuple[Callable[[bytes], Any], bytes]] = [
    (manifest.parse, manifest.render(MANIFEST)),
    (manifest.parse_index, manifest.render_index(Index((LAYER,)))),
    (config.parse, config.render(IMAGE)),
]


def test_what_is_written_is_read_back() -> None:
    """All three documents."""
    assert manifest.parse(manifest.render(MANIFEST)) == MANIFEST
    assert config.parse(config.render(IMAGE)) == IMAGE
    index = Index(
        (Descriptor(descriptor.MANIFEST, DIGEST, 1, {manifest.REF_NAME: "a"}, Platform("linux", "arm64")),)
    )
    assert manifest.parse_index(manifest.render_index(index)) == index


def test_go_writes_null_for_nothing() -> None:
    """As Docker's and Podman's configurations have it."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": None, "Cmd": ["a"], "Env": None, "WorkingDir": "", "User": None},
        "rootfs": {"type": "layers", "diff_ids": None},
    }
    assert config.parse(json.dumps(document).encode()).config == ImageConfig((), ("a",), {}, "/", "")


def put(document: Any, path: list[Any], value: Any) -> Any:
    """Replace one value in a document."""
    if not path:
        return value
    document[path[0]] = put(document[path[0]], path[1:], value)
    return document


def paths(document: Any) -> list[list[Any]]:
    """Return the ways to all values of a document."""
    found: list[list[Any]] = [[]]
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in items:
        found += [[key, *path] for path in paths(value)]
    return found


@given(st.sampled_from(READERS), st.data(), JSON)
def test_any_value_anywhere(
    reader: tuple[Callable[[bytes], Any], bytes], data: st.DataObject, value: Any
) -> None:
    """Whatever stands where, it is read or refused."""
    parse, good = reader
    document = json.loads(good)
    path = data.draw(st.sampled_from(paths(document)))
    try:
        parse(json.dumps(put(document, path, value)).encode())
    except ImageInvalid as ex:
        assert "\n" not in str(ex)


@given(st.sampled_from(READERS), st.binary(max_size=50))
def test_any_bytes(reader: tuple[Callable[[bytes], Any], bytes], data: bytes) -> None:
    """What is no document is refused."""
    with pytest.raises(ImageInvalid):
        reader[0](data)


DEFECTS: list[tuple[list[Any], Any, str]] = [
    (
        ["config", "digest"],
        "sha256:../../x",
        "the config of the manifest has 'sha256:../../x' where a sha256 digest",
    ),
    (["config", "digest"], "sha512:" + "0" * 128, "where a sha256 digest has to be"),
    (["config", "size"], -1, "the config of the manifest has no size 'size'"),
    (["config", "size"], True, "the config of the manifest has no size 'size'"),
    (
        ["layers", 0, "size"],
        1 << 60,
        "layer 1 of the manifest has 1152921504606846976 bytes, more than 68719476736",
    ),
    (
        ["layers", 0, "mediaType"],
        "text/plain",
        "layer 1 of the manifest has the media type 'text/plain', which is not",
    ),
    (["layers"], [{}] * 129, "the manifest has 129 'layers', more than 128"),
    (["mediaType"], descriptor.INDEX, "which is not a manifest's"),
    (["annotations"], {"a": 1}, "the manifest has a 'annotations' whose values are not all texts"),
    (["schemaVersion"], 1, "the manifest has the schema version 1, not 2"),
]


@pytest.mark.parametrize(("path", "value", "reason"), DEFECTS)
def test_one_defect(path: list[Any], value: Any, reason: str) -> None:
    """One sentence each."""
    document = put(json.loads(manifest.render(MANIFEST)), path, value)
    with pytest.raises(ImageInvalid) as caught:
        manifest.parse(json.dumps(document).encode())
    assert reason in str(caught.value)


@pytest.mark.parametrize("env", ["A", "=b", "A\0=b"])
def test_an_environment_has_names_and_values(env: str) -> None:
    """What execve could not take."""
    document = json.loads(config.render(IMAGE))
    document["config"]["Env"] = [env]
    with pytest.raises(ImageInvalid, match="is not NAME=VALUE"):
        config.parse(json.dumps(document).encode())


def test_an_index_of_machines(tmp_path: Path) -> None:
    """As registries hold images for several machines: the one for this machine is taken."""
    made = image(tmp_path, [member("a", b"1")])
    inner = made.resolve("localhost/test").descriptor
    other = Descriptor(inner.media_type, DIGEST, 5, platform=Platform("linux", "vax"))
    mine = Descriptor(inner.media_type, inner.digest, inner.size, platform=layout.here())
    made.tag("both:latest", made.write(manifest.render_index(Index((other, mine))), descriptor.INDEX))
    made.tag("other:latest", made.write(manifest.render_index(Index((other,))), descriptor.INDEX))
    assert made.resolve("both").descriptor.digest == inner.digest
    with pytest.raises(ImageMissing, match="for other machines only"):
        made.resolve("other")


def test_names_move_and_unused_blobs_go(tmp_path: Path) -> None:
    """A name belongs to one image; `prune` removes what no name leads to."""
    made = image(tmp_path, [member("a", b"1")])
    old = made.resolve("localhost/test").descriptor
    image(tmp_path, [member("a", b"2")])
    assert made.resolve("localhost/test").descriptor != old
    assert made.has(old)
    made.prune()
    assert not made.has(old)
    assert Layout.open(tmp_path).resolve("localhost/test").image.config == ImageConfig(cmd=("/bin/true",))


def test_layers_and_config_agree(tmp_path: Path) -> None:
    """As many layers as digests of their contents."""
    made = image(tmp_path, [member("a", b"1")])
    found = made.resolve("localhost/test")
    more = Manifest(found.manifest.config, found.manifest.layers * 2)
    made.tag("x:latest", made.write(manifest.render(more), descriptor.MANIFEST))
    with pytest.raises(ImageInvalid, match="has 2 layers, its config 1"):
        made.resolve("x")

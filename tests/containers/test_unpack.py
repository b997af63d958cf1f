"""An image becomes a folder: layers, whiteouts, and nothing outside the folder, whatever a layer says."""

from __future__ import annotations

import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containers.errors import ContainersError, ImageInvalid, ImageMissing, UnpackFailed
from containers.oci.config import ImageConfig
from containers.oci.unpack import unpack

from .tars import Member, device, hard, image, member

REFERENCE = "localhost/test:latest"


def unpacked(folder: Path, *layers: list[Member]) -> Path:
    """Unpack an image of these layers; beside the root is a file that nothing may touch."""
    (folder / "outside").write_text("untouched")
    image(folder / "layout", *layers)
    unpack(folder / "layout", REFERENCE, folder / "root")
    return folder / "root"


def listing(root: Path) -> dict[str, str]:
    """Return a tree as text: content of files, "/" for folders, "-> TARGET" for links."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[str(path.relative_to(root))] = "/"
        else:
            found[str(path.relative_to(root))] = path.read_text()
    return found


LAYERS: dict[str, tuple[list[list[Member]], dict[str, str]]] = {
    "a file in folders that have no entries": (
        [[member("a/b/c", b"1")]],
        {"a": "/", "a/b": "/", "a/b/c": "1"},
    ),
    "a leading ./ as tar writes it": ([[member("./"), member("./a", b"1")]], {"a": "1"}),
    "an upper layer's file": ([[member("a", b"1")], [member("a", b"2")]], {"a": "2"}),
    "a file instead of a folder": ([[member("a/b", b"1")], [member("a", b"2")]], {"a": "2"}),
    "a folder instead of a file": ([[member("a", b"1")], [member("a"), member("a/b", b"2")]], {"a": "/", "a/b": "2"}),
    "a folder instead of a link": ([[member("d"), member("a", link="d")], [member("a")]], {"d": "/", "a": "/"}),
    "a file instead of a link": ([[member("a", link="/etc/passwd")], [member("a", b"2")]], {"a": "2"}),
    "a whiteout": ([[member("a/b", b"1"), member("a/c", b"1")], [member("a/.wh.b", b"")]], {"a": "/", "a/c": "1"}),
    "a whiteout of a folder": ([[member("a/b/c", b"1")], [member("a/.wh.b", b"")]], {"a": "/"}),
    "a whiteout of nothing": ([[member("a", b"1")], [member("x/.wh.y", b"")]], {"a": "1"}),
    "a whiteout hides lower layers": ([[member("a", b"1")], [member("a", b"2"), member(".wh.a", b"")]], {"a": "2"}),
    "an opaque folder": (
        [[member("a/b", b"1"), member("a/c/d", b"1")], [member("a/e", b"2"), member("a/.wh..wh..opq", b"")]],
        {"a": "/", "a/e": "2"},
    ),
    "AUFS's own marks": (
        [[member("a", b"1")], [member(".wh..wh.plnk/1", b"2"), member(".wh..wh.aufs", b"")]],
        {"a": "1"},
    ),
    "a hard link": ([[member("a", b"1"), hard("b", "a")]], {"a": "1", "b": "1"}),
    "a hard link to a lower file": ([[member("a", b"1")], [hard("x/b", "./a")]], {"a": "1", "x": "/", "x/b": "1"}),
    "a hard link to itself": ([[member("a", b"1"), hard("a", "a")]], {"a": "1"}),
    "through a relative link": (
        [[member("usr/bin"), member("bin", link="usr/bin")], [member("bin/sh", b"1")]],
        {"usr": "/", "usr/bin": "/", "bin": "-> usr/bin", "usr/bin/sh": "1"},
    ),
    "through an absolute link, which begins at the root": (
        [[member("a", link="/b")], [member("a/c", b"1")]],
        {"a": "-> /b", "b": "/", "b/c": "1"},
    ),
    "through a link above the root, which stops there": (
        [[member("a", link="../../../..")], [member("a/outside", b"1")]],
        {"a": "-> ../../../..", "outside": "1"},
    ),
    "device nodes below /dev are left out": (
        [[member("dev"), device("dev/null", 1, 3)]],
        {"dev": "/"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers(tmp_path: Path, name: str) -> None:
    """Layers lie one over the other as the specification says."""
    layers, wanted = LAYERS[name]
    root = unpacked(tmp_path, *layers)
    assert listing(root) == wanted
    assert (tmp_path / "outside").read_text() == "untouched"


BAD: dict[str, tuple[list[Member], str]] = {
    "absolute": ([member("/etc/x", b"")], "/etc/x is an absolute path"),
    "dots": ([member("a/../../outside", b"")], 'a/../../outside has ".." in its path'),
    "link target": ([hard("a", "../outside")], 'a is a hard link to ../outside, which has ".." in its path'),
    "absolute link target": ([hard("a", "/etc/passwd")], "a is a hard link to /etc/passwd, which is an absolute path"),
    "link to nothing": ([hard("a", "b")], "a is a hard link to b, which is no file of the image"),
    "link to a folder": ([member("b"), hard("a", "b")], "a is a hard link to b, which is no file of the image"),
    "hard link out through a link": (
        [member("up", link="/.."), hard("a", "up/outside")],
        "a is a hard link to up/outside, which is no file of the image",
    ),
    "device": ([member("a", kind=tarfile.BLKTYPE)], "a is a device node"),
    "device that is not one of the usual": ([member("dev/sda", kind=tarfile.BLKTYPE)], "dev/sda is a device node"),
    "device of another number": ([device("dev/null", 8, 0)], "dev/null is a device node"),
    "through a file": ([member("a", b""), member("a/b", b"")], "a/b leads through something that is no folder"),
    "circle": ([member("a", link="b"), member("b", link="a"), member("a/c", b"")], "a/c leads through too many links"),
    "no name": ([member(".wh.", b"")], ".wh. is a whiteout of no file"),
    "whiteout of the folder above": ([member("a/.wh...", b"")], "a/.wh... is a whiteout of no file"),
    "long": ([member("x" * 256, b"")], "has too long a name"),
    "type": ([member("a", kind=b"Z")], "a is of the unknown type b'Z'"),
    "not printable": ([member("/\n", b"")], r"'/\n' is an absolute path"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path: Path, name: str) -> None:
    """Each defect has its sentence, and leaves neither a file nor a changed one."""
    members, reason = BAD[name]
    with pytest.raises(ImageInvalid) as caught:
        unpacked(tmp_path, [member("first", b"1"), *members])
    assert str(caught.value).startswith("layer 1 of the image")
    assert str(caught.value).endswith(reason)
    assert list((tmp_path / "root").iterdir()) == []
    assert (tmp_path / "outside").read_text() == "untouched"


def test_config_and_modes(tmp_path: Path) -> None:
    """What the image runs is returned; modes and times are the layer's."""
    runs = ImageConfig(("python3",), ("-c", "pass"), {"A": "1=2"}, "/srv", "daemon")
    image(tmp_path / "layout", [member("d", mode=0o500), member("d/f", b"", mode=0o4711)], runs=runs)
    assert unpack(tmp_path / "layout", "localhost/test", tmp_path / "root") == runs
    file = (tmp_path / "root" / "d" / "f").stat()
    assert (stat.S_IMODE(file.st_mode), file.st_mtime) == (0o4711, 1_700_000_000)
    folder = (tmp_path / "root" / "d").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_mtime) == (0o500, 1_700_000_000)
    (tmp_path / "root" / "d").chmod(0o700)


def test_a_blob_with_another_content_is_refused(tmp_path: Path) -> None:
    """Size and digest are checked before anything is made."""
    layout = image(tmp_path / "layout", [member("a", b"1")])
    blob = layout.blob(layout.resolve(REFERENCE).manifest.layers[0].digest)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ImageInvalid, match="has another content than its name says"):
        unpack(tmp_path / "layout", REFERENCE, tmp_path / "root")
    blob.write_bytes(data + b"x")
    with pytest.raises(ImageInvalid, match=r"has \d+ bytes instead of \d+"):
        unpack(tmp_path / "layout", REFERENCE, tmp_path / "root")
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(ImageInvalid, match="cannot be read"):
        unpack(tmp_path / "layout", REFERENCE, tmp_path / "root")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """No layout, no such image, a folder that is in use."""
    with pytest.raises(ImageMissing, match="is no OCI image layout"):
        unpack(tmp_path, REFERENCE, tmp_path / "root")
    image(tmp_path / "layout", [member("a", b"1")])
    with pytest.raises(ImageMissing, match=r"has no image 'redis' \(it has: localhost/test:latest\)"):
        unpack(tmp_path / "layout", "redis", tmp_path / "root")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mine").touch()
    with pytest.raises(UnpackFailed, match="is not empty"):
        unpack(tmp_path / "layout", REFERENCE, tmp_path / "root")
    assert (tmp_path / "root" / "mine").exists()


NAMES = st.sampled_from(
    ["a", "b", "a/b", "b/a", "a/b/c", "../x", "/x", ".", "a/..", ".wh.a", "a/.wh.b", ".wh..wh..opq"]
)
TARGETS = st.sampled_from(["a", "b", "a/b", "..", "../..", "/", "/a", "../../outside", "/../outside", "."])
MEMBERS = st.one_of(
    st.builds(member, NAMES, st.just(b"x")),
    st.builds(member, NAMES),
    st.builds(lambda name, target: member(name, link=target), NAMES, TARGETS),
    st.builds(hard, NAMES, TARGETS),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(st.lists(MEMBERS, max_size=6), min_size=1, max_size=3))
def test_nothing_leaves_the_folder(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[Member]]
) -> None:
    """Any mixture of links, whiteouts and dots is unpacked inside, or refused; never anything else."""
    folder = tmp_path_factory.mktemp("case")
    try:
        root = unpacked(folder, *layers)
    except ContainersError:
        root = folder / "root"
        assert list(root.iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["layout", "outside", "root"]
    assert (folder / "outside").read_text() == "untouched"
    assert (folder / "outside").stat().st_nlink == 1

"""Checkpoint archives are checked before anything is unpacked: each defect has its sentence."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containers.archive import checkpoint, image, names
from containers.archive.checkpoint import Limits
from containers.errors import ArchiveInvalid, ContainersError, ImageInvalid
from containers.oci import config, descriptor, digests, manifest
from containers.oci.compression import Compression
from containers.oci.config import Image, ImageConfig
from containers.oci.layout import Layout
from containers.oci.manifest import Manifest

from .checkpoints import archive, members
from .tars import Member, device, hard, member, tar


def check(data: bytes, tmp_path: Path, limits: Limits | None = None) -> checkpoint.Checkpoint:
    """Check the bytes of an archive."""
    return checkpoint.validate(io.BytesIO(data), "it", tmp_path, limits)


def test_a_good_archive(tmp_path: Path) -> None:
    """What it says of itself."""
    plain = tar(members())
    found = check(plain, tmp_path)
    assert (found.name, found.image, found.compression) == (
        "counter",
        "localhost/p4ferry/app:latest",
        Compression.NONE,
    )
    packed = check(gzip.compress(plain), tmp_path)
    assert (packed.compression, packed.diff_id) == (Compression.GZIP, found.diff_id)


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed (apt-get install zstd)")
def test_zstd(tmp_path: Path) -> None:
    """Podman packs with zstd unless told otherwise."""
    plain = tar(members())
    (tmp_path / "plain").write_bytes(plain)
    packed = subprocess.run(["zstd", "-c", str(tmp_path / "plain")], capture_output=True, check=True).stdout
    (tmp_path / "packed").write_bytes(packed)
    with (tmp_path / "packed").open("rb") as source:
        assert checkpoint.validate(source, "it", tmp_path).compression is Compression.ZSTD
    (tmp_path / "cut").write_bytes(packed[:-20])
    with (
        (tmp_path / "cut").open("rb") as source,
        pytest.raises(ArchiveInvalid, match="its zstd stream cannot be"),
    ):
        checkpoint.validate(source, "it", tmp_path)
    with (
        (tmp_path / "packed").open("rb") as source,
        pytest.raises(ArchiveInvalid, match="expands to more than 100"),
    ):
        checkpoint.validate(source, "it", tmp_path, Limits(size=100))


def more(*extra: Member) -> list[Member]:
    """Add members to a good archive."""
    return [*members(), *extra]


def inner(*extra: Member) -> list[Member]:
    """Put a rootfs-diff.tar of these members into a good archive."""
    return [item for item in members() if item[0].name != "rootfs-diff.tar"] + [
        member("rootfs-diff.tar", tar(extra))
    ]


def tmpfs(*extra: Member) -> list[Member]:
    """Put a tmpfs of these members into a good archive."""
    return more(member("checkpoint/tmpfs-dev-42.tar.gz.img", gzip.compress(tar(extra))))


def sparse(name: str) -> Member:
    """Describe a file with a hole, as GNU tar writes it."""
    info, _ = member(name, bytes(512))
    info.type = tarfile.GNUTYPE_SPARSE
    return info, bytes(512)


DEFECTS: dict[str, tuple[list[Member], str]] = {
    "no config": (members(config_dump=None), "it: config.dump: no such file"),
    "no spec": (members(spec_dump=None), "it: spec.dump: no such file"),
    "no images": (members(checkpoint__inventory_img=None), "it: checkpoint/inventory.img: no such file"),
    "a folder instead": (
        [*members(spec_dump=None), member("spec.dump")],
        "it: spec.dump: no such file",
    ),
    "nothing": ([], "it: config.dump: no such file"),
    "config is no JSON": (members(config_dump=b"{"), "it: config.dump is not JSON"),
    "config is no object": (members(config_dump=b"[]"), "it: config.dump is not a JSON object"),
    "deep config": (members(config_dump=b"[" * 100_000), "it: config.dump is not JSON"),
    "no name": (members(config_dump=b"{}"), "it: config.dump has no usable container name"),
    "bad name": (members(config_dump=b'{"name": "../x"}'), "it: config.dump has no usable container name"),
    "spec is no JSON": (members(spec_dump=b"\xff"), "it: spec.dump is not JSON"),
    "absolute": (more(member("/etc/cron.d/x", b"")), "it: /etc/cron.d/x is an absolute path"),
    "dots": (more(member("checkpoint/../../x", b"")), 'it: checkpoint/../../x has ".." in its path'),
    "dots at the end": (more(member("checkpoint/..")), 'it: checkpoint/.. has ".." in its path'),
    "absolute link": (more(member("a", link="/etc")), "it: a is a link to /etc, which leads outside"),
    "link above": (more(member("a", link="..")), "it: a is a link to .., which leads outside"),
    "link above, deeper": (
        more(member("checkpoint/a", link="../../x")),
        "it: checkpoint/a is a link to ../../x, which leads outside",
    ),
    "link over another link": (
        more(member("d"), member("d/up", link="../checkpoint"), member("d/l", link="up/../../etc")),
        "it: d/l is a link to up/../../etc, which leads outside",
    ),
    "below a link": (
        more(member("a", link="checkpoint"), member("a/x", b"")),
        "it: a/x lies below a, which is no folder",
    ),
    "below a later link": (
        more(member("a/x", b""), member("a", link="checkpoint")),
        "it: a/x lies below a, which is no folder",
    ),
    "below a file": (more(member("a", b""), member("a/x", b"")), "it: a/x lies below a, which is no folder"),
    "hard link outside": (
        more(hard("a", "../etc/passwd")),
        'it: a is a hard link to ../etc/passwd, which has ".." in its path',
    ),
    "absolute hard link": (
        more(hard("a", "/etc/passwd")),
        "it: a is a hard link to /etc/passwd, which is an absolute path",
    ),
    "hard link to nothing": (more(hard("a", "b")), "it: a is a hard link to b, which is no file in it"),
    "hard link to a link": (
        more(member("b", link="checkpoint"), hard("a", "b")),
        "it: a is a hard link to b, which is no file in it",
    ),
    "device": (more(member("a", kind=tarfile.BLKTYPE)), "it: a is a device node"),
    "pipe": (more(member("a", kind=tarfile.FIFOTYPE)), "it: a is a named pipe"),
    "unknown type": (more(member("a", kind=b"Z")), "it: a is of the unknown type b'Z'"),
    "twice": (more(member("./config.dump", b"{}")), "it: config.dump is there twice"),
    "inner absolute": (inner(member("/x", b"")), "it: rootfs-diff.tar: /x is an absolute path"),
    "inner dots": (inner(member("a/../../x", b"")), 'it: rootfs-diff.tar: a/../../x has ".." in its path'),
    "inner, through a link": (
        inner(member("a", link="/etc"), member("a/passwd", b"")),
        "it: rootfs-diff.tar: a/passwd lies below a, which is no folder",
    ),
    "inner hard link": (
        inner(member("a", link="/etc/passwd"), hard("b", "a")),
        "it: rootfs-diff.tar: b is a hard link to a, which is no file in it",
    ),
    "inner device": (inner(member("a", kind=tarfile.CHRTYPE)), "it: rootfs-diff.tar: a is a device node"),
    "inner twice": (
        inner(member("a", b""), member("a", link="/etc")),
        "it: rootfs-diff.tar: a is there twice",
    ),
    "inner is no tar": (
        members(**{"rootfs-diff_tar": b"x" * 1024}),
        "it: rootfs-diff.tar is damaged: invalid header",
    ),
    "inner is empty": (members(**{"rootfs-diff_tar": b""}), "it: rootfs-diff.tar is damaged: empty file"),
    "a volume": (
        more(member("volumes/v.tar", tar([member("../x", b"")]))),
        'it: volumes/v.tar: ../x has ".." in its path',
    ),
    "tmpfs dots": (
        tmpfs(member("../x", b"")),
        'it: checkpoint/tmpfs-dev-42.tar.gz.img: ../x has ".." in its path',
    ),
    "tmpfs, a disk": (
        tmpfs(device("./null", 8, 0)),
        "it: checkpoint/tmpfs-dev-42.tar.gz.img: ./null is a device node",
    ),
    "tmpfs, not packed": (
        more(member("checkpoint/tmpfs-dev-42.tar.gz.img", tar([]))),
        "it: checkpoint/tmpfs-dev-42.tar.gz.img is not packed with gzip",
    ),
    "sparse": (more(sparse("a")), "it: a is of the unknown type b'S'"),
    "deleted is no list": (members(deleted_files=b"{}"), "it: deleted.files is not a list of paths"),
    "deleted is no text": (members(deleted_files=b"[1]"), "it: deleted.files is not a list of paths"),
    "deleted above": (
        members(deleted_files=b'["/../etc"]'),
        'it: deleted.files: /../etc has ".." in its path',
    ),
    "deleted root": (members(deleted_files=b'["/"]'), "it: deleted.files: / is the root itself"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_one_defect(tmp_path: Path, name: str) -> None:
    """One defect, one sentence."""
    found, message = DEFECTS[name]
    with pytest.raises(ArchiveInvalid) as caught:
        check(tar(found), tmp_path)
    assert str(caught.value) == message


GOOD: dict[str, list[Member]] = {
    "pre-copy's link to its parent": more(member("checkpoint/parent", link="../pre-checkpoint")),
    "a link further down": more(member("d/e/l", link="../../checkpoint/inventory.img")),
    "a hard link": more(hard("a", "config.dump")),
    "Go's empty list": members(deleted_files=b"null"),
    "no difference": members(**{"rootfs-diff_tar": None, "deleted_files": None}),
    "the container's own links": inner(member("a", link="../../../x"), member("b", link="/etc")),
    "the container's own pipe": inner(member("a", kind=tarfile.FIFOTYPE)),
    "/dev of a container": tmpfs(member("."), device("./null", 1, 3), member("./fd", link="/proc/self/fd")),
    "a hole in a tmpfs": tmpfs(sparse("a")),
    "a root entry": [member("."), *members()],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_allowed(tmp_path: Path, name: str) -> None:
    """What real archives have."""
    assert check(tar(GOOD[name]), tmp_path).name == "counter"


def test_bounds(tmp_path: Path) -> None:
    """Size, count, and size of documents; a bomb is not expanded to its end."""
    with pytest.raises(ArchiveInvalid, match="it has more than 3 members"):
        check(tar(members()), tmp_path, Limits(members=3))
    with pytest.raises(ArchiveInvalid, match="it expands to more than 1000 bytes"):
        check(tar(members()), tmp_path, Limits(size=1000))
    with pytest.raises(ArchiveInvalid, match=r"it: config.dump has \d+ bytes, more than 9"):
        check(tar(members()), tmp_path, Limits(document=9))
    bomb = gzip.compress(bytes(50 << 20))
    with pytest.raises(ArchiveInvalid, match="it expands to more than 1000000 bytes"):
        check(bomb, tmp_path, Limits(size=1_000_000))
    assert list(tmp_path.iterdir()) == []


def with_size(text: bytes) -> Callable[[bytes], bytes]:
    """Write something else into the first header's size, with the right checksum."""

    def damage(data: bytes) -> bytes:
        header = bytearray(data[:512])
        header[124:136] = text
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + data[512:]

    return damage


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no end mark": (
        lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
        "it is cut off: it has no",
    ),
    "half": (lambda data: data[: len(data) // 2 // 512 * 512 + 7], "it is damaged: unexpected end of data"),
    "a header": (
        lambda data: data[:1024] + b"\x01" * 512 + data[1536:],
        "it is damaged: no header at byte 1024",
    ),
    "empty": (lambda data: b"", "it is damaged: empty file"),
    "text": (lambda data: b"hello" * 1000, "it is damaged: invalid header"),
    "gzip cut off": (lambda data: gzip.compress(data)[:-9], "it is cut off: its gzip stream has no end"),
    "gzip and more": (
        lambda data: gzip.compress(data) + b"x" * 20,
        "it is damaged: its gzip stream cannot be read",
    ),
    "gzip's checksum": (
        lambda data: gzip.compress(data)[:-8] + bytes(8),
        "it is damaged: its gzip stream cannot",
    ),
    "a negative size": (with_size(b"\xff" * 11 + b"\x00"), "it: config.dump has a negative size"),
    "an endless size": (with_size(b"\x80" + b"\x7f" * 11), "it holds more than 68719476736 bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damages(tmp_path: Path, name: str) -> None:
    """Bytes that are not an archive, or not all of one."""
    damage, message = DAMAGES[name]
    with pytest.raises(ArchiveInvalid) as caught:
        check(damage(tar(members())), tmp_path)
    assert str(caught.value).startswith(message)


def test_padded_gzip_is_fine(tmp_path: Path) -> None:
    """Several members, and zeros behind them, as gzip's manual allows."""
    data = tar(members())
    packed = gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(512)
    assert check(packed, tmp_path).name == "counter"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes of headers replaced at random: accepted or refused, never anything else."""
    original = bytearray(tar(more(member("long/" * 50 + "x", b"y"), hard("a", "config.dump"))))
    for _ in range(data.draw(st.integers(1, 4))):
        block = data.draw(st.integers(0, len(original) // 512 - 1)) * 512
        at = block + data.draw(st.integers(0, 511))
        original[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # get past the checksum
            header = original[block : block + 512]
            header[148:156] = b" " * 8
            original[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    try:
        check(bytes(original), tmp_path_factory.getbasetemp())
    except ArchiveInvalid as ex:
        assert str(ex).startswith("it")
        assert "\n" not in str(ex)


def mode(path: Path) -> int:
    """Return a file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_an_archive_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """Byte for byte; the image is its owner's only, and has the annotation."""
    source = archive(tmp_path / "checkpoint.tar.gz")
    source.chmod(0o644)
    assert image.build(source, tmp_path / "image").name == "counter"
    stored = image.stored(tmp_path / "image")
    assert stored.found.manifest.annotations == {"io.kubernetes.cri-o.annotations.checkpoint.name": "counter"}
    assert len(stored.found.manifest.layers) == 1
    assert {
        mode(path) for path in [tmp_path / "image", *(tmp_path / "image").rglob("*")] if path.is_dir()
    } == {0o700}
    assert {mode(path) for path in (tmp_path / "image").rglob("*") if path.is_file()} == {0o600}
    image.extract(tmp_path / "image", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == source.read_bytes()
    assert mode(tmp_path / "again.tar.gz") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.tar.gz", "checkpoint.tar.gz", "image"]


def test_the_same_archive_gives_the_same_image(tmp_path: Path) -> None:
    """So that a push sends nothing twice."""
    source = archive(tmp_path / "a")
    image.build(source, tmp_path / "one")
    image.build(source, tmp_path / "two")
    assert (
        image.stored(tmp_path / "one").found.descriptor.digest
        == image.stored(tmp_path / "two").found.descriptor.digest
    )


def test_nothing_is_overwritten_and_nothing_left(tmp_path: Path) -> None:
    """Neither an image nor an archive; a bad archive leaves nothing behind."""
    source = archive(tmp_path / "a")
    image.build(source, tmp_path / "image")
    with pytest.raises(ContainersError, match="image exists already; it is not overwritten"):
        image.build(source, tmp_path / "image")
    with pytest.raises(ContainersError, match="a exists already; it is not overwritten"):
        image.extract(tmp_path / "image", source)
    bad = archive(tmp_path / "bad", more(member("/x", b"")))
    with pytest.raises(ArchiveInvalid, match="/x is an absolute path"):
        image.build(bad, tmp_path / "other")
    with pytest.raises(ArchiveInvalid, match="missing: no such file or directory"):
        image.build(tmp_path / "missing", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad", "image"]


def test_an_image_from_elsewhere_is_checked_again(tmp_path: Path) -> None:
    """Its layer may hold anything, whatever its digests say."""

    def made(name: str, data: bytes, annotation: str | None, layers: int = 1) -> Path:
        layout = Layout.create(tmp_path / name, private=True)
        layer = layout.write(data, descriptor.LAYER_TAR)
        written = Image(ImageConfig(), (digests.of(data),) * layers)
        config_blob = layout.write(config.render(written), descriptor.CONFIG)
        annotations = {names.ANNOTATION: annotation} if annotation else {}
        found = layout.write(
            manifest.render(Manifest(config_blob, (layer,) * layers, annotations)), descriptor.MANIFEST
        )
        layout.tag("x", found)
        return tmp_path / name

    def refused(path: Path) -> str:
        with pytest.raises(ContainersError) as caught:
            image.extract(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value).removeprefix(f"{path}")

    assert refused(made("bad", tar(more(member("../x", b""))), "counter")) == ': ../x has ".." in its path'
    assert refused(made("plain", tar(members()), None)).startswith(" is no checkpoint: it has no annotation")
    assert refused(made("two", tar(members()), "counter", 2)) == " is no checkpoint: it has 2 layers, not one"
    (blob,) = (
        p
        for p in made("changed", tar(members()), "counter").rglob("*")
        if p.is_file() and p.stat().st_size > 9000
    )
    blob.write_bytes(bytes(reversed(blob.read_bytes())))
    with pytest.raises(ImageInvalid, match="has another content than its name says"):
        image.extract(tmp_path / "changed", tmp_path / "out")

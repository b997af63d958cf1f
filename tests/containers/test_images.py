"""Images from recipes: what is built, what is left as it is, and what an engine gets."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from containers.errors import BuildFailed, EngineFailed
from containers.images import __main__ as command
from containers.images import archives, engines
from containers.images.archives import Format
from containers.images.build import Builder
from containers.images.engines import Engine
from containers.images.packages import clean, nodes
from containers.images.recipes import RECIPES, Recipe
from containers.oci.layer import Node, link
from containers.oci.layout import Layout
from containers.oci.unpack import unpack

from .tars import hard, member, tar

ECHO, HTTP, PRODUCER, APP, REDIS, PAUSE, HOST = RECIPES


class Distribution:
    """A distribution without a mirror: a package is one file that holds its version."""

    suite = "bookworm"

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.version = "1"

    def tree(self, names: Sequence[str]) -> dict[str, Node]:
        """Return the packages' files."""
        self.asked.append(tuple(names))
        return clean(
            [
                Node("bin/sh", 0o755, b"sh"),
                *(Node(f"usr/bin/{n}", 0o755, self.version.encode()) for n in names),
            ]
        )


class Place:
    """Where a test builds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "images"
        self.apps = folder / "apps"
        self.apps.mkdir()
        (self.apps / "tcp_echo.py").write_text("print(1)\n")
        self.distribution = Distribution()

    def build(self, *recipes: Recipe, refresh: bool = False) -> list[str]:
        """Build; returns what has changed."""
        builder = Builder(self.path, self.distribution, self.apps, say=lambda text: None, refresh=refresh)
        return builder.build(recipes)

    def layers(self, recipe: Recipe) -> list[str]:
        """Return the digests of an image's layers."""
        return [str(item.digest) for item in Layout.open(self.path).resolve(recipe.reference).manifest.layers]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return an empty place."""
    return Place(tmp_path)


def test_names_and_commands() -> None:
    """The five of the issue and those for pods and switches; an engine would look for none of them elsewhere."""
    names = {"tcp-echo", "redis", "app", "producer", "http-server", "pause", "host"}
    assert {recipe.name for recipe in RECIPES} == names
    assert ECHO.reference == "localhost/p4ferry/tcp-echo:latest"
    assert ECHO.runs.argv == ("python3", "/srv/p4ferry/apps/tcp_echo.py", "server")
    apps = Path(__file__).resolve().parents[2]
    for recipe in RECIPES:
        if recipe.has_programs:
            assert (apps / recipe.runs.entrypoint[1].removeprefix("/srv/p4ferry/")).exists()


def test_python_images_share_their_layers(place: Place) -> None:
    """The packages are fetched once for each layer, and stored once."""
    assert len(place.build(*RECIPES)) == 7
    assert place.distribution.asked == [
        ("busybox", "python3"),
        ("busybox", "python3", "python3-redis"),
        ("busybox", "redis-tools"),
    ]
    echo, http, producer, app = (place.layers(recipe) for recipe in (ECHO, HTTP, PRODUCER, APP))
    assert echo == http
    assert producer == app
    assert producer[0] == echo[0]
    assert producer[-1] == echo[-1]
    assert len(producer) == 3


def test_an_upper_layer_of_packages_holds_only_its_own(place: Place) -> None:
    """What is in the lower layer is not in it again."""
    place.build(PRODUCER)
    layout = Layout.open(place.path)
    with layout.open_blob(layout.resolve(PRODUCER.reference).manifest.layers[1]) as source:
        assert list(nodes(source)) == ["usr", "usr/bin", "usr/bin/python3-redis"]


def test_images_without_packages(place: Place, tmp_path: Path) -> None:
    """An empty root, and one program, which ends when it is asked to; each is built once."""
    assert place.build(PAUSE, HOST) == [PAUSE.reference, HOST.reference]
    assert place.distribution.asked == []
    assert place.build(PAUSE, HOST) == []
    unpack(place.path, HOST.reference, tmp_path / "host")
    assert (tmp_path / "host" / "lib64").readlink() == Path("usr/lib64")
    assert unpack(place.path, PAUSE.reference, tmp_path / "root").argv == ("/pause",)
    with subprocess.Popen([tmp_path / "root" / "pause"]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.terminate()
        assert process.wait(5) == 0


def test_nothing_is_done_when_all_is_up_to_date(place: Place) -> None:
    """A second build neither fetches nor writes."""
    place.build(*RECIPES)
    place.distribution.asked.clear()
    before = {path: path.stat().st_mtime_ns for path in place.path.rglob("*") if path.name != ".lock"}
    assert place.build(*RECIPES) == []
    assert place.distribution.asked == []
    assert {path: path.stat().st_mtime_ns for path in place.path.rglob("*") if path.name != ".lock"} == before


def test_a_changed_program_costs_its_layer_only(place: Place) -> None:
    """No package is fetched for it, and what nobody has any more is removed."""
    place.build(ECHO)
    base, old = place.layers(ECHO)
    (place.apps / "tcp_echo.py").write_text("print(2)\n")
    place.distribution.asked.clear()
    assert place.build(ECHO) == [ECHO.reference]
    assert place.distribution.asked == []
    assert place.layers(ECHO)[0] == base
    assert old.removeprefix("sha256:") not in {path.name for path in place.path.rglob("*")}


def test_refresh_looks_for_newer_packages(place: Place) -> None:
    """The same versions give the same image, others another one."""
    place.build(ECHO)
    assert place.build(ECHO, refresh=True) == []
    place.distribution.version = "2"
    assert place.build(ECHO, refresh=True) == [ECHO.reference]


def test_two_builds_give_the_same_digests(tmp_path: Path) -> None:
    """On another day, in another folder."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = Place(tmp_path / "one"), Place(tmp_path / "two")
    one.build(*RECIPES)
    two.build(*reversed(RECIPES))
    names = [{name: item.digest for name, item in Layout.open(p.path).names().items()} for p in (one, two)]
    assert names[0] == names[1]


def test_a_damaged_layer_is_built_again(place: Place) -> None:
    """A blob that is cut off does not count as being there."""
    place.build(ECHO)
    layout = Layout.open(place.path)
    layout.blob(layout.resolve(ECHO.reference).manifest.layers[0].digest).write_bytes(b"")
    place.build(ECHO)
    unpack(place.path, ECHO.reference, place.path.parent / "root")


def test_an_image_unpacks_to_what_runs(place: Place, tmp_path: Path) -> None:
    """Merged /usr, accounts, and the programs."""
    place.build(ECHO)
    runs = unpack(place.path, ECHO.reference, tmp_path / "root")
    assert runs == ECHO.runs
    root = tmp_path / "root"
    assert (root / "bin").readlink() == Path("usr/bin")
    assert (root / "usr/bin/sh").read_text() == "sh"
    assert (root / "usr/bin/ls").readlink() == Path("busybox")
    assert (root / "etc/passwd").read_text().startswith("root:x:0:0:")
    assert (root / "srv/p4ferry/apps/tcp_echo.py").read_text() == "print(1)\n"


CLEANED = [
    ("lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libc.so.6"),
    ("usr/share/doc/libc6/copyright", "usr/share/doc/libc6/copyright"),
    ("usr/share/doc/libc6/changelog.gz", None),
    ("usr/share/man/man1/ls.1.gz", None),
    ("usr/share/locale/de/LC_MESSAGES/x.mo", None),
    ("usr/lib/python3.11/json/__init__.py", "usr/lib/python3.11/json/__init__.py"),
    ("usr/lib/python3.11/test/support.py", None),
    ("usr/lib/python3.11/__pycache__/os.cpython-311.pyc", None),
    ("var/lib/dpkg/status", None),
    ("var/cache/apt/pkgcache.bin", None),
    ("etc/apt/sources.list", None),
    ("dev/null", None),
    ("etc/hostname", None),  # mmdebstrap copies the building machine's
    ("etc/resolv.conf", None),
]


@pytest.mark.parametrize(("path", "kept"), CLEANED)
def test_what_is_kept_of_packages(path: str, kept: str | None) -> None:
    """What no container needs is left out."""
    found = {name for name, node in clean([Node(path, data=b"x")]).items() if node.data == b"x"}
    assert found == ({kept} if kept else set())


def test_hard_links_of_packages_become_files() -> None:
    """As perl's and git's packages have them."""
    found = nodes(io.BytesIO(tar([member("./a", b"1"), hard("./b", "./a"), member("./c", link="a")])))
    assert (found["b"].data, found["c"]) == (b"1", link("c", "a"))
    with pytest.raises(BuildFailed, match=r"\./b is a hard link to \./a, which is missing"):
        nodes(io.BytesIO(tar([hard("./b", "./a")])))


def test_archives(place: Place) -> None:
    """Both formats hold every blob once, under the name that their readers look for."""
    place.build(ECHO)
    layout = Layout.open(place.path)
    found = layout.resolve(ECHO.reference)
    for format in Format:
        target, again = io.BytesIO(), io.BytesIO()
        archives.write(layout, ECHO.reference, format, target)
        archives.write(layout, ECHO.reference, format, again)
        assert target.getvalue() == again.getvalue()
        with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as written:
            names = written.getnames()
            assert len(names) == len(set(names))
            if format is Format.DOCKER:
                [listed] = json.load(written.extractfile("manifest.json"))  # type: ignore[arg-type]
                assert listed["RepoTags"] == [ECHO.reference]
                assert {listed["Config"], *listed["Layers"]} <= set(names)
            else:
                [listed] = json.load(written.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
                assert listed["annotations"]["org.opencontainers.image.ref.name"] == ECHO.reference
                assert f"blobs/sha256/{found.descriptor.digest.hex}" in names


def test_an_engine_that_has_the_image_is_left_alone(place: Place) -> None:
    """Its id is the digest of the configuration."""
    place.build(ECHO)
    id = str(Layout.open(place.path).resolve(ECHO.reference).manifest.config.digest)
    calls: list[Sequence[str]] = []

    def engine(has: str | None, status: int) -> engines.Runner:
        def run(asked: Sequence[str]) -> subprocess.CompletedProcess[str]:
            calls.append(asked)
            if asked[1] == "image":
                return subprocess.CompletedProcess(asked, 0 if has else 1, f"{has}\n", "")
            assert tarfile.is_tarfile(asked[-1])
            return subprocess.CompletedProcess(asked, status, "", "warning\nno space left\n")

        return run

    assert not engines.load(place.path, ECHO.reference, Engine.DOCKER, engine(id, 0))
    assert not engines.load(place.path, ECHO.reference, Engine.PODMAN, engine(id.removeprefix("sha256:"), 0))
    assert engines.load(place.path, ECHO.reference, Engine.PODMAN, engine(None, 0))
    assert engines.load(place.path, ECHO.reference, Engine.DOCKER, engine("sha256:other", 0))
    with pytest.raises(
        EngineFailed, match="docker does not take localhost/p4ferry/tcp-echo:latest: no space left"
    ):
        engines.load(place.path, ECHO.reference, Engine.DOCKER, engine(None, 1))
    assert not [asked for asked in calls if "pull" in asked]


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One sentence, and a status that is not zero."""
    assert command.main(["--list", "--output", str(tmp_path)]) == 1
    assert "is no OCI image layout" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command.main(["--archive", "x.tar"])
    assert caught.value.code == 2

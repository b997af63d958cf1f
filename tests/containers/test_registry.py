"""Push and pull: to this machine only, and nothing that a registry says is believed unchecked."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from containers.archive import image, reference
from containers.archive.checkpoint import Limits
from containers.archive.registry import Registry
from containers.errors import ContainersError, ImageInvalid, RegistryFailed
from containers.oci import digests

from .checkpoints import archive

WHERE = "127.0.0.1:5000/checkpoints/counter:one"

REFERENCES = [
    ("localhost:5001/a:b", "http://127.0.0.1:5001", "a", "b"),
    ("127.0.0.1:5001/a/b-c_d.e", "http://127.0.0.1:5001", "a/b-c_d.e", "latest"),
    ("127.9.9.9/a", "http://127.9.9.9:5000", "a", "latest"),
    ("[::1]:80/a", "http://[::1]:80", "a", "latest"),
]


@pytest.mark.parametrize(("text", "url", "name", "tag"), REFERENCES)
def test_references(text: str, url: str, name: str, tag: str) -> None:
    """Loopback, in all its spellings."""
    found = reference.parse(text)
    assert (found.url, found.name, found.tag) == (url, name, tag)


@pytest.mark.parametrize(
    "host",
    [
        "registry.example",
        "10.0.0.1:5000",
        "0.0.0.0",
        "[fe80::1]:5000",
        "localhost.example",
        "127.1",
        "2130706433",
    ],
)
def test_registries_elsewhere_are_refused(host: str) -> None:
    """Memory does not leave the machine, and nothing is asked of a name server."""
    with pytest.raises(RegistryFailed, match="is not on this machine"):
        reference.parse(f"{host}/a:b")


@pytest.mark.parametrize(
    "text", ["", "a", "localhost", "localhost/", "localhost/A", "localhost/a/../b", "localhost/a:b/c"]
)
def test_what_is_no_reference(text: str) -> None:
    """One sentence."""
    with pytest.raises(RegistryFailed, match="is not the name of an image in a registry"):
        reference.parse(text)


@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    """And if it is one, its registry is on this machine, and its path has no surprises."""
    for candidate in (text, f"localhost:5000/{text}", f"{text}/a:b"):
        try:
            found = reference.parse(candidate)
        except RegistryFailed:
            continue
        assert re.fullmatch(r"http://(127\.[0-9.]+|\[::1\]):[0-9]+", found.url)
        assert ".." not in found.name


class Server:
    """A registry in memory, as the specification has it; `change` spoils its answers."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.change: Callable[[httpx.Request, httpx.Response], httpx.Response] = lambda request, answer: (
            answer
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        self.requests.append(f"{request.method} {request.url.path}")
        answer = self.change(request, self._answer(request))
        return httpx.Response(answer.status_code, headers=answer.headers, content=iter([answer.content]))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        rest = request.url.path.removeprefix("/v2/checkpoints/counter/")
        kind, _, name = rest.partition("/")
        if request.method == "POST":
            return httpx.Response(
                202, headers={"Location": f"http://127.0.0.1:5000{request.url.path}1?state=x"}
            )
        if request.method == "PUT" and kind == "blobs":
            assert request.url.params["state"] == "x"
            data = request.read()
            assert str(digests.of(data)) == request.url.params["digest"]
            assert int(request.headers["Content-Length"]) == len(data)
            self.blobs[request.url.params["digest"]] = data
            return httpx.Response(201)
        if request.method == "PUT":
            self.manifests[name] = request.read()
            return httpx.Response(201)
        found = (self.blobs if kind == "blobs" else self.manifests).get(name)
        if found is None:
            return httpx.Response(404, json={"errors": [{"code": "UNKNOWN", "message": "not here"}]})
        return httpx.Response(200, content=found, headers={"Docker-Content-Digest": str(digests.of(found))})


class Scene:
    """An image that was pushed, and the registry that has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server()
        image.build(archive(folder / "archive"), folder / "image")

    def registry(self) -> Registry:
        """Connect to it."""
        return Registry(reference.parse(WHERE), httpx.MockTransport(self.server))

    def refused(self) -> str:
        """Pull, which must fail and leave nothing."""
        with self.registry() as registry, pytest.raises(ContainersError) as caught:
            registry.pull(self.folder / "pulled")
        assert sorted(path.name for path in self.folder.iterdir()) == ["archive", "image"]
        return str(caught.value)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Push an image."""
    scene = Scene(tmp_path)
    with scene.registry() as registry:
        registry.push(tmp_path / "image")
    return scene


def test_there_and_back(scene: Scene) -> None:
    """The archive is the same, and its owner's only."""
    with scene.registry() as registry:
        pushed = registry.push(scene.folder / "image")
        assert registry.pull(scene.folder / "pulled") == pushed
    image.extract(scene.folder / "pulled", scene.folder / "again")
    assert (scene.folder / "again").read_bytes() == (scene.folder / "archive").read_bytes()
    found = [scene.folder / "pulled", *(scene.folder / "pulled").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o700, 0o600}


def test_what_is_there_is_not_sent_again(scene: Scene) -> None:
    """A second push sends the manifest only."""
    scene.server.requests.clear()
    with scene.registry() as registry:
        registry.push(scene.folder / "image")
    assert [request.split()[0] for request in scene.server.requests] == ["HEAD", "HEAD", "PUT"]


def test_an_image_that_is_not_there(scene: Scene) -> None:
    """Says what is missing where."""
    scene.server.manifests.clear()
    assert scene.refused() == "http://127.0.0.1:5000 has no checkpoints/counter:one"


def spoil(scene: Scene, kind: str, change: Callable[[bytes], bytes]) -> None:
    """Change the bytes that the registry sends of a kind of thing."""

    def changed(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.method == "GET" and f"/{kind}/" in request.url.path:
            return httpx.Response(200, content=change(answer.content))
        return answer

    scene.server.change = changed


def test_blobs_are_checked(scene: Scene) -> None:
    """Too long, too short, or different."""
    spoil(scene, "blobs", lambda data: data + b"x")
    assert re.search(
        r"blob sha256:\w+ of 127.0.0.1:5000/checkpoints/counter:one has more than \d+ bytes", scene.refused()
    )
    spoil(scene, "blobs", lambda data: data[:-1])
    assert re.search(r"has \d+ bytes instead of \d+", scene.refused())
    spoil(scene, "blobs", lambda data: data[:-1] + b"\xff")
    assert scene.refused().endswith("has another content than its digest says")


def test_the_manifest_is_checked(scene: Scene) -> None:
    """It has to be a checkpoint's, and of bounded size, before anything else is fetched."""

    def edit(**changes: object) -> Callable[[bytes], bytes]:
        return lambda data: json.dumps(json.loads(data) | changes).encode()

    for change, reason in (
        (lambda data: b"<html>", "is not JSON"),
        (lambda data: b" " * (5 << 20), "has more than 4194304 bytes"),
        (edit(annotations={}), "is no checkpoint: it has no annotation"),
        (edit(layers=[]), "is no checkpoint: it has 0 layers, not one"),
        (edit(layers={}), "has no list 'layers'"),
        (
            edit(config=None),
            "the config of the manifest of 127.0.0.1:5000/checkpoints/counter:one has no size 'size'",
        ),
        (edit(schemaVersion=1), "has the schema version 1, not 2"),
    ):
        scene.server.requests.clear()
        spoil(scene, "manifests", change)
        assert reason in scene.refused()
        assert len(scene.server.requests) == 1


def test_a_digest_that_is_a_path_is_refused(scene: Scene) -> None:
    """Digests become names of files."""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        document["layers"][0]["digest"] = "sha256:../../../etc/passwd"
        return json.dumps(document).encode()

    spoil(scene, "manifests", change)
    assert "where a sha256 digest has to be" in scene.refused()


def test_sizes_are_bounded_before_anything_is_fetched(scene: Scene) -> None:
    """By what the manifest says."""
    with scene.registry() as registry, pytest.raises(ImageInvalid, match="is too large"):
        registry.pull(scene.folder / "pulled", Limits(size=10))


def test_a_digest_header_that_does_not_fit(scene: Scene) -> None:
    """The manifest is not what the registry calls it."""
    scene.server.change = lambda request, answer: httpx.Response(
        200, content=answer.content, headers={"Docker-Content-Digest": "sha256:" + "0" * 64}
    )
    assert scene.refused().endswith("has another content than its digest says")


@pytest.mark.parametrize(
    "location", ["http://registry.example/upload", "//10.0.0.1/x", "http://127.0.0.1:5001/x", ""]
)
def test_uploads_go_nowhere_else(scene: Scene, location: str) -> None:
    """A registry cannot send memory to another host or port."""
    scene.server.blobs.clear()
    scene.server.requests.clear()

    def change(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return httpx.Response(202, headers={"Location": location}) if request.method == "POST" else answer

    scene.server.change = change
    with scene.registry() as registry, pytest.raises(RegistryFailed, match="sends an upload elsewhere"):
        registry.push(scene.folder / "image")
    assert "PUT" not in {request.split()[0] for request in scene.server.requests}


def test_redirects_are_not_followed(scene: Scene) -> None:
    """Not even to the same machine."""
    scene.server.change = lambda request, answer: httpx.Response(
        307, headers={"Location": "http://registry.example/"}
    )
    assert scene.refused() == "http://127.0.0.1:5000 answers with status 307: Temporary Redirect"


def test_errors_are_the_registrys_own_words(scene: Scene) -> None:
    """What it says is passed on, shortened."""
    scene.server.change = lambda request, answer: httpx.Response(
        500, json={"errors": [{"code": "UNKNOWN", "message": "disk full"}]}
    )
    assert scene.refused() == "http://127.0.0.1:5000 answers with status 500: disk full"


def test_nobody_answers(tmp_path: Path) -> None:
    """One sentence."""
    image.build(archive(tmp_path / "archive"), tmp_path / "image")
    said = pytest.raises(RegistryFailed, match=r"no registry answers at http://127.0.0.1:1: ")
    with Registry(reference.parse("127.0.0.1:1/a")) as registry, said:
        registry.push(tmp_path / "image")

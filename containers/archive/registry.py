"""Push to and pull from a registry: the OCI distribution specification, as far as one image needs it.

What a registry says is not trusted: documents are bounded, blobs are counted and hashed while they arrive, uploads go
nowhere but to the registry itself, and redirects are not followed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import httpx

from ..errors import ImageInvalid, RegistryFailed
from ..oci import descriptor as descriptors
from ..oci import digests, fields, manifest
from ..oci.descriptor import Descriptor
from ..oci.digests import CHUNK, Digest
from ..oci.layout import Layout
from . import image, private
from .checkpoint import Limits
from .reference import Reference

_TIMEOUT = httpx.Timeout(60.0)
_MAX_ERROR = 64 << 10


class Registry:
    """A registry on this machine, for one image's name."""

    def __init__(self, reference: Reference, transport: httpx.BaseTransport | None = None) -> None:
        self._reference = reference
        self._http = httpx.Client(
            base_url=reference.url,
            timeout=_TIMEOUT,
            trust_env=False,  # no proxy for loopback
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
            transport=transport,
        )

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    # Push

    def push(self, path: Path) -> Digest:
        """Send a checkpoint's image; what the registry has already is not sent again."""
        stored = image.stored(path)
        for blob in (stored.found.manifest.config, stored.layer):
            if not self._has(blob):
                self._send(stored.layout, blob)
        described = stored.found.descriptor
        with self._ask(
            "PUT",
            self._path("manifests", self._reference.tag),
            content=stored.layout.read(described),
            headers={"Content-Type": described.media_type},
        ) as answer:
            self._expect(answer, 201)
        return described.digest

    def _has(self, blob: Descriptor) -> bool:
        with self._ask("HEAD", self._path("blobs", str(blob.digest))) as answer:
            if answer.status_code == 404:
                return False
            self._expect(answer, 200)
            return True

    def _send(self, layout: Layout, blob: Descriptor) -> None:
        with self._ask("POST", self._path("blobs", "uploads/")) as answer:
            self._expect(answer, 202)
            upload = self._here(answer.headers.get("Location", ""))
        with (
            layout.open_blob(blob) as source,
            self._ask(
                "PUT",
                str(upload.copy_merge_params({"digest": str(blob.digest)})),
                content=digests.chunks(source),
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)},
            ) as answer,
        ):
            self._expect(answer, 201)

    def _here(self, location: str) -> httpx.URL:
        """Return where an upload goes: to this registry, whatever it says."""
        base = httpx.URL(self._reference.url)
        try:
            upload = base.join(location)
        except httpx.InvalidURL as ex:
            raise RegistryFailed(f"{self._reference.url} names no place for an upload") from ex
        if not location or (upload.scheme, upload.host, upload.port) != (base.scheme, base.host, base.port):
            raise RegistryFailed(f"{self._reference.url} sends an upload elsewhere, which is refused")
        return upload

    # Pull

    def pull(self, path: Path, limits: Limits | None = None) -> Digest:
        """Fetch a checkpoint's image into a new layout; its archive is checked when it is taken out."""
        limits = limits or Limits()
        data = self._manifest()
        found = manifest.parse(data, f"the manifest of {self._reference}")
        image.check(found, str(self._reference))
        layer = found.layers[0]
        if found.config.size > fields.MAX_DOCUMENT or layer.size > limits.size:
            raise ImageInvalid(f"{self._reference} is too large: its archive has {layer.size} bytes")
        with private.new_folder(path) as folder:
            layout = Layout.create(folder, private=True)
            self._fetch(layout, found.config)
            self._fetch(layout, layer)
            described = layout.write(data, descriptors.MANIFEST)
            layout.tag(str(self._reference), described)
            image.stored(folder)
        return described.digest

    def _manifest(self) -> bytes:
        path = self._path("manifests", self._reference.tag)
        with self._ask("GET", path, headers={"Accept": descriptors.MANIFEST}) as answer:
            if answer.status_code == 404:
                raise RegistryFailed(
                    f"{self._reference.url} has no {self._reference.name}:{self._reference.tag}"
                )
            self._expect(answer, 200)
            data = _bounded(answer, fields.MAX_DOCUMENT)
            said = answer.headers.get("Docker-Content-Digest")
        if data is None:
            raise ImageInvalid(f"the manifest of {self._reference} has more than {fields.MAX_DOCUMENT} bytes")
        if said is not None and said != str(digests.of(data)):
            raise ImageInvalid(f"the manifest of {self._reference} has another content than its digest says")
        return data

    def _fetch(self, layout: Layout, blob: Descriptor) -> None:
        """Fetch a blob; one byte too many, or another digest, and it is not kept."""
        what = f"blob {blob.digest} of {self._reference}"
        hashed, length = hashlib.sha256(), 0
        with layout.new_blob() as new:
            with self._ask("GET", self._path("blobs", str(blob.digest))) as answer:
                self._expect(answer, 200)
                for piece in answer.iter_raw(CHUNK):
                    length += len(piece)
                    if length > blob.size:
                        raise ImageInvalid(f"{what} has more than {blob.size} bytes")
                    hashed.update(piece)
                    new.file.write(piece)
            if length != blob.size:
                raise ImageInvalid(f"{what} has {length} bytes instead of {blob.size}")
            if Digest(hashed.hexdigest()) != blob.digest:
                raise ImageInvalid(f"{what} has another content than its digest says")
            layout.keep(new, blob.digest)

    # Both

    def _path(self, kind: str, rest: str) -> str:
        return f"/v2/{self._reference.name}/{kind}/{rest}"

    @contextmanager
    def _ask(
        self,
        method: str,
        path: str,
        content: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(method, path, content=content, headers=headers) as answer:
                yield answer
        except httpx.TransportError as ex:
            raise RegistryFailed(f"no registry answers at {self._reference.url}: {ex}") from ex

    def _expect(self, answer: httpx.Response, status: int) -> None:
        if answer.status_code != status:
            reason = _reason(_bounded(answer, _MAX_ERROR) or b"") or answer.reason_phrase
            raise RegistryFailed(f"{self._reference.url} answers with status {answer.status_code}: {reason}")


def _bounded(answer: httpx.Response, most: int) -> bytes | None:
    """Read an answer's body, None if it is too large."""
    found = b""
    for piece in answer.iter_raw(CHUNK):
        found += piece
        if len(found) > most:
            return None
    return found


def _reason(body: bytes) -> str:
    """Return a registry's own words: {"errors": [{"code": …, "message": …}]}."""
    try:
        return str(json.loads(body)["errors"][0]["message"])[:200]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""

"""FIFOs of a program that moves on one machine: what nobody has read of them is still in them. Pure.

CRIU writes the content of a FIFO into the image, and a restore writes it into the FIFO again. Hosts share their file
systems, so both ends of a move have the same FIFO, and the frozen original keeps it open until the copy has it open,
too: its content never goes away, and the image's would come behind it. So the image that goes to the destination has
none. It stays where the copy's FIFO is another one: in a volume, in a container, or deleted (CRIU makes those anew);
and where the original ends before the copy is built, which empties the FIFO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import messages
from .images import FILES_IMAGE, BadImage, header_of, join, message_at, split

DATA_IMAGE = "fifo-data.img"
_REMAP_IMAGE = "remap-fpath.img"


def without_content(folder: Path, fdinfo: Any, is_shared: Callable[[str], bool]) -> Mapping[str, bytes]:
    """Return the images to be changed in a folder, by name; `is_shared` says of a path whether both hosts have it."""
    image = folder / DATA_IMAGE
    if not image.exists():
        return {}
    remap = messages.load(messages.REMAP)
    remaps = folder / _REMAP_IMAGE
    entries = split(remaps.read_bytes())[1] if remaps.exists() else []
    remapped = [remap.remap_file_path_entry.FromString(entry) for entry in entries]
    anew = {entry.orig_id for entry in remapped if entry.remap_type != remap.LINKED}
    kept = shared_pipes((folder / FILES_IMAGE).read_bytes(), fdinfo, anew, is_shared)
    return {DATA_IMAGE: emptied(image.read_bytes(), kept, messages.load(messages.PIPE_DATA))}


def shared_pipes(files: bytes, fdinfo: Any, anew: set[int], is_shared: Callable[[str], bool]) -> set[int]:
    """Return the numbers of the FIFOs in a files.img that both hosts have; CRIU makes the files `anew` itself."""
    entries = [fdinfo.file_entry.FromString(message) for message in split(files)[1]]
    paths = {entry.reg.id: entry.reg.name for entry in entries if entry.HasField("reg")}
    fifos = {entry.fifo.pipe_id: entry.fifo.regf_id for entry in entries if entry.HasField("fifo")}
    return {
        pipe for pipe, file in fifos.items() if file in paths and file not in anew and is_shared(paths[file])
    }


def emptied(image: bytes, pipes: set[int], pipe_data: Any) -> bytes:
    """Take the content of some FIFOs out of a fifo-data.img; their sizes stay."""
    made = header_of(image)
    at = len(made)
    while at < len(image):
        message, at = message_at(image, at)
        entry = pipe_data.pipe_data_entry.FromString(message)
        content = image[at : at + entry.bytes]
        at += entry.bytes
        if len(content) < entry.bytes:
            raise BadImage("the image of FIFOs ends within their content")
        if entry.pipe_id in pipes:
            entry.bytes, content = 0, b""
        made += join(b"", [entry.SerializeToString()]) + content
    return made

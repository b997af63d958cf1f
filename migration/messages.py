"""CRIU's messages: pycriu's generated modules, imported from exactly one folder.

Set-up puts the folder `pycriu` of one version there, and VERSION beside it. A distribution's own pycriu in the system's
Python must not come in its place: it may be older than the CRIU in use, and then has neither its messages nor fields.
Messages only ever grow, and fields that are unknown to them survive, so a newer pycriu fits an older CRIU.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from .criu_version import parse_version
from .custody import PROJECT
from .errors import CriuMissing

FOLDER = PROJECT / ".p4ferry" / "python"
VERSION = "pycriu.version"
"""The file beside the package that names its version."""
RPC, FDINFO, TCP_STREAM, CORE = "rpc_pb2", "images.fdinfo_pb2", "images.tcp_stream_pb2", "images.core_pb2"
PAGEMAP, CGROUP, PSTREE = "images.pagemap_pb2", "images.cgroup_pb2", "images.pstree_pb2"
PIPE_DATA, REMAP = "images.pipe_data_pb2", "images.remap_file_path_pb2"
_REMEDY = "run `make setup`"
_lock = threading.Lock()


def load(module: str, folder: Path | None = None) -> ModuleType:
    """Return a module of pycriu, such as `images.fdinfo_pb2`; raises CriuMissing."""
    with _lock:
        _load_package(folder or FOLDER)
        try:
            return importlib.import_module(f"pycriu.{module}")
        except ImportError as ex:
            raise CriuMissing(f"pycriu in {folder or FOLDER} is incomplete ({ex}): {_REMEDY}") from ex


def check(version: str, folder: Path | None = None) -> None:
    """Raise CriuMissing unless pycriu is at least as new as the CRIU that is to be used."""
    folder = folder or FOLDER
    try:
        ours = (folder / VERSION).read_text().strip()
    except OSError as ex:
        raise CriuMissing(f"nothing says which version the pycriu in {folder} has: {_REMEDY}") from ex
    if parse_version(ours)[:2] < parse_version(version)[:2]:
        raise CriuMissing(
            f"pycriu {ours} in {folder} is older than the CRIU in use, {version}, and does not know its messages: "
            f"{_REMEDY}"
        )


def _load_package(folder: Path) -> None:
    """Import the package itself, whatever else of that name is on the path."""
    wanted = folder / "pycriu" / "__init__.py"
    present = sys.modules.get("pycriu")
    if present is not None:
        origin = getattr(present, "__file__", None)
        if origin is None or Path(origin).resolve() != wanted.resolve():
            raise CriuMissing(
                f"another pycriu was imported before ({origin}): only that in {folder} fits the CRIU in use; import "
                "none before it"
            )
        return
    spec = PathFinder.find_spec("pycriu", [str(folder)])
    if spec is None or spec.loader is None:
        raise CriuMissing(f"the Python package pycriu is missing in {folder}: {_REMEDY}")
    package = importlib.util.module_from_spec(spec)
    sys.modules["pycriu"] = package
    try:
        spec.loader.exec_module(package)
    except Exception as ex:  # protobuf raises its own kinds for code that was generated for another version
        for name in [name for name in sys.modules if name.partition(".")[0] == "pycriu"]:
            del sys.modules[name]
        raise CriuMissing(f"pycriu in {folder} cannot be imported ({_first_line(ex)}): {_REMEDY}") from ex


def _first_line(ex: Exception) -> str:
    return (str(ex).strip().splitlines() or [type(ex).__name__])[0]

"""The part of libbpf (and of bpf(2)) that the engine uses, through ctypes.

libbpf opens and loads objects, attaches to tc, and reads the ring buffer; maps are read and written with the
system call itself. Errors are OSError with the kernel's errno.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from collections.abc import Callable
from ctypes import Structure, byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

from dataplane.switch.pipeline import PipelineError

INGRESS, EGRESS = 1, 2
_REPLACE = 1
_LOG_FAILING_PATH, _LOG_STATISTICS = 1, 4
_LOG_BYTES = (1 << 22, 1 << 27)
"""Kernels before 6.4 keep the beginning of a log longer than its buffer, and say ENOSPC: then the second is tried."""

_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_GET_NEXT_KEY = 1, 2, 3, 4
_PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _MAP_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = (
    8,
    9,
    13,
    14,
    15,
    16,
)
_MAP_UPDATE_BATCH = 26
_ALLOW_MULTI = 2
_MAX_PROGRAMS = 64

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}


class _OpenOpts(Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
        ("unused", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    ]


class _TcHook(Structure):
    _fields_ = [("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32)]


class _TcOpts(Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    ]


class _ProgInfo(Structure):
    """struct bpf_prog_info up to verified_insns (Linux 5.16)."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_char * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("pointers", c_uint64 * 3),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("rest", ctypes.c_uint8 * 136),
        ("verified_insns", c_uint32),
        ("attach", c_uint32 * 3),
    ]


SampleHandler = Callable[[int, int], None]
_SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


@cache
def library() -> Any:
    """Load libbpf once; raises PipelineError where it is missing."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as ex:
        raise PipelineError("libbpf 1.x (libbpf.so.1) is not installed (run make setup)") from ex
    lib.libbpf_set_print.argtypes = [c_void_p]
    lib.libbpf_set_print(None)
    pointers = (
        "bpf_object__open_mem", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name", "ring_buffer__new",
    )  # fmt: skip
    for name in pointers:
        getattr(lib, name).restype = c_void_p
    lib.bpf_object__open_mem.argtypes = [c_char_p, c_size_t, c_void_p]
    for name in (
        "bpf_object__load",
        "bpf_object__close",
        "bpf_map__fd",
        "bpf_program__fd",
        "ring_buffer__free",
    ):
        getattr(lib, name).argtypes = [c_void_p]
    for name in ("ring_buffer__epoll_fd", "ring_buffer__consume"):
        getattr(lib, name).argtypes = [c_void_p]
    for name in ("bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
        getattr(lib, name).argtypes = [c_void_p, c_char_p]
    lib.ring_buffer__new.argtypes = [c_int, _SAMPLE, c_void_p, c_void_p]
    return lib


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attr: ctypes.Array[c_char] | Structure) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise PipelineError(f"bpf(2) is not known for {platform.machine()}")
    result = _libc().syscall(number, command, byref(attr), ctypes.sizeof(attr))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)


class _Element(Structure):
    _fields_ = [("map_fd", c_uint32), ("key", c_void_p), ("value", c_void_p), ("flags", c_uint64)]


class _Batch(Structure):
    _fields_ = [
        ("in_batch", c_uint64),
        ("out_batch", c_uint64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("count", c_uint32),
        ("map_fd", c_uint32),
        ("elem_flags", c_uint64),
        ("flags", c_uint64),
    ]


class _InfoByFd(Structure):
    _fields_ = [("fd", c_uint32), ("length", c_uint32), ("info", c_void_p)]


class _ById(Structure):
    _fields_ = [("id", c_uint32), ("next_id", c_uint32), ("open_flags", c_uint32)]


class _MapInfo(Structure):
    """struct bpf_map_info up to name."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    ]


class _Attach(Structure):
    _fields_ = [("target_fd", c_uint32), ("prog_fd", c_uint32), ("type", c_uint32), ("flags", c_uint32)]


class _Query(Structure):
    _fields_ = [
        ("target_fd", c_uint32),
        ("type", c_uint32),
        ("query_flags", c_uint32),
        ("attach_flags", c_uint32),
        ("prog_ids", c_uint64),
        ("count", c_uint32),
    ]


class Map:
    """A map, by its descriptor."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    def update(self, key: bytes, value: bytes) -> None:
        """Insert or replace an element."""
        _bpf(_MAP_UPDATE, _Element(self.fd, _address(key), _address(value), 0))

    def delete(self, key: bytes) -> None:
        """Remove an element; raises FileNotFoundError."""
        _bpf(_MAP_DELETE, _Element(self.fd, _address(key), None, 0))

    def lookup(self, key: bytes, size: int) -> bytes:
        """Return an element's value; raises FileNotFoundError."""
        value = ctypes.create_string_buffer(size)
        _bpf(_MAP_LOOKUP, _Element(self.fd, _address(key), ctypes.addressof(value), 0))
        return value.raw

    def keys(self, size: int) -> list[bytes]:
        """Return the keys of a hash, which nobody removes meanwhile."""
        found: list[bytes] = []
        following = ctypes.create_string_buffer(size)
        while True:
            last = _address(found[-1]) if found else None
            try:
                _bpf(_MAP_GET_NEXT_KEY, _Element(self.fd, last, ctypes.addressof(following), 0))
            except FileNotFoundError:
                return found
            found.append(following.raw)

    def update_batch(self, keys: list[bytes], values: list[bytes]) -> None:
        """Insert or replace many elements with one call."""
        all_keys, all_values = b"".join(keys), b"".join(values)
        _bpf(
            _MAP_UPDATE_BATCH,
            _Batch(0, 0, _address(all_keys), _address(all_values), len(keys), self.fd, 0, 0),
        )


def _address(data: bytes) -> int | None:
    return ctypes.cast(ctypes.c_char_p(data), c_void_p).value


class VerifierRejected(Exception):
    """The kernel does not load an object; `log` is what the verifier said."""

    def __init__(self, error: int, log: str) -> None:
        super().__init__(os.strerror(error))
        self.error = error
        self.log = log


class Object:
    """A BPF object that the kernel has loaded; its program, or the first of them, is called `program`."""

    def __init__(self, data: bytes, *, statistics: bool = False, program: str = "p4ferry") -> None:
        """Load; with `statistics`, `log` is what the verifier says of its own effort."""
        self._lib = library()
        self.log = ""
        self._handle = self._load(data, statistics)
        self._maps: dict[str, Map] = {}
        self.program_fd = self.program(program)

    def program(self, name: str) -> int:
        """Return a program's descriptor by its C name."""
        program = self._lib.bpf_object__find_program_by_name(self._handle, name.encode())
        if not program:
            self.close()
            raise VerifierRejected(errno.ENOENT, f"the object has no program called {name}")
        return int(self._lib.bpf_program__fd(program))

    def _load(self, data: bytes, statistics: bool) -> int:
        """Load quietly first, and once more with the verifier's log if that fails."""
        handle, error, self.log = self._try(data, _LOG_STATISTICS if statistics else 0, _LOG_BYTES[0])
        if handle is not None:
            return handle
        for size in _LOG_BYTES:
            handle, again, text = self._try(data, _LOG_FAILING_PATH, size)
            if handle is not None:
                return handle
            if again != errno.ENOSPC:
                break
        raise VerifierRejected(again or error, text)

    def _try(self, data: bytes, level: int, size: int) -> tuple[int | None, int, str]:
        # libbpf asks for a log of its own on failure; an own buffer of one byte keeps that short.
        buffer = ctypes.create_string_buffer(size if level else 1)
        opts = _OpenOpts(sz=ctypes.sizeof(_OpenOpts), object_name=b"p4ferry")
        if level:
            opts.kernel_log_buf = ctypes.addressof(buffer)
            opts.kernel_log_size = size
            opts.kernel_log_level = level
        handle = self._lib.bpf_object__open_mem(data, len(data), byref(opts))
        if not handle:
            return None, ctypes.get_errno(), "libbpf cannot read the object"
        error = int(self._lib.bpf_object__load(handle))
        if error == 0:
            return int(handle), 0, buffer.value.decode(errors="replace")
        self._lib.bpf_object__close(handle)
        return None, -error, buffer.value.decode(errors="replace")

    def map(self, name: str) -> Map:
        """Return a map by its C name."""
        if name not in self._maps:
            handle = self._lib.bpf_object__find_map_by_name(self._handle, name.encode())
            if not handle:
                raise KeyError(name)
            self._maps[name] = Map(name, int(self._lib.bpf_map__fd(handle)))
        return self._maps[name]

    def verified_insns(self) -> int:
        """Return how many instructions the verifier went through; 0 before Linux 5.16."""
        return int(program_info(self.program_fd).verified_insns)

    def instructions(self) -> int:
        """Return the program's length, as the kernel has rewritten it."""
        return int(program_info(self.program_fd).xlated_prog_len) // 8

    def program_id(self) -> int:
        return int(program_info(self.program_fd).id)

    def close(self) -> None:
        """Close every descriptor."""
        if self._handle:
            self._lib.bpf_object__close(self._handle)
            self._handle = 0


def program_info(fd: int) -> _ProgInfo:
    """Return what the kernel says about a program."""
    info = _ProgInfo()
    _bpf(_OBJ_GET_INFO_BY_FD, _InfoByFd(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    return info


def program_name(program_id: int) -> str:
    """Return the name of a program by id, or nothing if it is gone."""
    try:
        fd = _bpf(_PROG_GET_FD_BY_ID, _ById(program_id, 0, 0))
    except FileNotFoundError:
        return ""
    try:
        return bytes(program_info(fd).name).decode(errors="replace")
    finally:
        os.close(fd)


def attach_to_group(group: int, program: int, kind: int) -> None:
    """Attach a program to a control group, beside others; `kind` is the number of an enum bpf_attach_type."""
    _bpf(_PROG_ATTACH, _Attach(group, program, kind, _ALLOW_MULTI))


def detach_from_group(group: int, program_id: int, kind: int) -> None:
    """Detach a program from a control group."""
    fd = _bpf(_PROG_GET_FD_BY_ID, _ById(program_id, 0, 0))
    try:
        _bpf(_PROG_DETACH, _Attach(group, fd, kind, 0))
    finally:
        os.close(fd)


def attached_to_group(group: int, kind: int) -> list[int]:
    """Return the ids of the programs that are attached to a control group."""
    ids = (c_uint32 * _MAX_PROGRAMS)()
    query = _Query(group, kind, 0, 0, ctypes.addressof(ids), _MAX_PROGRAMS)
    _bpf(_PROG_QUERY, query)
    return list(ids[: query.count])


def maps_of(program_id: int) -> list[Map]:
    """Return the maps of a program by its id, each with a descriptor that is the caller's to close."""
    fd = _bpf(_PROG_GET_FD_BY_ID, _ById(program_id, 0, 0))
    try:
        info, ids = _ProgInfo(), (c_uint32 * _MAX_PROGRAMS)()
        info.nr_map_ids, info.map_ids = _MAX_PROGRAMS, ctypes.addressof(ids)
        _bpf(_OBJ_GET_INFO_BY_FD, _InfoByFd(fd, ctypes.sizeof(info), ctypes.addressof(info)))
    finally:
        os.close(fd)
    found = []
    for number in ids[: info.nr_map_ids]:
        fd, about = _bpf(_MAP_GET_FD_BY_ID, _ById(number, 0, 0)), _MapInfo()
        _bpf(_OBJ_GET_INFO_BY_FD, _InfoByFd(fd, ctypes.sizeof(about), ctypes.addressof(about)))
        found.append(Map(about.name.decode(), fd))
    return found


class TcFilter:
    """The place of our filter on one side of one interface: always the same handle and priority.

    Attaching replaces what is in that place in one step.
    """

    HANDLE, PRIORITY = 0x7034, 1

    def __init__(self, ifindex: int, direction: int) -> None:
        self.ifindex = ifindex
        self.direction = direction
        self._owns_hook = False
        self._attached = False

    def attach(self, program_fd: int) -> None:
        """Attach, in place of our last program if there is one."""
        lib = library()
        hook = self._hook()
        if not self._attached:
            created = int(lib.bpf_tc_hook_create(byref(hook)))
            if created == 0 or self._left_over():
                self._owns_hook = True
            elif created != -errno.EEXIST:  # that would be somebody else's clsact, which we share
                raise OSError(-created, os.strerror(-created))
        opts = self._opts(prog_fd=program_fd, flags=_REPLACE)
        _check(lib.bpf_tc_attach(byref(hook), byref(opts)))
        self._attached = True

    def _left_over(self) -> bool:
        """Tell whether a killed run of ours left its program here, and the hook with it."""
        opts = self._opts()
        if library().bpf_tc_query(byref(self._hook()), byref(opts)):
            return False
        return program_name(int(opts.prog_id)) == "p4ferry"

    def detach(self) -> None:
        """Remove our filter, and the hook if it came with us; what is gone already is fine."""
        lib = library()
        opts = self._opts()
        with contextlib.suppress(OSError):
            _check(lib.bpf_tc_detach(byref(self._hook()), byref(opts)))
        if self._owns_hook:
            hook = self._hook()
            hook.attach_point = INGRESS | EGRESS
            with contextlib.suppress(OSError):
                _check(lib.bpf_tc_hook_destroy(byref(hook)))
            self._owns_hook = False
        self._attached = False

    def _hook(self) -> _TcHook:
        return _TcHook(ctypes.sizeof(_TcHook), self.ifindex, self.direction, 0)

    def _opts(self, prog_fd: int = 0, flags: int = 0) -> _TcOpts:
        return _TcOpts(ctypes.sizeof(_TcOpts), prog_fd, flags, 0, self.HANDLE, self.PRIORITY)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))


class RingBuffer:
    """Reads a ring buffer map; every record is handed out as (address, size)."""

    def __init__(self, map_: Map, handler: SampleHandler) -> None:
        self._lib = library()

        def sample(context: int, address: int, size: int) -> int:
            handler(address, size)
            return 0

        self._callback = _SAMPLE(sample)
        self._handle = self._lib.ring_buffer__new(map_.fd, self._callback, None, None)
        if not self._handle:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are records."""
        return int(self._lib.ring_buffer__epoll_fd(self._handle))

    def consume(self) -> int:
        """Hand out every record there is, and return their number."""
        return int(self._lib.ring_buffer__consume(self._handle))

    def close(self) -> None:
        if self._handle:
            self._lib.ring_buffer__free(self._handle)
            self._handle = None

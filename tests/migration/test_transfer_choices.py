"""What is pure in the transfer: the choice of a mode, the end of pre-copy's rounds, and the wire's batches."""

from __future__ import annotations

import select
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration.errors import Refused
from migration.transfer import wire
from migration.transfer.early import BUDGET, Early
from migration.transfer.modes import (
    SMALL,
    Choice,
    Kernel,
    Mode,
    Via,
    Wish,
    choose,
    parse_wish,
    pause,
    suitable,
)
from migration.transfer.precopy import LITTLE, MAX_ROUNDS, is_enough
from topo.errors import BadNetwork
from topo.transfers import parse_rate

KERNELS = st.builds(Kernel, tracks_dirty=st.booleans(), has_userfault=st.booleans())
SIZES = st.integers(0, 1 << 40)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@given(
    st.builds(Wish, mode=st.none() | st.sampled_from(Mode), via=st.none() | st.sampled_from(Via)),
    SIZES,
    KERNELS,
    st.booleans(),
    st.booleans(),
)
def test_choice_is_possible_or_refused(
    wish: Wish, size: int, kernel: Kernel, can_network: bool, has_locks: bool
) -> None:
    """A choice is never auto, is what was asked for, and needs nothing that is not there."""
    try:
        choice = choose("app", wish, size, kernel, can_network, has_locks=has_locks)
    except Refused as ex:
        assert str(ex).startswith("app cannot be moved ")
        assert wish.mode in (Mode.PRE, Mode.LAZY) or (wish.via is Via.NETWORK and not can_network)
        return
    assert choice.mode in (
        {wish.mode} if wish.mode not in (None, Mode.AUTO) else {Mode.STOP, Mode.LAZY, Mode.PRE}
    )
    assert choice.via in ({wish.via} if wish.via else set(Via))
    assert choice.mode is not Mode.PRE or kernel.tracks_dirty
    assert choice.mode is not Mode.LAZY or (kernel.has_userfault and not has_locks)
    assert choice.via is not Via.NETWORK or can_network


@given(SIZES, KERNELS)
def test_auto_always_finds_one(size: int, kernel: Kernel) -> None:
    """Auto never asks for what the kernel lacks, and never makes a small program wait for pages."""
    mode, why = suitable(size, kernel, pause(size, Via.SHARED))
    choice = choose("app", Wish(), size, kernel, False)
    assert choice == Choice(mode, Via.SHARED)
    assert choice.why == why
    assert size > SMALL or mode is Mode.STOP


@given(
    SIZES, KERNELS, st.sampled_from(Via), st.floats(0, 1e6), st.booleans(), st.none() | st.floats(1e3, 1e12)
)
def test_auto_risks_nothing_within_the_budget(
    size: int, kernel: Kernel, via: Via, budget: float, has_locks: bool, rate: float | None
) -> None:
    """Mode lazy is for what could only be stopped for longer than the budget, and the choice says so."""
    wish = Wish(Mode.AUTO, via, budget)
    choice = choose("app", wish, size, kernel, True, has_locks=has_locks, rate=rate)
    seconds = pause(size, via, rate)
    if choice.mode is Mode.LAZY:
        assert seconds > budget
        assert f"more than the pause budget of {budget:g} s" in choice.why
    elif choice.mode is Mode.STOP and size > SMALL:
        assert seconds <= budget or has_locks or not kernel.has_userfault
        assert "stopping" in choice.why
    assert choose("app", Wish(Mode.LAZY, via), SMALL, Kernel(False, True), True).why == "asked for"


def test_a_slow_link_makes_the_pause_long() -> None:
    """The estimate knows of the bandwidth of the management links, and of none where pages take another way."""
    kernel = Kernel(tracks_dirty=False, has_userfault=True)
    size = 100_000_000
    assert pause(size, Via.NETWORK) == pytest.approx(0.2)
    assert pause(size, Via.NETWORK, 12.5e6) == pytest.approx(8)
    assert pause(size, Via.SHARED, 12.5e6) == pytest.approx(0.05)
    assert choose("app", Wish(), size, kernel, True).mode is Mode.STOP
    assert choose("app", Wish(), size, kernel, True, rate=12.5e6).mode is Mode.LAZY
    assert choose("app", Wish(pause_budget=10), size, kernel, True, rate=12.5e6).mode is Mode.STOP
    assert choose("app", Wish(pause_budget=0), size, kernel, True).mode is Mode.LAZY


def test_wishes_are_read_and_refused() -> None:
    """Users' words become a wish; a wrong one is answered with those there are."""
    default = Wish(Mode.STOP, Via.SHARED)
    assert parse_wish(None, None).over(default) == default
    assert parse_wish("lazy", "network").over(default) == Wish(Mode.LAZY, Via.NETWORK)
    assert parse_wish("lazy", None).over(default) == Wish(Mode.LAZY, Via.SHARED)
    assert parse_wish("auto", None, "2.5").over(default) == Wish(Mode.AUTO, Via.SHARED, 2.5)
    assert Wish(pause_budget=0).over(Wish(pause_budget=3)).pause_budget == 0
    for wrong in ("soon", "-1", -0.5, "inf", "nan", ""):
        with pytest.raises(ValueError, match="is not a pause budget: give seconds, from 0 up"):
            parse_wish(None, None, wrong)
    with pytest.raises(ValueError, match=r"there is no mode 'fast' \(there are: stop, lazy, pre, auto\)"):
        parse_wish("fast", None)
    with pytest.raises(ValueError, match=r"there is no transfer 'disk' \(there are: network, shared\)"):
        parse_wish(None, "disk")


@given(st.lists(st.integers(0, 1 << 40), max_size=2 * MAX_ROUNDS))
def test_rounds_come_to_an_end(rounds: list[int]) -> None:
    """There is at least one round and at most MAX_ROUNDS, and a small rest is always enough."""
    assert not is_enough([])
    if len(rounds) >= MAX_ROUNDS or (rounds and rounds[-1] <= LITTLE):
        assert is_enough(rounds)
    if len(rounds) > 1 and is_enough(rounds) and rounds[-1] > LITTLE and len(rounds) < MAX_ROUNDS:
        assert rounds[-1] > rounds[-2] // 2


@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=8), st.booleans())
def test_batch_arrives_as_it_was_sent(files: dict[str, bytes], keep: bool) -> None:
    """Names and bytes survive the wire, in files or in memory."""
    import tempfile

    near, far = socket.socketpair()
    with near, far, tempfile.TemporaryDirectory() as folder:
        kept = frozenset(sorted(files)[:1] if keep else ())
        receiver = wire.Receiver(far, Path(folder), kept)
        assert wire.send(near, files) == sum(map(len, files.values()))
        receiver.wait(10)
        stored = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert {**stored, **receiver.kept} == files
    assert set(receiver.kept) == kept


def test_files_come_in_several_batches(tmp_path: Path) -> None:
    """What comes again replaces itself; what somebody else has put there is not touched."""
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, tmp_path)
        assert wire.send(near, {"one": b"long and old", "two": b"2"}, more=True) == 13
        assert wire.send(near, {}, more=True) == 0
        wire.send(near, {"one": b"new", "three": b"3"})
        receiver.wait(10)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"one": b"new", "two": b"2", "three": b"3"}
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, tmp_path)
        wire.send(near, {"two": b"stranger"})
        with pytest.raises(wire.WireError, match="File exists"):
            receiver.wait(10)
    assert (tmp_path / "two").read_bytes() == b"2"


def test_image_files_go_ahead(tmp_path: Path) -> None:
    """Each complete file is sent once, and again only if it has changed; those that are rewritten wait for the end."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, there, frozenset({"inventory.img"}))
        early = Early(here, near)
        early.go_on()
        contents = {
            "core-1.img": b"c" * 500,
            "mm-1.img": b"m",
            "dump.log": b"log",
            "pages-1.img": b"p" * BUDGET,
        }
        for name, content in {**contents, "files.img": b"f", "inventory.img": b"i"}.items():
            (here / name).write_bytes(content)
        assert select.select([early], [], [], 5)[0]
        early.go_on()
        (here / "mm-1.img").write_bytes(b"changed")
        (here / "open.img").write_bytes(b"late")
        rest, ahead = early.rest()
        early.close()
        assert ahead == 500
        assert set(rest) == {"files.img", "inventory.img", "mm-1.img", "open.img", "pages-1.img"}
        wire.send(near, {**rest, "files.img": b"rewritten"})
        receiver.wait(10)
    assert receiver.kept == {"inventory.img": b"i"}
    arrived = {p.name: p.read_bytes() for p in there.iterdir()}
    wanted = {
        "core-1.img": b"c" * 500,
        "mm-1.img": b"changed",
        "open.img": b"late",
        "files.img": b"rewritten",
    }
    assert arrived == {**wanted, "pages-1.img": b"p" * BUDGET}


def test_large_files_are_streamed(tmp_path: Path) -> None:
    """Files beyond a chunk go straight from the file."""
    (tmp_path / "there").mkdir()
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(bytes(range(256)) * 20_000)
    small.write_bytes(b"little")
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, tmp_path / "there")
        wire.send(near, {"one": small, "two": big, "three": b"3"})
        receiver.wait(10)
    assert (tmp_path / "there" / "two").read_bytes() == big.read_bytes()
    assert (tmp_path / "there" / "one").read_bytes() == b"little"
    assert (tmp_path / "there" / "three").read_bytes() == b"3"


@pytest.mark.parametrize(
    "table",
    [
        b"no",
        b"[1]",
        b'{"a": 1}',
        b'[["../x", 1]]',
        b'[["/x", 1]]',
        b'[["", 1]]',
        b'[["..", 1]]',
        b'[["a", -1]]',
        b'[["a", 1], ["a", 2]]',
        b'[["a", "x"]]',
    ],
)
def test_wrong_tables_are_refused(table: bytes, tmp_path: Path) -> None:
    """A table with anything but plain names is refused before a file is made."""
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, tmp_path)
        near.sendall(struct.pack(">I", len(table)) + table)
        with pytest.raises(wire.WireError, match="the image files did not arrive"):
            receiver.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_broken_wires_are_told(tmp_path: Path) -> None:
    """An end in the middle, and one that never comes, are errors in one sentence."""
    near, far = socket.socketpair()
    with far:
        receiver = wire.Receiver(far, tmp_path)
        near.sendall(wire.encode_table({"a": 5}) + b"abc")
        near.close()
        with pytest.raises(wire.WireError, match="the connection ended in the middle"):
            receiver.wait(10)
    near, far = socket.socketpair()
    with near, far:
        receiver = wire.Receiver(far, tmp_path)
        with pytest.raises(wire.WireError, match=r"did not arrive within 0\.05 s"):
            receiver.wait(0.05)
        receiver.close()


@given(st.binary(max_size=100))
def test_any_table_is_read_or_refused(table: bytes) -> None:
    """Whatever comes, a table is names and sizes, or a WireError."""
    try:
        sizes = wire.decode_table(table)
    except wire.WireError:
        return
    assert all(size >= 0 and "/" not in name for name, size in sizes.items())


def test_rates_are_read() -> None:
    """Bandwidths as tc writes them; anything else is refused in one sentence."""
    assert parse_rate("1gbit") == 1_000_000_000
    assert parse_rate("1.5Mbit") == 1_500_000
    assert parse_rate("128000bit") == 128_000
    for wrong in ("", "1", "fast", "1gbps", "-1mbit", "1kbit"):
        with pytest.raises(BadNetwork, match="is not a bandwidth"):
            parse_rate(wrong)

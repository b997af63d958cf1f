"""Taking addresses and names of a machine out of text, and leaving those of the testbed."""

from __future__ import annotations

import os
import socket

import pytest

from topo.doctor.redaction import Machine, Redactor

OURS = Machine(
    addresses=frozenset({"192.168.7.5", "fd00::2", "10.0.2.15"}),
    macs=frozenset({"08:00:27:aa:bb:cc"}),
    hosts=frozenset({"lab7", "lab7.example.org"}),
    users=frozenset({"alice", "home"}),
    homes=frozenset({"/home/alice", "/srv/people/bob"}),
    checkout="/home/alice/p4ferry",
)


@pytest.mark.parametrize(
    "secret",
    [
        "192.168.7.5",
        "192.168.7.5:443",
        "::ffff:192.168.7.5",
        "3232237317",  # the same as a number, which journals have
        "c0a80705",
        "fd00::2",
        "FD00::2",
        "[fd00::2]:22",
        "fd00:0000:0000:0000:0000:0000:0000:0002",
        "08:00:27:aa:bb:cc",
        "08:00:27:AA:BB:CC",
        "08-00-27-aa-bb-cc",
        "lab7",
        "lab7.example.org",
        "alice@lab7",
        "/home/alice/p4ferry/topo/lb.py",
        "/home/alice/.ssh/config",
        "/srv/people/bob/data",
        "10.0.2.15",  # VirtualBox's, which looks like one of ours
    ],
)
@pytest.mark.parametrize("frame", ["{}", "a={},", '"{}"', "({})", "x_{}_y", "tcp:{}", "{}: gone", "to {}."])
def test_nothing_of_the_machine_is_left(secret: str, frame: str) -> None:
    """In whatever it is embedded."""
    redactor = Redactor(OURS)
    for cleaned in (redactor.known(frame.format(secret)), redactor.log(frame.format(secret))):
        lower = cleaned.lower()
        for known in (
            "192.168",
            "3232237317",
            "c0a80705",
            "fd00",
            "aa:bb",
            "aa-bb",
            "lab7",
            "alice",
            "bob",
            ".2.15",
        ):
            assert known not in lower, cleaned


@pytest.mark.parametrize(
    "text",
    [
        "10.0.1.1:49132 -> 10.0.0.100:7000",
        "h2-mgmt 172.31.0.2/16",
        "arp 08:00:00:00:02:fe, trunk 08:00:00:ff:01:05",
        "127.0.0.1:9559, 0.0.0.0, ::1, ::, ff02::1, 255.255.255.255",
        "fe80::a00:ff:fe00:202",  # of 08:00:00:00:02:02
        "2026-11-29 17:06:55,123 INFO controllers: up",
        "(00.012345) Error (criu/cr-dump.c:389): Can't get rlimit 0",
        "version 1.2.3.4.5, alicent, 1.2.3, a::b::c, 12:34",
        "/usr/lib/x86_64-linux-gnu, kvm, lab77",
    ],
)
def test_what_is_the_testbeds_stays(text: str) -> None:
    """A log without it would say nothing; times, versions and other words are no addresses."""
    assert Redactor(OURS).log(text) == text


def test_the_same_thing_has_the_same_placeholder_everywhere() -> None:
    """In all texts; different things have different ones."""
    redactor = Redactor(OURS)
    first, again = redactor.log("192.168.7.5 8.8.8.8"), redactor.log("8.8.8.8 9.9.9.9 192.168.7.5")
    (own, peer), (peer_again, other, own_again) = first.split(), again.split()
    assert (own, peer) == (own_again, peer_again) and len({own, peer, other}) == 3
    assert redactor.known("192.168.7.5") == own


def test_addresses_of_others_are_replaced_in_logs_only() -> None:
    """A program's peers are nobody's business; a package's version of four numbers is no address."""
    redactor = Redactor(OURS)
    cleaned = redactor.log(
        "from 203.0.113.9:80 and 2001:db8::7, 52:54:00:12:34:56, /home/carol/x, tcp:2001:db8::8:h3"
    )
    for known in ("203.0", "2001", "52:54", "carol"):
        assert known not in cleaned
    assert "/x" in cleaned and ":80" in cleaned
    assert redactor.known("libfoo 1.2.5.16") == "libfoo 1.2.5.16"


def test_placeholders_are_not_replaced_again() -> None:
    """A user may be called as a placeholder's word."""
    redactor = Redactor(OURS)
    once = redactor.log("/home/alice/x of home")
    assert redactor.log(once) == once
    assert once.startswith("<home-") and once.endswith("<user-2>")


def test_this_machine_is_known_by_what_the_system_says() -> None:
    """Its interfaces' addresses, its name; loopback and root are everybody's."""
    machine = Machine.of_this_one()
    assert "127.0.0.1" not in machine.addresses and "::1" not in machine.addresses
    assert "root" not in machine.users
    name = socket.gethostname()
    assert name in machine.hosts or name in ("localhost", "p4ferry") or len(name) == 1
    text = Redactor(machine).log(
        " ".join(sorted(machine.addresses | machine.macs | machine.hosts | machine.users))
    )
    words = set(text.split())
    assert not words & (machine.addresses | machine.macs | machine.hosts | machine.users)


def test_the_user_who_called_sudo_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where that user is in no local database."""
    monkeypatch.setitem(os.environ, "SUDO_USER", "zoe.remote")
    assert "zoe.remote" in Machine.of_this_one().users

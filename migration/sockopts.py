"""The options of sockets: which there are, how they are read, and how a copy gets them. One table for all.

CRIU carries some options and forgets most. So all that getsockopt(2) tells of the original's sockets is read while it
stands still, and what differs from a fresh socket of the destination is set on the copy's before it runs. The table
says of every number that a kernel answers to what it is:

    KEPT      set on the copy if the original's differs from a fresh socket's
    ALWAYS    set on the copy in any case: CRIU leaves another value there than a fresh socket has
    CRIU      carried by CRIU, which sets it at a moment of its own, or in a form of its own
    READING   what the kernel measures, counts or derives; nothing that a program has chosen
    LOST      cannot be set again: reported if the original's differs from a fresh socket's

Numbers are those of the generic <asm-generic/socket.h>, <linux/in.h>, <linux/in6.h>, <linux/tcp.h>, <linux/udp.h> and
<linux/netlink.h>. What has no getsockopt is told in memberships.py (multicast) and socketstate.py (the rest).
"""

from __future__ import annotations

import errno
import functools
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

SOL_SOCKET = socket.SOL_SOCKET
IP, TCP, UDP, IPV6 = 0, 6, 17, 41
NETLINK = 270
LEVELS = {SOL_SOCKET: "SOL_SOCKET", IP: "IPPROTO_IP", TCP: "IPPROTO_TCP", UDP: "IPPROTO_UDP"} | {
    IPV6: "IPPROTO_IPV6",
    NETLINK: "SOL_NETLINK",
}


class Rule(Enum):
    """What becomes of an option in a move."""

    KEPT = "kept"
    ALWAYS = "always"
    CRIU = "criu"
    READING = "reading"
    LOST = "lost"


K, A, C, R, L = Rule.KEPT, Rule.ALWAYS, Rule.CRIU, Rule.READING, Rule.LOST


class Shape(Enum):
    """Values that mean something only on one host, and have to be translated."""

    PLAIN = "plain"
    ADDRESS = "address"  # the host's own IPv4 address
    INTERFACE = "interface"  # an index, in host byte order
    INTERFACE_BE = "interface_be"  # an index, in network byte order


class On(Enum):
    """Which sockets have it in earnest."""

    ALL = "all"
    STREAM = "stream"
    DGRAM = "datagram"
    IDLE = "listening or not connected"
    LISTENER = "listening"
    UNIX = "UNIX"
    INET = "Internet"


@dataclass(frozen=True, slots=True)
class Option:
    """A row of the table."""

    level: int
    number: int
    name: str
    rule: Rule
    size: int = 4
    on: On = On.ALL
    shape: Shape = Shape.PLAIN
    note: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides which options a socket has."""

    family: int
    type: int
    protocol: int
    is_listening: bool = False
    is_connected: bool = False

    @property
    def fresh(self) -> Kind:
        """The kind of a new socket of this family, type and protocol."""
        return Kind(self.family, self.type, self.protocol)

    @property
    def is_inet(self) -> bool:
        """Return True if it has addresses."""
        return self.family in (socket.AF_INET, socket.AF_INET6)


def _row(
    number: int,
    name: str,
    rule: Rule = K,
    *,
    size: int = 4,
    on: On = On.ALL,
    shape: Shape = Shape.PLAIN,
    note: str = "",
) -> Option:
    return Option(0, number, name, rule, size, on, shape, note)


def _at(level: int, *options: Option) -> Iterator[Option]:
    return (replace(option, level=level) for option in options)


OPTIONS: tuple[Option, ...] = (
    *_at(
        SOL_SOCKET,
        _row(1, "SO_DEBUG"),
        _row(2, "SO_REUSEADDR", C, note="set when the copy's connections leave repair mode"),
        _row(3, "SO_TYPE", R),
        _row(4, "SO_ERROR", R, note="reading it would take it away; see pending errors"),
        _row(5, "SO_DONTROUTE"),
        _row(6, "SO_BROADCAST"),
        _row(7, "SO_SNDBUF", C),
        _row(8, "SO_RCVBUF", C),
        _row(9, "SO_KEEPALIVE"),
        _row(10, "SO_OOBINLINE"),
        _row(11, "SO_NO_CHECK"),
        _row(12, "SO_PRIORITY"),
        _row(13, "SO_LINGER", size=8),
        _row(14, "SO_BSDCOMPAT", R, note="has no effect any more"),
        _row(15, "SO_REUSEPORT", A),
        _row(16, "SO_PASSCRED"),
        _row(17, "SO_PEERCRED", R, size=12),
        _row(18, "SO_RCVLOWAT"),
        _row(19, "SO_SNDLOWAT", R),
        _row(20, "SO_RCVTIMEO", size=16),
        _row(21, "SO_SNDTIMEO", size=16),
        _row(25, "SO_BINDTODEVICE", C, size=16),
        _row(26, "SO_GET_FILTER", C, size=0, note="an eBPF program as a filter is refused"),
        _row(28, "SO_PEERNAME", R, size=128),
        _row(29, "SO_TIMESTAMP"),
        _row(30, "SO_ACCEPTCONN", R),
        _row(31, "SO_PEERSEC", R, size=0),
        _row(34, "SO_PASSSEC"),
        _row(35, "SO_TIMESTAMPNS"),
        _row(36, "SO_MARK"),
        _row(37, "SO_TIMESTAMPING", size=8),
        _row(38, "SO_PROTOCOL", R),
        _row(39, "SO_DOMAIN", R),
        _row(40, "SO_RXQ_OVFL"),
        _row(41, "SO_WIFI_STATUS"),
        _row(42, "SO_PEEK_OFF"),
        _row(43, "SO_NOFCS"),
        _row(44, "SO_LOCK_FILTER"),
        _row(45, "SO_SELECT_ERR_QUEUE"),
        _row(46, "SO_BUSY_POLL"),
        _row(47, "SO_MAX_PACING_RATE", size=8),
        _row(48, "SO_BPF_EXTENSIONS", R),
        _row(49, "SO_INCOMING_CPU"),
        _row(55, "SO_MEMINFO", R, size=36),
        _row(56, "SO_INCOMING_NAPI_ID", R),
        _row(
            57, "SO_COOKIE", R, size=8, note="the kernel's own number of the socket, another one after a move"
        ),
        _row(59, "SO_PEERGROUPS", R, size=0),
        _row(60, "SO_ZEROCOPY"),
        _row(61, "SO_TXTIME", size=8),
        _row(62, "SO_BINDTOIFINDEX", C, note="as SO_BINDTODEVICE"),
        _row(63, "SO_TIMESTAMP_NEW"),
        _row(64, "SO_TIMESTAMPNS_NEW"),
        _row(65, "SO_TIMESTAMPING_NEW", size=8),
        _row(66, "SO_RCVTIMEO_NEW", R, size=16, note="another form of SO_RCVTIMEO"),
        _row(67, "SO_SNDTIMEO_NEW", R, size=16, note="another form of SO_SNDTIMEO"),
        _row(69, "SO_PREFER_BUSY_POLL"),
        _row(70, "SO_BUSY_POLL_BUDGET"),
        _row(71, "SO_NETNS_COOKIE", R, size=8, note="the number of the host's network namespace"),
        _row(72, "SO_BUF_LOCK", C),
        _row(73, "SO_RESERVE_MEM"),
        _row(74, "SO_TXREHASH"),
        _row(75, "SO_RCVMARK"),
        _row(76, "SO_PASSPIDFD"),
        _row(77, "SO_PEERPIDFD", R),
        _row(82, "SO_RCVPRIORITY"),
        _row(83, "SO_PASSRIGHTS"),
        _row(84, "SO_INQ"),
    ),
    *_at(
        TCP,
        _row(1, "TCP_NODELAY", C),
        _row(2, "TCP_MAXSEG", on=On.IDLE, note="of a connection the kernel tells what it has negotiated"),
        _row(3, "TCP_CORK", C),
        _row(4, "TCP_KEEPIDLE"),
        _row(5, "TCP_KEEPINTVL"),
        _row(6, "TCP_KEEPCNT"),
        _row(7, "TCP_SYNCNT"),
        _row(8, "TCP_LINGER2"),
        _row(9, "TCP_DEFER_ACCEPT"),
        _row(10, "TCP_WINDOW_CLAMP", A),
        _row(11, "TCP_INFO", R, size=0),
        _row(12, "TCP_QUICKACK"),
        _row(13, "TCP_CONGESTION", size=16),
        _row(16, "TCP_THIN_LINEAR_TIMEOUTS"),
        _row(17, "TCP_THIN_DUPACK", R, note="has no effect any more"),
        _row(18, "TCP_USER_TIMEOUT"),
        _row(19, "TCP_REPAIR", R),
        _row(20, "TCP_REPAIR_QUEUE", R),
        _row(21, "TCP_QUEUE_SEQ", R),
        _row(23, "TCP_FASTOPEN", on=On.IDLE),
        _row(24, "TCP_TIMESTAMP", R, note="a clock, which CRIU lets go on"),
        _row(25, "TCP_NOTSENT_LOWAT"),
        _row(26, "TCP_CC_INFO", R, size=0),
        _row(27, "TCP_SAVE_SYN"),
        _row(28, "TCP_SAVED_SYN", R, size=0, note="reading it takes it away: lost, see docs"),
        _row(29, "TCP_REPAIR_WINDOW", C, size=20),
        _row(30, "TCP_FASTOPEN_CONNECT", on=On.IDLE),
        _row(31, "TCP_ULP", R, size=16, note="one that has any (kernel TLS) is refused"),
        _row(33, "TCP_FASTOPEN_KEY", size=32, on=On.LISTENER),
        _row(34, "TCP_FASTOPEN_NO_COOKIE", on=On.IDLE),
        _row(35, "TCP_ZEROCOPY_RECEIVE", R, size=0),
        _row(36, "TCP_INQ"),
        _row(37, "TCP_TX_DELAY"),
        _row(40, "TCP_AO_INFO", R, size=0, note="a socket with keys of TCP-AO is refused"),
        _row(41, "TCP_AO_GET_KEYS", R, size=0),
        _row(42, "TCP_AO_REPAIR", R, size=0),
        _row(43, "TCP_IS_MPTCP", R),
        _row(44, "TCP_RTO_MAX_MS"),
        _row(45, "TCP_RTO_MIN_US"),
        _row(46, "TCP_DELACK_MAX_US"),
    ),
    *_at(
        UDP,
        _row(1, "UDP_CORK", R, note="one that is on is refused: CRIU gives up"),
        _row(10, "UDPLITE_SEND_CSCOV", R),
        _row(11, "UDPLITE_RECV_CSCOV", R),
        _row(100, "UDP_ENCAP"),
        _row(101, "UDP_NO_CHECK6_TX"),
        _row(102, "UDP_NO_CHECK6_RX"),
        _row(103, "UDP_SEGMENT"),
        _row(104, "UDP_GRO"),
    ),
    *_at(
        IP,
        _row(1, "IP_TOS"),
        _row(2, "IP_TTL"),
        _row(3, "IP_HDRINCL", R, note="of raw sockets, which are refused"),
        _row(
            4,
            "IP_OPTIONS",
            A,
            size=40,
            note="setting it lets the kernel compute a connection's MSS anew: CRIU leaves 524",
        ),
        _row(5, "IP_ROUTER_ALERT", R, note="of raw sockets, which are refused"),
        _row(6, "IP_RECVOPTS"),
        _row(7, "IP_RETOPTS"),
        _row(8, "IP_PKTINFO"),
        _row(9, "IP_PKTOPTIONS", R, size=0),
        _row(10, "IP_MTU_DISCOVER"),
        _row(11, "IP_RECVERR"),
        _row(12, "IP_RECVTTL"),
        _row(13, "IP_RECVTOS"),
        _row(14, "IP_MTU", R),
        _row(15, "IP_FREEBIND"),
        _row(18, "IP_PASSSEC"),
        _row(19, "IP_TRANSPARENT"),
        _row(20, "IP_ORIGDSTADDR"),
        _row(21, "IP_MINTTL"),
        _row(22, "IP_NODEFRAG", R, note="of raw sockets, which are refused"),
        _row(23, "IP_CHECKSUM"),
        _row(24, "IP_BIND_ADDRESS_NO_PORT"),
        _row(25, "IP_RECVFRAGSIZE", R, note="of raw and datagram sockets: see IPV6_RECVFRAGSIZE"),
        _row(26, "IP_RECVERR_RFC4884", on=On.DGRAM),
        _row(32, "IP_MULTICAST_IF", on=On.DGRAM, shape=Shape.ADDRESS),
        _row(
            33,
            "IP_MULTICAST_TTL",
            on=On.DGRAM,
            note="of a connection: the TTL of the packet that opened it, 1 after a move",
        ),
        _row(34, "IP_MULTICAST_LOOP", on=On.DGRAM),
        _row(41, "IP_MSFILTER", R, size=0, on=On.DGRAM, note="see multicast memberships"),
        _row(48, "MCAST_MSFILTER", R, size=0, on=On.DGRAM, note="see multicast memberships"),
        _row(49, "IP_MULTICAST_ALL", on=On.INET),
        _row(50, "IP_UNICAST_IF", on=On.INET, shape=Shape.INTERFACE_BE),
        _row(51, "IP_LOCAL_PORT_RANGE"),
        _row(52, "IP_PROTOCOL", R),
        _row(64, "iptables", R, size=0),
        _row(65, "iptables", R, size=0),
        _row(66, "iptables", R, size=0),
        _row(67, "iptables", R, size=0),
        _row(80, "SO_ORIGINAL_DST", R, size=16),
        _row(83, "SO_IP_SET", R, size=0),
        _row(96, "arptables", R, size=0),
        _row(97, "arptables", R, size=0),
        _row(98, "arptables", R, size=0),
        _row(99, "arptables", R, size=0),
    ),
    *_at(
        IPV6,
        _row(1, "IPV6_ADDRFORM", R),
        _row(2, "IPV6_2292 option 2"),
        _row(3, "IPV6_2292 option 3"),
        _row(4, "IPV6_2292 option 4"),
        _row(5, "IPV6_2292 option 5"),
        _row(8, "IPV6_2292 option 8"),
        _row(6, "IPV6_2292PKTOPTIONS", R, size=0),
        _row(11, "IPV6_FLOWINFO"),
        _row(16, "IPV6_UNICAST_HOPS"),
        _row(17, "IPV6_MULTICAST_IF", on=On.DGRAM, shape=Shape.INTERFACE),
        _row(
            18,
            "IPV6_MULTICAST_HOPS",
            on=On.DGRAM,
            note="of a connection: the hop limit of the packet that opened it, 1 after a move",
        ),
        _row(19, "IPV6_MULTICAST_LOOP", on=On.DGRAM),
        _row(22, "IPV6_ROUTER_ALERT", R, note="of raw sockets, which are refused"),
        _row(23, "IPV6_MTU_DISCOVER"),
        _row(24, "IPV6_MTU", R),
        _row(25, "IPV6_RECVERR"),
        _row(26, "IPV6_V6ONLY", C),
        _row(29, "IPV6_MULTICAST_ALL"),
        _row(30, "IPV6_ROUTER_ALERT_ISOLATE", R, note="of raw sockets, which are refused"),
        _row(31, "IPV6_RECVERR_RFC4884", on=On.DGRAM),
        _row(32, "IPV6_FLOWLABEL_MGR", R, size=0, note="leases of flow labels"),
        _row(33, "IPV6_FLOWINFO_SEND"),
        _row(48, "MCAST_MSFILTER", R, size=0, on=On.DGRAM, note="see multicast memberships"),
        _row(49, "IPV6_RECVPKTINFO"),
        _row(51, "IPV6_RECVHOPLIMIT"),
        _row(53, "IPV6_RECVHOPOPTS"),
        _row(54, "IPV6_HOPOPTS", size=256),
        _row(55, "IPV6_RTHDRDSTOPTS", size=256),
        _row(56, "IPV6_RECVRTHDR"),
        _row(57, "IPV6_RTHDR", size=256),
        _row(58, "IPV6_RECVDSTOPTS"),
        _row(59, "IPV6_DSTOPTS", size=256),
        _row(60, "IPV6_RECVPATHMTU"),
        _row(61, "IPV6_PATHMTU", R, size=32),
        _row(62, "IPV6_DONTFRAG"),
        _row(64, "ip6tables", R, size=0),
        _row(65, "ip6tables", R, size=0),
        _row(68, "ip6tables", R, size=0),
        _row(69, "ip6tables", R, size=0),
        _row(66, "IPV6_RECVTCLASS"),
        _row(67, "IPV6_TCLASS"),
        _row(70, "IPV6_AUTOFLOWLABEL"),
        _row(72, "IPV6_ADDR_PREFERENCES"),
        _row(73, "IPV6_MINHOPCOUNT"),
        _row(74, "IPV6_RECVORIGDSTADDR"),
        _row(75, "IPV6_TRANSPARENT"),
        _row(76, "IPV6_UNICAST_IF", on=On.INET, shape=Shape.INTERFACE_BE),
        _row(77, "IPV6_RECVFRAGSIZE"),
        _row(78, "IPV6_FREEBIND"),
        _row(80, "SO_ORIGINAL_DST", R, size=28),
    ),
    *_at(
        NETLINK,
        _row(3, "NETLINK_PKTINFO"),
        _row(4, "NETLINK_BROADCAST_ERROR"),
        _row(5, "NETLINK_NO_ENOBUFS"),
        _row(8, "NETLINK_LISTEN_ALL_NSID"),
        _row(9, "NETLINK_LIST_MEMBERSHIPS", L, note="groups that the socket has joined"),
        _row(10, "NETLINK_CAP_ACK"),
        _row(11, "NETLINK_EXT_ACK"),
        _row(12, "NETLINK_GET_STRICT_CHK"),
    ),
)
_PRIORITY, _TOS = (SOL_SOCKET, 12), (IP, 1)  # setting the latter changes the former, which so comes last
_REUSEADDR = (SOL_SOCKET, 2)
_BY_KEY = {(option.level, option.number): option for option in OPTIONS}
Key = tuple[int, int]
Values = dict[Key, bytes]
# What a kernel answers where an option is not there, or not for this socket now.
_ABSENT = {errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTCONN, errno.ENODATA, errno.ENOENT}


def find(level: int, number: int) -> Option | None:
    """Return the row of an option."""
    return _BY_KEY.get((level, number))


@functools.lru_cache(maxsize=256)
def options_of(kind: Kind) -> tuple[Option, ...]:
    """Return what is to be read of a socket of a kind."""
    return tuple(option for option in OPTIONS if _is_ours(option, kind) and applies(option, kind))


def _is_ours(option: Option, kind: Kind) -> bool:
    """Return True if it is not CRIU that carries an option: of SO_REUSEADDR it sees to Internet sockets only."""
    return option.rule in (K, A, L) or ((option.level, option.number) == _REUSEADDR and not kind.is_inet)


def applies(option: Option, kind: Kind) -> bool:
    """Return True if sockets of a kind have an option in earnest."""
    is_stream = kind.type == socket.SOCK_STREAM
    levels = {
        SOL_SOCKET: True,
        TCP: kind.protocol == TCP,
        UDP: kind.protocol == UDP,
        IP: kind.is_inet,
        IPV6: kind.family == socket.AF_INET6,
        NETLINK: kind.family == socket.AF_NETLINK,
    }
    kinds = {
        On.STREAM: is_stream,
        On.DGRAM: kind.is_inet and kind.type == socket.SOCK_DGRAM,
        On.IDLE: kind.is_listening or not kind.is_connected,
        On.LISTENER: kind.is_listening,
        On.UNIX: kind.family == socket.AF_UNIX,
        On.INET: kind.is_inet and not kind.is_connected,
    }
    return levels[option.level] and kinds.get(option.on, True)


def kind_of(one: socket.socket) -> Kind:
    """Return the kind of a socket."""
    is_listening = bool(one.getsockopt(SOL_SOCKET, socket.SO_ACCEPTCONN))
    is_connected = False
    if not is_listening and one.type == socket.SOCK_STREAM:
        try:
            one.getpeername()
            is_connected = True
        except OSError:
            is_connected = False
    return Kind(one.family, one.type, one.proto, is_listening, is_connected)


def read(one: socket.socket, kind: Kind) -> Values:
    """Read all options of a socket that a copy needs."""
    return Reading(kind, None).take(one)


class Reading:
    """Reads sockets of one kind: quickly, since it is done while the program stands still, and of thousands."""

    def __init__(self, kind: Kind, plain: Values | None) -> None:
        """Without `plain`, what a fresh socket has, all is read; else what differs from it, or is always needed.

        What should be in `plain` and is not is not asked for: this kernel does not have it, and to say so takes long.
        """
        self._plain = plain
        self._rows: list[tuple[Key, int, int, int, bytes | None]] = []
        for option in options_of(kind):
            key = option.level, option.number
            if not plain or key in plain:
                # A listener's MSS is 536 until somebody sets its IP options, even to none: then it is 68.
                is_harmful = option.name == "IP_OPTIONS" and kind.is_listening
                is_always = option.rule is Rule.ALWAYS and not is_harmful
                usual = plain[key] if plain and not is_always else None
            elif applies(option, kind.fresh):
                continue
            else:
                usual = b""
            self._rows.append((key, *key, option.size, usual))

    def take(self, one: socket.socket) -> Values:
        """Read a socket."""
        found: Values = {}
        get = one.getsockopt
        for key, level, number, size, usual in self._rows:
            try:
                value = get(level, number, size)
            except OSError as ex:
                if ex.errno not in _ABSENT:
                    raise
                continue
            if value != usual:
                found[key] = value
        if self._plain and _TOS in found:
            priority = found.pop(_PRIORITY, self._plain[_PRIORITY])
            found[_PRIORITY] = priority
        return found


def fresh(kinds: Sequence[Kind]) -> dict[Kind, Values]:
    """Return what new sockets of some kinds have in the network namespace of this thread."""
    found = {}
    for kind in kinds:
        try:
            with socket.socket(kind.family, kind.type, kind.protocol) as one:
                found[kind] = read(one, kind)
        except OSError:  # the kernel has no such sockets any more, or not here
            found[kind] = {}
    return found


def lost(values: Values) -> list[Option]:
    """Take out of what differs what cannot be set on a copy."""
    gone = [_BY_KEY[key] for key in values if _BY_KEY[key].rule is Rule.LOST]
    for option in gone:
        del values[option.level, option.number]
    return gone


def write(one: socket.socket, values: Values) -> list[str]:
    """Set options on a copy's socket; return those that the kernel does not take, with its words."""
    failed = []
    for (level, number), value in values.items():
        try:
            one.setsockopt(level, number, value)
        except OSError as ex:
            option = _BY_KEY[level, number]
            try:
                if one.getsockopt(level, number, option.size) == value:
                    continue  # it has it already
            except OSError:
                pass
            failed.append(f"{option.name} ({ex.strerror})")
    return failed


def name_of(one: socket.socket) -> str:
    """Call a socket as reports do."""
    names = {TCP: "TCP", UDP: "UDP"}
    where = "" if one.family == socket.AF_UNIX else f" {ends_text(one.getsockname())}"
    return f"{names.get(one.proto, 'a UNIX socket' if not where else 'a socket')}{where}"


def ends_text(address: object) -> str:
    """Write a socket's address."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)

"""C identifiers and types for the things of a P4 program.

Names follow the P4 source: `Ingress.send_to` becomes `Ingress_send_to`. Where two would collide (p4c emits several
actions called `NoAction`) the later ones get a number.
"""

from __future__ import annotations

import re

_KEYWORDS = frozenset(
    """
    auto bool break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    u8 u16 u32 u64 s32 s64 skb valid changed extracted offset length key where raw out error exited gap checksums
    front_length tag_bytes prefix_length mask_number zero HIT NO_ACTION HOLD_MARK HOLD_DATAGRAM_MARK
    STREAM_LANE DATAGRAM_LANE HOLD_LANES INET_TCP INET_UDP CPU_PORT DROP_PORT PACKET_OUT_MARK
    """.split()  # noqa: SIM905 (a list of words reads better than forty literals)
)


def identifier(name: str) -> str:
    """Turn a P4 name into a C identifier."""
    text = re.sub(r"\W", "_", name.replace("$", "_"))
    if text[0].isdigit():
        text = f"_{text}"
    return f"{text}_" if text in _KEYWORDS else text


_GLOBAL = frozenset(
    """
    add_to advance arrive below come_back context context_pointer count crc16_add crc16_result crc16_start crc32_add
    crc32_result crc32_start csum16_add csum16_result csum16_start difference extract extract_front fold hide hit_now
    hold identity_add identity_result identity_start is_charged_in_vain is_datagram is_size is_valid leave_queue
    load16 load32 load64 look_ahead lost masked packet_in queue_of random_between resize restore_tags same_bytes
    saturate saturate_signed segments send_to settle shift_left shift_right shift_right_signed sign_extend store16
    store32 store64 sum_bytes sum_words to_controller to_network16 to_network32 to_network64 too_short xor16_add
    xor16_result xor16_start CELLS COUNTERS EXACT LPM PACKET_IN REGISTERS SINGLE TIMES p4ferry parse deparse reshape
    control_ingress control_egress crc16_table crc32_table
    """.split()  # noqa: SIM905
)
"""Functions, macros and tables that every generated program has."""


def global_identifier(name: str) -> str:
    """Turn the name of an action, table or array into a C identifier that no function of ours has."""
    text = identifier(name)
    return f"{text}_" if text in _GLOBAL else text


def container(width: int) -> int:
    """Return the bytes of the C type that holds a value of `width` bits; more than 64 bits are a byte array."""
    for size in (1, 2, 4, 8):
        if width <= size * 8:
            return size
    return (width + 7) // 8


def is_wide(width: int) -> bool:
    """Tell whether a value is kept as bytes in network order instead of as an integer."""
    return width > 64


def ctype(width: int) -> str:
    """Return the C integer type for a width up to 64."""
    return f"u{container(width) * 8}"


def declare(name: str, width: int) -> str:
    """Return a declaration (without semicolon) of a variable of `width` bits."""
    if is_wide(width):
        return f"u8 {name}[{container(width)}]"
    return f"{ctype(width)} {name}"


class Names:
    """Hands out identifiers that are unique within one C namespace."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        """Return the identifier of `name`, numbered if it is taken."""
        base = global_identifier(name)
        candidate, number = base, 2
        while candidate in self._taken:
            candidate, number = f"{base}_{number}", number + 1
        self._taken.add(candidate)
        return candidate

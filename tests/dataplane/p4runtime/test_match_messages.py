"""Matches and actions: what is encoded decodes to the same, for all kinds and widths."""

from __future__ import annotations

from random import Random

from finsy.proto import p4r
from hypothesis import given
from hypothesis import strategies as st

from dataplane.switch.p4runtime.matches import decode_action, decode_key, encode_action, encode_key
from dataplane.switch.p4runtime.schema import ActionInfo, Field, MatchKind, TableInfo
from dataplane.switch.pipeline import ActionCall, Exact, Lpm, Match, Range, Ternary


def table(fields: tuple[Field, ...], params: tuple[Field, ...] = ()) -> TableInfo:
    """Return a table with one action, `act`."""
    action = ActionInfo(1, "act", params)
    return TableInfo(
        2, "t", fields, {1: action}, {"act": 1}, frozenset(), frozenset(), False, False, ActionCall("act"),
        True, False, False, None,
    )  # fmt: skip


@st.composite
def keys(draw: st.DrawFn) -> tuple[TableInfo, tuple[Match, ...]]:
    """Draw a table's key and a match of it."""
    fields, matches = [], []
    for number in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(MatchKind))
        field = Field(number + 1, f"f{number}", draw(st.integers(1, 128)), f"f{number}", kind)
        fields.append(field)
        matches.append(draw(matches_of(field)))
    return table(tuple(fields)), tuple(matches)


def matches_of(field: Field) -> st.SearchStrategy[Match]:
    """Return all matches of a field, don't cares included."""
    values = st.integers(0, field.maximum)
    match field.kind:
        case MatchKind.EXACT:
            return values.map(Exact)
        case MatchKind.LPM:
            lengths = st.integers(0, field.width)
            return st.builds(lambda v, n: Lpm(v & ~(field.maximum >> n), n), values, lengths)
        case MatchKind.TERNARY:
            return st.builds(lambda v, m: Ternary(v & m, m), values, values)
        case MatchKind.RANGE:
            return st.builds(lambda a, b: Range(min(a, b), max(a, b)), values, values)
        case MatchKind.OPTIONAL:
            return st.one_of(st.just(Ternary(0, 0)), values.map(lambda v: Ternary(v, field.maximum)))


@given(keys(), st.randoms())
def test_keys_round_trip(key: tuple[TableInfo, tuple[Match, ...]], random: Random) -> None:
    """In any order of the fields."""
    info, match = key
    messages = list(encode_key(info, match))
    random.shuffle(messages)
    assert decode_key(info, messages) == match
    assert all(
        p4r.FieldMatch.FromString(m.SerializeToString()).WhichOneof("field_match_type") for m in messages
    )


@given(
    st.lists(
        st.integers(1, 64).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, (1 << w) - 1))), max_size=6
    )
)
def test_actions_round_trip(params: list[tuple[int, int]]) -> None:
    """Parameters of any width."""
    fields = tuple(Field(number, f"p{number}", width, "p") for number, (width, _) in enumerate(params, 1))
    info = table((), fields)
    call = ActionCall("act", tuple(value for _, value in params))
    assert decode_action(info, encode_action(info, call)) == call

"""Table keys and actions: P4Runtime's messages to the seam's values and back.

A field that the client omits is a "don't care" (spec section "Match Format"); sending one explicitly is refused, as
are values with bits outside their mask or prefix. An optional field is a ternary one for the pipeline: all ones or
all zeros as mask, which is also how BMv2 keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finsy.proto import p4r

from dataplane.switch.p4runtime import bytestrings
from dataplane.switch.p4runtime.errors import RequestRefused, invalid, unimplemented
from dataplane.switch.p4runtime.schema import ActionInfo, Field, MatchKind, TableInfo
from dataplane.switch.pipeline import ActionCall, Exact, Lpm, Match, Range, Ternary


def decode_key(table: TableInfo, matches: Sequence[p4r.FieldMatch]) -> tuple[Match, ...]:
    """Return a match for every key of the table, in its order."""
    given = {m.field_id: m for m in matches}
    if len(given) != len(matches):
        raise invalid(f"table {table.name}: a match field is given twice")
    key: list[Match] = []
    for field in table.fields:
        message = given.pop(field.id, None)
        key.append(_decode(field, message) if message is not None else dont_care(field))
    if given:
        raise invalid(f"table {table.name} has no match field with id {min(given)}")
    return tuple(key)


def _decode(field: Field, message: p4r.FieldMatch) -> Match:
    if field.kind is MatchKind.EXACT and message.HasField("exact"):
        # Spelled out here: nearly all that a controller writes in bulk are exact matches.
        data = message.exact.value
        value = int.from_bytes(data, "big")
        if not data or value >> field.width:
            bytestrings.decode(data, field.width, field.where)
        return Exact(value)
    given = message.WhichOneof("field_match_type")
    if given != field.kind.value:
        raise invalid(f"{field.where} is matched {field.kind.value}, not {given or 'at all'}")
    decoder = {
        MatchKind.LPM: _decode_lpm,
        MatchKind.TERNARY: _decode_ternary,
        MatchKind.RANGE: _decode_range,
        MatchKind.OPTIONAL: _decode_optional,
    }[field.kind]
    return decoder(field, message)


def _decode_lpm(field: Field, message: p4r.FieldMatch) -> Match:
    value = bytestrings.decode(message.lpm.value, field.width, field.where)
    length = message.lpm.prefix_len
    if not 0 < length <= field.width:
        raise invalid(f"{field.where}: prefix length {length} is not in 1..{field.width} (omit a don't care)")
    if value & (field.maximum >> length):
        raise invalid(f"{field.where}: the value has bits beyond its prefix of {length}")
    return Lpm(value, length)


def _decode_ternary(field: Field, message: p4r.FieldMatch) -> Match:
    value = bytestrings.decode(message.ternary.value, field.width, field.where)
    mask = bytestrings.decode(message.ternary.mask, field.width, f"{field.where} (mask)")
    if mask == 0:
        raise invalid(f"{field.where}: the mask is zero (omit a don't care)")
    if value & ~mask:
        raise invalid(f"{field.where}: the value has bits outside its mask")
    return Ternary(value, mask)


def _decode_range(field: Field, message: p4r.FieldMatch) -> Match:
    low = bytestrings.decode(message.range.low, field.width, f"{field.where} (low)")
    high = bytestrings.decode(message.range.high, field.width, f"{field.where} (high)")
    if low > high:
        raise invalid(f"{field.where}: low {low} is greater than high {high}")
    if low == 0 and high == field.maximum:
        raise invalid(f"{field.where}: the range is everything (omit a don't care)")
    return Range(low, high)


def _decode_optional(field: Field, message: p4r.FieldMatch) -> Match:
    return Ternary(bytestrings.decode(message.optional.value, field.width, field.where), field.maximum)


def dont_care(field: Field) -> Match:
    """Return the match of a field that the client omitted."""
    match field.kind:
        case MatchKind.EXACT:
            raise invalid(f"{field.where} is matched exactly and must be given")
        case MatchKind.LPM:
            return Lpm(0, 0)
        case MatchKind.RANGE:
            return Range(0, field.maximum)
        case _:
            return Ternary(0, 0)


def encode_key(table: TableInfo, key: Sequence[Match]) -> Iterator[p4r.FieldMatch]:
    """Yield the canonical messages, don't cares left out."""
    for field, match in zip(table.fields, key, strict=True):
        message = p4r.FieldMatch(field_id=field.id)
        match match:
            case Exact(value):
                message.exact.value = bytestrings.encode(value)
            case Lpm(value, length) if length:
                message.lpm.value, message.lpm.prefix_len = bytestrings.encode(value), length
            case Ternary(value, mask) if mask and field.kind is MatchKind.OPTIONAL:
                message.optional.value = bytestrings.encode(value)
            case Ternary(value, mask) if mask:
                message.ternary.value, message.ternary.mask = (
                    bytestrings.encode(value),
                    bytestrings.encode(mask),
                )
            case Range(low, high) if low or high != field.maximum:
                message.range.low, message.range.high = bytestrings.encode(low), bytestrings.encode(high)
            case _:
                continue
        yield message


def decode_action(table: TableInfo, message: p4r.TableAction) -> ActionCall:
    """Return the action of an entry; whether it may be the default is the caller's question."""
    kind = message.WhichOneof("type")
    if kind != "action":
        if table.indirect:
            raise unimplemented(f"table {table.name}: action profiles are not offered")
        raise invalid(f"table {table.name} takes an action, not {kind or 'an empty one'}")
    action = table.actions.get(message.action.action_id)
    if action is None:
        raise invalid(f"table {table.name} has no action with id {message.action.action_id}")
    return ActionCall(action.name, _decode_params(action, message.action.params))


def _decode_params(action: ActionInfo, messages: Sequence[p4r.Action.Param]) -> tuple[int, ...]:
    given = {p.param_id: p.value for p in messages}
    if len(given) != len(action.params) or len(messages) != len(given):
        raise _wrong_params(action, messages)
    try:
        return tuple([bytestrings.decode(given[p.id], p.width, p.where) for p in action.params])
    except KeyError as ex:
        raise _wrong_params(action, messages) from ex


def _wrong_params(action: ActionInfo, messages: Sequence[p4r.Action.Param]) -> RequestRefused:
    wanted = ", ".join(f"{p.id} ({p.name})" for p in action.params) or "none"
    given = ", ".join(str(p.param_id) for p in messages) or "none"
    return invalid(f"action {action.name} takes the parameters {wanted}; given: {given}")


def encode_action(table: TableInfo, call: ActionCall) -> p4r.TableAction:
    """Return the message of an action with its data."""
    message = p4r.TableAction()
    action = table.actions.get(table.action_ids.get(call.name, 0))
    if action is None:
        return message  # a default action that P4Info hides (@hidden)
    message.action.action_id = action.id
    for param, value in zip(action.params, call.params, strict=True):
        message.action.params.add(param_id=param.id, value=bytestrings.encode(value))
    return message

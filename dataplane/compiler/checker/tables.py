"""Tables: keys, actions, default action, entries, properties."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ast
from .. import types as t
from ..errors import Abort
from .scope import Scope
from .statements import StatementChecker

V1MODEL_PROPERTIES = {
    "size", "implementation", "counters", "meters", "support_timeout", "largest_priority_wins", "priority_delta",
}  # fmt: skip


class TableChecker(StatementChecker):
    """Checks tables."""

    match_kinds: set[str]

    def table(self, table: ast.Table, scope: Scope) -> None:
        """Check a table."""
        for key in table.keys:
            self.key_element(key, scope)
        listed: dict[str, ast.ActionRef] = {}
        for ref in table.actions:
            name = self.action_reference(table, ref, scope)
            if name in listed:
                self.diagnostics.error(f"table '{table.name}' lists action '{name}' twice", ref.pos, ref.end)
            listed[name] = ref
        if table.default_action is not None:
            self.complete_call(table, table.default_action, listed, scope, "default_action")
        if table.entries is not None:
            if not table.entries_are_const:
                self.diagnostics.error(
                    f"table '{table.name}': 'entries' that can be changed are not supported "
                    "(BMv2 makes such a table immutable); write 'const entries'",
                    table.pos,
                    table.end,
                )
            kinds = [key.expr.type for key in table.keys]
            for entry in table.entries:
                self.entry(table, entry, kinds, listed, scope)
        for prop in table.properties.values():
            self.property(table, prop, scope)

    def key_element(self, key: ast.KeyElement, scope: Scope) -> None:
        key.expr = self.expr(key.expr, scope)
        base = t.underlying(key.expr.type)
        if not isinstance(base, (t.Bits, t.Enum)) and base not in (t.BOOL, t.ERROR, t.UNKNOWN):
            extra = " (give it a width)" if base is t.INT else ""
            raise self.diagnostics.failure(f"{key.expr.type} cannot be a table key{extra}", key.pos, key.end)
        if key.match_kind.name not in self.match_kinds:
            raise self.diagnostics.failure(
                f"there is no match kind '{key.match_kind.name}'", key.match_kind.pos, key.match_kind.end
            )

    def action_reference(self, table: ast.Table, ref: ast.ActionRef, scope: Scope) -> str:
        """Check an element of `actions`: only its directed parameters may have arguments."""
        name = ref.call.func if isinstance(ref.call, ast.Call) else ref.call
        assert isinstance(name, ast.Name)
        self.expr(name, scope)
        if not isinstance(name.type, t.ActionType):
            raise self.diagnostics.failure(f"'{name.name}' is not an action", name.pos, name.end)
        directed = [p for p in name.type.decl.params if p.direction]
        if isinstance(ref.call, ast.Call):
            ref.call.type = t.VOID
            self.arguments(ref.call, directed, scope, {}, f"action '{name.name}' in table '{table.name}'")
        elif directed:
            raise self.diagnostics.failure(
                f"action '{name.name}' needs an argument for '{directed[0].name}' in table '{table.name}'",
                ref.pos,
                ref.end,
            )
        return name.name

    def complete_call(
        self, table: ast.Table, ref: ast.ActionRef, listed: dict[str, ast.ActionRef], scope: Scope, what: str
    ) -> None:
        """Check an action with all its arguments, which must be in the table's list."""
        name = ref.call.func if isinstance(ref.call, ast.Call) else ref.call
        assert isinstance(name, ast.Name)
        self.expr(name, scope)
        if not isinstance(name.type, t.ActionType):
            raise self.diagnostics.failure(f"'{name.name}' is not an action", name.pos, name.end)
        if name.name not in listed:
            raise self.diagnostics.failure(
                f"the {what} '{name.name}' is not in the actions of table '{table.name}'", name.pos, name.end
            )
        if what == "entry" and any(a.name == "defaultonly" for a in listed[name.name].annotations):
            raise self.diagnostics.failure(f"action '{name.name}' is @defaultonly", name.pos, name.end)
        if not isinstance(ref.call, ast.Call):
            ref.call = ast.Call(ref.pos, ref.end, name, [], [], [])
        ref.call.type = t.VOID
        self.arguments(ref.call, name.type.decl.params, scope, {}, f"action '{name.name}'")
        for param, argument in zip(name.type.decl.params, ref.call.args, strict=True):
            if not param.direction and argument.const is None:
                raise self.diagnostics.failure(
                    f"argument '{param.name}' of action '{name.name}' must be known at compile time",
                    argument.pos,
                    argument.end,
                )

    def entry(
        self,
        table: ast.Table,
        entry: ast.Entry,
        kinds: Sequence[t.Type],
        listed: dict[str, ast.ActionRef],
        scope: Scope,
    ) -> None:
        try:
            self.keys(entry.keys, kinds, scope, f"table '{table.name}'")
            for key, element in zip(entry.keys, table.keys, strict=False):
                self.entry_key(key, element)
            self.complete_call(table, entry.action, listed, scope, "entry")
            if entry.priority is not None:
                entry.priority.const = self.constant_int(entry.priority, scope, "a priority")
        except Abort:
            return

    def entry_key(self, key: ast.Expr, element: ast.KeyElement) -> None:
        kind = element.match_kind.name
        allowed = {
            "exact": (),
            "lpm": (ast.Mask, ast.Default),
            "ternary": (ast.Mask, ast.Default),
            "optional": (ast.Default,),
            "range": (ast.Range, ast.Default),
        }
        special = isinstance(key, (ast.Mask, ast.Range, ast.Default))
        if kind in allowed and special and not isinstance(key, allowed[kind] or ()):
            word = {ast.Mask: "&&&", ast.Range: "..", ast.Default: "_"}[type(key)]
            raise self.diagnostics.failure(
                f"'{word}' does not fit a key that is matched '{kind}'", key.pos, key.end
            )

    def keys(self, keys: list[ast.Expr], kinds: Sequence[t.Type], scope: Scope, what: str) -> None:
        """Check the keys of a select case or of an entry against the types that they are compared with."""
        if len(keys) == 1 and len(kinds) > 1 and isinstance(keys[0], ast.Default):
            return
        if len(keys) == 1 and len(kinds) > 1 and isinstance(keys[0], ast.Name):
            found = self.expr(keys[0], scope)
            if isinstance(found.type, t.Set):
                return
        if len(keys) != len(kinds):
            raise self.diagnostics.failure(
                f"{len(keys)} key(s) given, but {what} has {len(kinds)}", keys[0].pos, keys[-1].end
            )
        for at, (key, kind) in enumerate(zip(keys, kinds, strict=True)):
            keys[at] = self.one_key(key, kind, scope)

    def one_key(self, key: ast.Expr, kind: t.Type, scope: Scope) -> ast.Expr:
        checked = self.expr(key, scope)
        if isinstance(checked, ast.Mask):
            base = t.underlying(kind)
            checked.value = self.coerce(checked.value, base, "the value")
            checked.mask = self.coerce(checked.mask, base, "the mask")
            parts = [checked.value, checked.mask]
        elif isinstance(checked, ast.Range):
            base = t.underlying(kind)
            checked.low = self.coerce(checked.low, base, "the lower bound")
            checked.high = self.coerce(checked.high, base, "the upper bound")
            parts = [checked.low, checked.high]
        elif isinstance(checked.type, t.Set):
            if checked.type.element != kind:
                raise self.diagnostics.failure(
                    f"the value set has type {checked.type.element}, the key {kind}", key.pos, key.end
                )
            return checked
        else:
            checked = self.coerce(checked, kind, "the key")
            parts = [] if isinstance(checked, ast.Default) else [checked]
        for part in parts:
            if part.const is None:
                raise self.diagnostics.failure("a key must be known at compile time", part.pos, part.end)
        return checked

    def property(self, table: ast.Table, prop: ast.Property, scope: Scope) -> None:
        if prop.name not in V1MODEL_PROPERTIES:
            self.diagnostics.warn(
                "unknown-property",
                f"table property '{prop.name}' has no meaning in v1model",
                prop.pos,
                prop.end,
            )
            return
        prop.value = self.expr(prop.value, scope)
        value = prop.value
        if prop.name == "size":
            if not isinstance(value.const, int) or value.const < 0:
                raise self.diagnostics.failure(
                    "the size of a table must be a number known at compile time", value.pos, value.end
                )
        elif prop.name in ("support_timeout", "largest_priority_wins"):
            if not isinstance(value.const, bool):
                raise self.diagnostics.failure(f"'{prop.name}' must be true or false", value.pos, value.end)
        elif prop.name != "priority_delta":
            wanted = {
                "implementation": ("action_profile", "action_selector"),
                "counters": ("direct_counter",),
                "meters": ("direct_meter",),
            }[prop.name]
            if not isinstance(value.type, t.Extern) or value.type.decl.name not in wanted:
                raise self.diagnostics.failure(
                    f"'{prop.name}' must be {' or '.join(wanted)}, not {value.type}", value.pos, value.end
                )

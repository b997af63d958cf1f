"""Parsers: states, and those of inlined sub-parsers."""

from __future__ import annotations

from .. import ast, ir
from .. import types as t
from ..errors import Abort
from .body import Body, Build
from .controls import ControlLowering
from .env import BlockInstance, Env, Names
from .values import lower_type


class ParserBody:
    """Steps of parser states; a condition or a sub-parser ends a state and begins another."""

    kind = "parser"

    def __init__(self, lowering: ParserLowering, state: ir.State) -> None:
        self.lowering = lowering
        self.state = state
        self.left: dict[object, list[ir.State]] = {}

    def step(self, step: ir.Step) -> None:
        """Add a step to the current state."""
        self.state.steps.append(step)

    def continued(self) -> ir.State:
        """Return a new state that follows the current one."""
        name = self.state.name if self.state.name != "(unreachable)" else "state"
        return self.lowering.new_state(self.lowering.state_names.numbered(name))

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Go through one of two states."""
        saved = self.lowering.variable("cond", t.BOOL)
        assert isinstance(saved, ir.Field)
        self.step(ir.Step("assign", (saved, cond), span))
        before = self.state
        yes, no, after = self.continued(), self.continued(), self.continued()
        before.keys = [ir.Field(t.Bits(1), saved.header, saved.name)]
        before.cases = [
            ir.Case([ir.EntryKey(1)], None, yes.name),
            ir.Case([ir.EntryKey(None)], None, no.name),
        ]
        for state, build in ((yes, then), (no, orelse)):
            self.state = state
            if build is not None:
                build(self)
            go_to(self.state, after)
        self.state = after

    def leave(self, label: object, node: ast.Node) -> None:
        """Go on behind what the label names; what follows here is never reached."""
        self.left.setdefault(label, []).append(self.state)
        self.state = ir.State("(unreachable)")

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""
        build(self)
        left = self.left.pop(label, [])
        if not left:
            return
        if len(left) == 1 and self.state.name == "(unreachable)":
            self.state = left[0]
            return
        after = self.continued()
        for state in (*left, self.state):
            go_to(state, after)
        self.state = after


def go_to(state: ir.State, following: ir.State) -> None:
    """Make a state always continue with another."""
    state.keys = []
    state.cases = [ir.Case([ir.EntryKey(None)], None, following.name)]


class ParserLowering(ControlLowering):
    """Lowers parsers."""

    state_names: Names

    def new_state(self, name: str) -> ir.State:
        """Add a state."""
        state = ir.State(name)
        self.program.states.append(state)
        return state

    def parser(self, decl: ast.ParserDecl, env: Env, prefix: str, first: str, accept: str | None) -> None:
        """Lower a parser; `first` names its start state, `accept` the state (None: end) that follows it."""
        assert decl.states is not None
        self.enter(decl, env, prefix)
        named = {
            state: self.state_names.new(state.name if first == "start" else f"{first}_{state.name}")
            for state in decl.states
        }
        made = [self.new_state(name) for name in named.values()]
        for state, first_state in zip(named, made, strict=True):
            body = ParserBody(self, first_state)
            inner = Env(env)
            try:
                if state.name == "start":
                    self.initialise(decl, env, body)
                self.statements(state.statements, inner, body)
                self.transition(state, named, inner, body, accept)
            except Abort:
                continue

    def transition(
        self, state: ast.State, named: dict[ast.State, str], env: Env, body: ParserBody, accept: str | None
    ) -> None:
        written = state.transition
        if written is None:
            self.diagnostics.warn(
                "parser-transition", f"state '{state.name}' has no transition, which means reject", state.pos
            )
            body.state.cases = [ir.Case([ir.EntryKey(None)], None, None)]
            return
        if isinstance(written, ast.Name):
            body.state.cases = [ir.Case([ir.EntryKey(None)], None, self.target(written, named, accept))]
            return
        keys = [self.select_key(e, env, body) for e in written.exprs]
        body.state.keys = keys
        for case in written.cases:
            self.case(case, keys, named, env, body, accept)

    def target(self, name: ast.Name, named: dict[ast.State, str], accept: str | None) -> str | None:
        if name.name == "accept":
            return accept
        if name.name == "reject":
            self.diagnostics.warn(
                "unsupported", "BMv2 cannot reject: this ends the parser as accept does", name.pos, name.end
            )
            return None
        return named[name.ref]

    def select_key(self, expr: ast.Expr, env: Env, body: ParserBody) -> ir.Expr:
        """Return a key that BMv2 can compare: a field or lookahead; others are computed into a variable."""
        value = self.value(expr, env, body)
        if isinstance(value, (ir.Field, ir.LastField)) and not isinstance(value.type, t.VarBits):
            return value
        if not isinstance(value, ir.Expr):
            raise self.refusal(f"select on {expr.type}", expr)
        copy = self.variable("select", lower_type(expr.type))
        self.assign(copy, value, (expr.pos, expr.end), body, expr)
        assert isinstance(copy, ir.Field)
        return copy

    def case(
        self,
        case: ast.SelectCase,
        keys: list[ir.Expr],
        named: dict[ast.State, str],
        env: Env,
        body: ParserBody,
        accept: str | None,
    ) -> None:
        following = self.target(case.state, named, accept)
        written = case.keys
        if len(written) == 1 and isinstance(written[0].type, t.Set) and isinstance(written[0], ast.Name):
            found = env.get(written[0].ref)
            assert isinstance(found, ir.ValueSet)
            body.state.cases.append(ir.Case([], found.name, following))
            return
        if len(written) == 1 and isinstance(written[0], ast.Default):
            body.state.cases.append(ir.Case([ir.EntryKey(None)] * len(keys), None, following))
            return
        choices: list[list[ir.EntryKey]] = [[]]
        for key, expr in zip(keys, written, strict=True):
            if isinstance(expr.type, t.Set) and isinstance(expr, ast.Name):
                raise self.refusal("a value set as one of several keys", expr)
            alternatives = self.alternatives(expr, t.width_of(key.type) or 0)
            choices = [[*choice, alternative] for choice in choices for alternative in alternatives]
        for choice in choices:
            body.state.cases.append(ir.Case(choice, None, following))

    def alternatives(self, expr: ast.Expr, width: int) -> list[ir.EntryKey]:
        """Return values and masks for a key; a range becomes several."""
        if isinstance(expr, ast.Default):
            return [ir.EntryKey(None)]
        if isinstance(expr, ast.Mask):
            return [ir.EntryKey(expr.value.const & expr.mask.const, expr.mask.const)]
        if isinstance(expr, ast.Range):
            masks = range_to_masks(expr.low.const, expr.high.const, width)
            return [ir.EntryKey(value, mask) for value, mask in masks]
        value = self.constant(expr)
        assert isinstance(value, ir.Const)
        return [ir.EntryKey(int(value.value))]

    # ---- packet_in

    def packet_in(self, expr: ast.Call, func: ast.Member, env: Env, body: Body) -> ir.Value:
        if not isinstance(body, ParserBody):
            raise self.refusal(f"'{func.name}' outside of a parser", expr)
        span = (expr.pos, expr.end)
        if func.name == "lookahead":
            return self.lookahead(expr, body, span)
        if func.name == "length":
            raise self.refusal("'packet_in.length' (BMv2 does not offer it)", expr)
        if func.name == "advance":
            body.step(ir.Step("advance", (self.expr(expr.args[0], env, body),), span))
            return ir.DontCare()
        target = self.value(expr.args[0], env, body)
        if isinstance(target, ir.DontCare):
            raise self.refusal("extract(_)", expr)
        if not isinstance(target, ir.HeaderRef):
            raise self.diagnostics.failure("'extract' needs a header", expr.args[0].pos, expr.args[0].end)
        if target.which == "last" or target.index is not None:
            raise self.refusal("'extract' into this element of a stack (use 'next')", expr.args[0])
        has_varbit = any(isinstance(k, t.VarBits) for k in target.type.fields.values())
        if has_varbit != (len(expr.args) == 2):
            text = "needs" if has_varbit else "takes no"
            raise self.diagnostics.failure(
                f"'extract' {text} length: header '{target.type}' has {'a' if has_varbit else 'no'} varbit field",
                expr.pos,
                expr.end,
            )
        if len(expr.args) == 2:
            body.step(ir.Step("extract_VL", (target, self.expr(expr.args[1], env, body)), span))
        else:
            body.step(ir.Step("extract", (target,), span))
        return ir.DontCare()

    def lookahead(self, expr: ast.Call, body: ParserBody, span: ir.Span) -> ir.Value:
        kind = lower_type(expr.type)
        width = t.width_of(kind)
        if width is None or not isinstance(kind, (t.Bits, t.StructLike, t.Tuple)):
            raise self.refusal(f"lookahead<{expr.type}>", expr)
        # One part after the other; BMv2 can look at any bits ahead.
        offset = 0

        def part(inner: t.Type) -> ir.Value:
            nonlocal offset
            inner = lower_type(inner)
            if isinstance(inner, t.StructLike):
                return ir.Struct(inner, {n: part(k) for n, k in inner.fields.items()})
            if isinstance(inner, t.Tuple):
                return ir.Struct(inner, {str(n): part(k) for n, k in enumerate(inner.elements)})
            size = t.width_of(inner) or 0
            # BMv2 can only `set` what lies ahead, not compute with it.
            ahead = self.variable("ahead", t.Bits(size) if inner is t.BOOL else inner)
            assert isinstance(ahead, ir.Field)
            body.step(ir.Step("assign", (ahead, ir.Lookahead(ahead.type, offset, size)), span))
            offset += size
            if inner is t.BOOL:
                return ir.Op(t.BOOL, "!=", ahead, ir.Const(t.Bits(1), 0))
            return ahead

        return part(kind)

    # ---- sub-parsers

    def inline_block(self, instance: BlockInstance, call: ast.Call, env: Env, body: Body) -> None:
        decl = instance.decl
        if not isinstance(decl, ast.ParserDecl):
            super().inline_block(instance, call, env, body)
            return
        if not isinstance(body, ParserBody):
            raise self.refusal(f"applying parser '{decl.name}' here", call)
        if decl in self.parsing:
            raise self.diagnostics.failure(f"parser '{decl.name}' applies itself", call.pos, call.end)
        inner = Env(instance.env)
        self.bind_arguments(decl.params, call, env, inner, body)
        before, after = body.state, body.continued()
        prefix = self.state_names.new(f"{before.name}_{instance.name.rpartition('.')[2]}")
        self.parsing.append(decl)
        self.prefixes.append(instance.name)
        self.parser(decl, inner, instance.name, prefix, after.name)
        self.prefixes.pop()
        self.parsing.pop()
        before.cases = [ir.Case([ir.EntryKey(None)], None, f"{prefix}_start")]
        body.state = after

    parsing: list[ast.ParserDecl]


def range_to_masks(low: int, high: int, width: int) -> list[tuple[int, int]]:
    """Cover low..high with the fewest value/mask pairs."""
    result = []
    full = (1 << width) - 1
    while low <= high:
        size = (low & -low) if low else 1 << width
        while size > high - low + 1:
            size >>= 1
        result.append((low, full & ~(size - 1)))
        low += size
    return result

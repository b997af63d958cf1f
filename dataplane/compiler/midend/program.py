"""The package: v1model's six blocks, their headers and metadata."""

from __future__ import annotations

from .. import ast, ir
from .. import types as t
from ..checker import Checker
from ..errors import Abort, Diagnostics
from .body import Body, Build, ControlBody
from .env import Env, Names
from .parsers import ParserLowering
from .values import lower_type


class DeparserBody:
    """Takes the order of headers; everything but emit is refused."""

    kind = "deparser"

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics = diagnostics
        self.steps: list[ir.Step] = []

    def step(self, step: ir.Step) -> None:
        """Add a step that BMv2 allows in deparsers."""
        if step.op not in ("assert", "assume", "log_msg"):
            raise self.diagnostics.failure("only emit is supported in a deparser (BMv2)", *step.span)
        self.steps.append(step)

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Refuse conditions."""
        raise self.diagnostics.failure(
            "conditions in a deparser are not supported (BMv2); emit skips invalid headers", *span
        )

    def leave(self, label: object, node: ast.Node) -> None:
        """Refuse jumps."""
        raise self.diagnostics.failure(
            "'return' and 'exit' in a deparser are not supported", node.pos, node.end
        )

    def labelled(self, label: object, build: Build) -> None:
        """Refuse inlined functions."""
        raise self.diagnostics.failure("calls in a deparser are not supported", None)


class ProgramLowering(ParserLowering):
    """Lowers a whole program."""

    def __init__(self, checker: Checker, tree: ast.Program, diagnostics: Diagnostics) -> None:
        enums = [kind for kind in checker.types.values() if isinstance(kind, t.Enum)]
        super().__init__(ir.Program(list(checker.errors), enums), diagnostics, Names())
        self.tree = tree
        self.state_names = Names()
        self.frames = []
        self.inlining = []
        self.applied = []
        self.parsing = []
        self.prefixes = []
        self.called = {}
        self.direct_uses = []
        self.key_steps = {}
        self.block_kind = ""
        self.global_no_action = next(
            (d for d in tree.decls if isinstance(d, ast.Action) and d.name == "NoAction"), None
        )

    def run(self, main: ast.Instance) -> ir.Program:
        """Lower the package V1Switch."""
        assert isinstance(main.type, t.Block)
        package = main.type.decl
        if package.name != "V1Switch":
            raise self.diagnostics.failure(
                f"package '{package.name}' is not supported; this compiler translates v1model's V1Switch",
                main.pos,
                main.end,
            )
        self.program.main = main
        blocks = {p.name: a for p, a in zip(package.params, main.args, strict=True)}
        decls = {name: self.block_decl(argument) for name, argument in blocks.items()}
        parser, verify, ingress, egress, compute, deparser = (decls[p.name] for p in package.params)
        assert isinstance(parser, ast.ParserDecl)
        self.standard_metadata(parser)
        hdr, meta, std = self.storage(parser)
        self.global_instances()
        self.block_kind = "parser"
        self.prefixes.append(self.block_name(parser))
        self.parser(
            parser,
            self.parameters(parser, [ir.PacketRef(), hdr, meta, std]),
            self.block_name(parser),
            "start",
            None,
        )
        for name, decl in (("ingress", ingress), ("egress", egress)):
            assert isinstance(decl, ast.ControlDecl)
            self.block_kind = name
            self.pipeline(name, decl, self.parameters(decl, [hdr, meta, std]))
        self.block_kind = "deparser"
        self.deparser(deparser, [ir.PacketRef(), hdr])
        self.block_kind = "checksum"
        self.checksums(compute, [hdr, meta], update=True)
        self.checksums(verify, [hdr, meta], update=False)
        self.direct_instances()
        self.controller_headers()
        return self.program

    def block_decl(self, argument: ast.Expr) -> ast.ParserDecl | ast.ControlDecl:
        kind = argument.type
        assert isinstance(kind, t.Block) and not isinstance(kind.decl, ast.PackageDecl)
        if isinstance(argument, ast.Call) and argument.args:
            raise self.refusal("constructor arguments of a top-level block", argument)
        return kind.decl

    @staticmethod
    def block_name(decl: ast.Decl) -> str:
        return t.annotated_name(decl) or decl.name

    def parameters(self, decl: ast.ParserDecl | ast.ControlDecl, values: list[ir.Value]) -> Env:
        env = Env(self.globals)
        for param, value in zip(decl.params, values, strict=True):
            env.bind(param, value)
        return env

    globals: Env

    def global_instances(self) -> None:
        """Make the extern instances that stand at top level."""
        self.globals = Env()
        for decl in self.tree.decls:
            if isinstance(decl, ast.Instance) and isinstance(decl.type, t.Extern):
                self.declare(decl, self.globals, "")

    # ---- headers and metadata

    def standard_metadata(self, parser: ast.ParserDecl) -> None:
        kind = parser.params[3].type
        assert isinstance(kind, t.StructLike)
        self.program.standard_metadata = kind

    def storage(self, parser: ast.ParserDecl) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Make the headers, the user's metadata and standard_metadata."""
        header_param, meta_param = parser.params[1], parser.params[2]
        if not isinstance(header_param.type, t.StructLike) or header_param.type.kind != "struct":
            raise self.diagnostics.failure("the headers must be a struct", header_param.pos, header_param.end)
        if not isinstance(meta_param.type, t.StructLike) or meta_param.type.kind != "struct":
            raise self.diagnostics.failure(
                "the user metadata must be a struct", meta_param.pos, meta_param.end
            )
        fields: dict[str, ir.Value] = {}
        for field in header_param.type.decl.fields:
            kind = header_param.type.fields[field.name]
            if not isinstance(kind, t.Stack) and not (
                isinstance(kind, t.StructLike) and kind.kind != "struct"
            ):
                raise self.diagnostics.failure(
                    "the headers' struct can only have headers, stacks and unions", field.pos, field.end
                )
            fields[field.name] = self.header_instance(t.annotated_name(field) or field.name, kind)
        meta = self.metadata(meta_param.type)
        std = self.program.standard_metadata
        assert std is not None
        std_fields: dict[str, ir.Value] = {
            name: ir.Field(lower_type(kind), "standard_metadata", name) for name, kind in std.fields.items()
        }
        return ir.Struct(header_param.type, fields, ""), meta, ir.Struct(std, std_fields, "standard_metadata")

    def header_instance(self, name: str, kind: t.Type) -> ir.Value:
        unique = self.names.new(name)
        if isinstance(kind, t.Stack):
            self.program.headers.append(ir.HeaderInstance(unique, kind, "stack"))
            return ir.StackRef(unique, kind)
        assert isinstance(kind, t.StructLike)
        word = "header" if kind.kind == "header" else "union"
        self.program.headers.append(ir.HeaderInstance(unique, kind, word))
        return ir.HeaderRef(unique, kind) if word == "header" else ir.UnionRef(unique, kind)

    def metadata(self, kind: t.StructLike) -> ir.Struct:
        """Flatten the user's metadata into scalars; nested fields get p4c's names, _a_b plus a number."""
        nested = any(isinstance(t.underlying(f), (t.StructLike, t.Tuple)) for f in kind.fields.values())
        counter = 0

        def flatten(inner: t.StructLike, path: str) -> ir.Struct:
            nonlocal counter
            fields: dict[str, ir.Value] = {}
            for field in inner.decl.fields:
                base = lower_type(inner.fields[field.name])
                if isinstance(base, t.StructLike) and base.kind == "struct":
                    fields[field.name] = flatten(base, f"{path}_{field.name}")
                elif isinstance(base, (t.StructLike, t.Stack)):
                    fields[field.name] = self.header_instance(field.name, base)
                elif isinstance(base, (t.Tuple, t.VarBits)):
                    fields[field.name] = self.variable(f"userMetadata.{field.name}", base)
                else:
                    name = f"{path}_{field.name}{counter}" if nested else field.name
                    counter += 1
                    full = self.names.new(f"userMetadata.{name}")
                    self.program.scalars.append((full, base))
                    value = ir.Field(base, "scalars", full)
                    fields[field.name] = value
                    self.tag_field_lists(field, value)
            return ir.Struct(inner, fields, "")

        return flatten(kind, "")

    def tag_field_lists(self, field: ast.FieldDecl, value: ir.Field) -> None:
        """Add a metadata field to the lists that @field_list names."""
        annotation = field.annotation("field_list")
        if annotation is None:
            return
        for argument in annotation.args:
            number = argument.const if argument.const is not None else getattr(argument, "value", None)
            if not isinstance(number, int):
                self.diagnostics.error("@field_list takes numbers", annotation.pos, annotation.end)
                continue
            name = f"field_list{number}"
            found = next((fl for fl in self.program.field_lists if fl.name == name), None)
            if found is None:
                found = ir.FieldListDecl(name, [], None)
                self.program.field_lists.append(found)
            found.elements.append(value)

    # ---- pipelines

    def pipeline(self, name: str, decl: ast.ControlDecl, env: Env) -> None:
        made = ir.Pipeline(name, decl)
        self.program.pipelines.append(made)
        self.prefixes.append(self.block_name(decl))
        self.enter(decl, env, self.block_name(decl))
        body = ControlBody(self.hide)
        assert decl.body is not None
        try:
            self.initialise(decl, env, body)
            self.framed_top(decl.body.items, env, body)
        except Abort:
            return
        body.flush()
        made.body = body.nodes

    def framed_top(self, items: list[ast.Stmt | ast.Decl], env: Env, body: Body) -> None:
        """Lower the outermost statements one by one, so that several errors can be reported."""
        from .externs import Frame

        self.frames.append(Frame(None, None))
        inner = Env(env)
        failed = False
        for item in items:
            try:
                self.statements([item], inner, body)
            except Abort:
                failed = True
        self.frames.pop()
        if failed:
            raise Abort

    # ---- deparser

    def deparser(self, decl: ast.ParserDecl | ast.ControlDecl, values: list[ir.Value]) -> None:
        assert isinstance(decl, ast.ControlDecl) and decl.body is not None
        self.program.deparser = decl
        env = self.parameters(decl, values)
        body = DeparserBody(self.diagnostics)
        self.enter(decl, env, self.block_name(decl))
        try:
            self.framed_top(decl.body.items, env, body)
        except Abort:
            return
        self.program.deparser_steps = body.steps

    def packet_out(self, expr: ast.Call, func: ast.Member, env: Env, body: Body) -> ir.Value:
        if body.kind != "deparser":
            raise self.refusal("'emit' outside of the deparser", expr)
        self.program.deparser_order.extend(self.emitted(self.value(expr.args[0], env, body), expr))
        return ir.DontCare()

    def emitted(self, value: ir.Value, node: ast.Node) -> list[str]:
        """Return the header instances that emit writes, in order."""
        if isinstance(value, ir.HeaderRef) and value.index is None and not value.which:
            return [value.name]
        if isinstance(value, ir.UnionRef) and not value.which:
            return [f"{value.name}.{member}" for member in value.type.fields]
        if isinstance(value, ir.StackRef):
            element = value.type.element
            assert isinstance(element, t.StructLike)
            names = [f"{value.name}[{i}]" for i in range(value.type.size)]
            if element.kind == "header":
                return names
            return [f"{name}.{member}" for name in names for member in element.fields]
        if isinstance(value, ir.Struct):
            return [name for part in value.fields.values() for name in self.emitted(part, node)]
        raise self.diagnostics.failure(
            "'emit' needs a header, or a stack, union or struct of headers", node.pos, node.end
        )

    # ---- checksums

    def checksums(self, decl: ast.ParserDecl | ast.ControlDecl, values: list[ir.Value], update: bool) -> None:
        assert isinstance(decl, ast.ControlDecl) and decl.body is not None
        env = self.parameters(decl, values)
        for local in decl.locals:
            if not isinstance(local, ast.Const):
                raise self.refusal(f"'{local.name}': a declaration in a checksum control", local)
        for item in decl.body.items:
            try:
                self.checksum(item, env, update)
            except Abort:
                continue

    def checksum(self, item: ast.Node, env: Env, update: bool) -> None:
        verb = "update" if update else "verify"
        if isinstance(item, ast.Block):
            for inner in item.items:
                self.checksum(inner, env, update)
            return
        if isinstance(item, ast.Empty):
            return
        names = (f"{verb}_checksum", f"{verb}_checksum_with_payload")
        call = item.call if isinstance(item, ast.CallStmt) else None
        if call is None or not isinstance(call.func, ast.Name) or call.func.name not in names:
            raise self.diagnostics.failure(
                f"only {names[0]} and {names[1]} are allowed here (BMv2)", item.pos, item.end
            )
        assert isinstance(call.func, ast.Name)
        span = (call.pos, call.end)
        body = DeparserBody(self.diagnostics)
        condition = self.expr(call.args[0], env, body)
        inputs = self.elements(self.value(call.args[1], env, body), call.args[1])
        for value in inputs:
            if not isinstance(value, (ir.Const, ir.Field)):
                raise self.refusal(f"computing in the values of {names[0]}", call.args[1])
        target = self.value(call.args[2], env, body)
        if not isinstance(target, ir.Field):
            raise self.refusal("this target of a checksum", call.args[2])
        algorithm = self.algorithm(call.args[3])
        with_payload = call.func.name.endswith("_with_payload")
        calculation = ir.Calculation(self.names.new("calc"), algorithm, inputs, with_payload, span)
        self.program.calculations.append(calculation)
        self.program.checksums.append(
            ir.Checksum(self.names.new("cksum"), target, calculation, condition, update, span)
        )

    # ---- the rest

    def direct_instances(self) -> None:
        """Check that direct counters and meters that are used belong to a table."""
        for instance, call, prop in self.direct_uses:
            if instance.table is None:
                self.diagnostics.error(
                    f"'{instance.decl.name}' belongs to no table; write '{prop} = {instance.decl.name};' in one",
                    call.pos,
                    call.end,
                )
        for extern in self.program.externs:
            if extern.type.decl.name == "direct_meter" and extern.table is not None and extern.result is None:
                # BMv2 writes the color somewhere even if nobody reads it.
                unread = self.variable("color", extern.type.args[0])
                assert isinstance(unread, ir.Field)
                extern.result = unread
            if extern.type.decl.name in ("direct_counter", "direct_meter") and extern.table is None:
                self.diagnostics.warn(
                    "unused",
                    f"'{extern.decl.name}' belongs to no table and is left out",
                    extern.decl.pos,
                    extern.decl.end,
                )

    def controller_headers(self) -> None:
        for decl in self.tree.decls:
            if (
                isinstance(decl, ast.StructDecl)
                and decl.kind == "header"
                and decl.annotation("controller_header")
            ):
                kind = self.checked_types.get(decl)
                if isinstance(kind, t.StructLike):
                    self.program.controller_headers.append(kind)

    checked_types: dict[ast.Decl, t.Type]


def lower_program(checker: Checker, tree: ast.Program, diagnostics: Diagnostics) -> ir.Program:
    """Lower a checked program."""
    lowering = ProgramLowering(checker, tree, diagnostics)
    lowering.checked_types = checker.types
    if checker.main is None:
        diagnostics.error("the program has no 'main' (a V1Switch at top level)", tree.end)
        return lowering.program
    try:
        return lowering.run(checker.main)
    except Abort:
        return lowering.program

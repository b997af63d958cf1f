"""Declarations: everything at top level and in parsers and controls."""

from __future__ import annotations

from .. import ast
from ..errors import Abort
from .tables import TableParser

DIRECTIONS = ("in", "out", "inout")


class Parser(TableParser):
    """Rules p4program and declaration."""

    def program(self) -> ast.Program:
        """p4program: declaration*"""
        start = self.token.pos
        decls: list[ast.Decl] = []
        while self.token.kind != "EOF":
            if self.accept(";"):
                continue
            try:
                decls.append(self.declaration())
            except Abort:
                self.skip_block()
        return ast.Program(start, self.token.end, decls)

    def declaration(self) -> ast.Decl:
        """Parse a declaration; its type parameters are types within it only."""
        self.type_params: set[str] = set()
        try:
            return self.any_declaration()
        finally:
            self.type_names -= self.type_params

    def any_declaration(self) -> ast.Decl:
        """declaration: constant | extern | action | parser | type | control | instantiation | function | ..."""
        annotations = self.annotations()
        kind = self.token.kind
        if kind == "const":
            return self.constant(annotations)
        if kind == "extern":
            return self.extern(annotations)
        if kind == "action":
            return self.action(annotations)
        if kind == "parser":
            return self.parser(annotations)
        if kind == "control":
            return self.control(annotations)
        if kind == "package":
            return self.package(annotations)
        if kind in ("header", "struct", "header_union"):
            return self.struct(annotations)
        if kind == "enum":
            return self.enum(annotations)
        if kind == "typedef" or (kind == "type" and self.peek().kind != "("):
            return self.typedef(annotations)
        if kind in ("error", "match_kind") and self.peek().kind == "{":
            return self.error_or_match_kind(annotations)
        return self.function_or_instance(annotations)

    # ---- types

    def declare_type(self, name: str) -> None:
        """Remember that a name is a type, which the grammar depends on."""
        self.type_names.add(name)

    def type_parameters(self) -> list[ast.TypeParam]:
        """optTypeParameters: < name, ... >"""
        result: list[ast.TypeParam] = []
        if not self.accept("<"):
            return result
        while True:
            name = self.name("a type parameter")
            if name.text not in self.type_names:
                self.type_params.add(name.text)
            self.declare_type(name.text)
            result.append(ast.TypeParam(name.pos, name.end, name.text))
            if not self.accept(","):
                break
        self.expect(">", "after the type parameters")
        return result

    def parameters(self) -> list[ast.Param]:
        """( parameter, ... ) where parameter: annotations direction typeRef name [= expression]"""
        self.expect("(", "before the parameters")
        result: list[ast.Param] = []
        while self.token.kind != ")":
            annotations = self.annotations()
            direction = self.advance().kind if self.token.kind in DIRECTIONS else ""
            type_expr = self.type_ref()
            name = self.name("a parameter's name")
            default = self.expression() if self.accept("=") else None
            result.append(
                ast.Param(
                    name.pos, name.end, name.text, direction, type_expr, default, annotations=annotations
                )
            )
            if not self.accept(","):
                break
        self.expect(")", "after the parameters")
        return result

    def struct(self, annotations: list[ast.Annotation]) -> ast.StructDecl:
        """header | struct | header_union name { (annotations typeRef name ;)* }"""
        kind = self.advance().kind
        name = self.name(f"the name of the {kind}")
        self.declare_type(name.text)
        type_params = self.type_parameters()
        self.expect("{", f"after the name of the {kind}")
        fields = []
        while self.token.kind != "}":
            field_annotations = self.annotations()
            type_expr = self.type_ref()
            field = self.name("a field's name")
            self.expect(";", "after the field")
            fields.append(
                ast.FieldDecl(field.pos, field.end, field.text, type_expr, annotations=field_annotations)
            )
        self.expect("}")
        return ast.StructDecl(
            name.pos, name.end, name.text, kind, fields, type_params, annotations=annotations
        )

    def enum(self, annotations: list[ast.Annotation]) -> ast.EnumDecl:
        """enum [typeRef] name { member [= expression], ... }"""
        self.expect("enum")
        underlying = None
        if self.token.kind in ("bit", "int") or self.peek().kind == "ID":
            underlying = self.type_ref()
        name = self.name("the name of the enum")
        self.declare_type(name.text)
        members = self.members(with_values=underlying is not None)
        return ast.EnumDecl(name.pos, name.end, name.text, underlying, members, annotations=annotations)

    def members(self, with_values: bool) -> list[ast.EnumMember]:
        """{ annotations name [= expression], ... }"""
        self.expect("{")
        result = []
        while self.token.kind != "}":
            annotations = self.annotations()
            name = self.name("a member's name")
            value = self.expression() if with_values and self.accept("=") else None
            result.append(ast.EnumMember(name.pos, name.end, name.text, value, annotations=annotations))
            if not self.accept(","):
                break
        self.expect("}", "after the members")
        return result

    def error_or_match_kind(self, annotations: list[ast.Annotation]) -> ast.ErrorDecl:
        """error { name, ... } | match_kind { name, ... }"""
        word = self.advance()
        members = self.members(with_values=False)
        return ast.ErrorDecl(word.pos, word.end, word.kind, members, annotations=annotations)

    def typedef(self, annotations: list[ast.Annotation]) -> ast.Typedef:
        """typedef typeRef name ; | type typeRef name ;"""
        distinct = self.advance().kind == "type"
        if self.token.kind in ("header", "struct", "enum"):
            raise self.diagnostics.failure(
                "a type must be declared before typedef can name it again", self.token.pos
            )
        target = self.type_ref()
        name = self.name("the new type's name")
        self.declare_type(name.text)
        self.expect(";", "after the type")
        return ast.Typedef(name.pos, name.end, name.text, target, distinct, annotations=annotations)

    # ---- externs and functions

    def extern(self, annotations: list[ast.Annotation]) -> ast.Decl:
        """extern functionPrototype ; | extern name typeParameters { methodPrototype* }"""
        self.expect("extern")
        if self.is_name() and self.peek().kind in ("{", "<"):
            at = self.at
            name = self.advance()
            type_params = self.type_parameters()
            if self.token.kind == "{":
                self.declare_type(name.text)
                return self.extern_type(name.text, name.pos, name.end, type_params, annotations)
            self.back_to(at)
        function = self.prototype(annotations)
        self.expect(";", "after the extern function")
        return function

    def extern_type(
        self,
        name: str,
        pos: int,
        end: int,
        type_params: list[ast.TypeParam],
        annotations: list[ast.Annotation],
    ) -> ast.ExternDecl:
        """{ (typeRef name typeParams ( params ) ; | name ( params ) ;)* }"""
        self.expect("{")
        methods = []
        while self.token.kind != "}":
            method_annotations = self.annotations()
            if self.token.kind == "abstract":
                raise self.diagnostics.failure(
                    "abstract extern methods are not supported", self.token.pos, self.token.end
                )
            if self.token.text == name and self.peek().kind == "(":
                word = self.advance()
                params = self.parameters()
                methods.append(
                    ast.Function(
                        word.pos, word.end, name, [], None, params, None, annotations=method_annotations
                    )
                )
            else:
                methods.append(self.prototype(method_annotations))
            self.expect(";", "after the method")
        self.expect("}")
        return ast.ExternDecl(pos, end, name, type_params, methods, annotations=annotations)

    def prototype(self, annotations: list[ast.Annotation]) -> ast.Function:
        """functionPrototype: typeOrVoid name typeParameters ( parameters )"""
        # The result may be one of the type parameters that follow it.
        returns = self.type_ref()
        name = self.name("the function's name")
        type_params = self.type_parameters()
        params = self.parameters()
        return ast.Function(
            name.pos, name.end, name.text, type_params, returns, params, None, annotations=annotations
        )

    def function_or_instance(self, annotations: list[ast.Annotation]) -> ast.Decl:
        """functionDeclaration: prototype block | instantiation: typeRef ( args ) name ;"""
        if self.token.kind == "EOF" or not (
            self.at_type() or self.is_name() or self.token.kind in (".", "tuple")
        ):
            raise self.unexpected("a declaration")
        at = self.at
        self.type_ref()
        is_instance = self.token.kind == "("
        is_variable = self.is_name() and self.peek().kind in (";", "=")
        self.back_to(at)
        if is_variable:
            raise self.diagnostics.failure("variables are not allowed at top level", self.token.pos)
        if is_instance:
            return self.variable_or_instance(annotations)
        function = self.prototype(annotations)
        function.body = self.block()
        return function

    def action(self, annotations: list[ast.Annotation]) -> ast.Action:
        """actionDeclaration: action name ( parameters ) block"""
        self.expect("action")
        name = self.name("the action's name")
        params = self.parameters()
        body = self.block()
        for param in params:
            param.of_action = True
        return ast.Action(name.pos, name.end, name.text, params, body, annotations=annotations)

    # ---- parsers, controls, packages

    def parser(self, annotations: list[ast.Annotation]) -> ast.ParserDecl:
        """parser name typeParams ( params ) [( constructor params )] ( ; | { locals states } )"""
        self.expect("parser")
        name = self.name("the parser's name")
        self.declare_type(name.text)
        type_params = self.type_parameters()
        params = self.parameters()
        if self.accept(";"):
            return ast.ParserDecl(
                name.pos, name.end, name.text, type_params, params, [], [], None, annotations=annotations
            )
        constructor = self.parameters() if self.token.kind == "(" else []
        self.expect("{", "after the parser's parameters")
        local: list[ast.Decl] = []
        states: list[ast.State] = []
        while self.token.kind not in ("}", "EOF"):
            try:
                self.parser_element(local, states)
            except Abort:
                self.skip_block()
        self.expect("}", "at the end of the parser")
        return ast.ParserDecl(
            name.pos,
            name.end,
            name.text,
            type_params,
            params,
            constructor,
            local,
            states,
            annotations=annotations,
        )

    def parser_element(self, local: list[ast.Decl], states: list[ast.State]) -> None:
        """constant | variable | instantiation | valueSet | state"""
        annotations = self.annotations()
        if self.token.kind == "state":
            states.append(self.state(annotations))
        elif self.token.kind == "valueset":
            local.append(self.value_set(annotations))
        elif self.token.kind == "const":
            local.append(self.constant(annotations))
        else:
            local.append(self.variable_or_instance(annotations))

    def value_set(self, annotations: list[ast.Annotation]) -> ast.ValueSet:
        """valueset < typeRef > ( expression ) name ;"""
        self.expect("valueset")
        self.expect("<")
        element = self.type_ref()
        self.expect(">")
        self.expect("(")
        size = self.expression()
        self.expect(")")
        name = self.name("the value set's name")
        self.expect(";")
        return ast.ValueSet(name.pos, name.end, name.text, element, size, annotations=annotations)

    def state(self, annotations: list[ast.Annotation]) -> ast.State:
        """state name { statement* [transition stateExpression] }"""
        self.expect("state")
        name = self.name("the state's name")
        self.expect("{", "after the state's name")
        statements: list[ast.Stmt | ast.Decl] = []
        transition: ast.Name | ast.Select | None = None
        while self.token.kind not in ("}", "EOF"):
            if self.token.kind == "transition":
                self.advance()
                transition = self.transition()
                break
            try:
                statements.append(self.statement_or_declaration())
            except Abort:
                self.skip_statement()
        self.expect("}", "after the transition" if transition else "at the end of the state")
        return ast.State(name.pos, name.end, name.text, statements, transition, annotations=annotations)

    def transition(self) -> ast.Name | ast.Select:
        """stateExpression: name ; | select ( expressions ) { cases }"""
        start = self.token
        if not self.accept("select"):
            name = self.name("a state's name")
            self.expect(";", "after the transition")
            return ast.Name(name.pos, name.end, name.text)
        exprs, _ = self.arguments()
        self.expect("{", "after select (…)")
        cases = []
        while self.token.kind not in ("}", "EOF"):
            at = self.token
            keys = self.keyset()
            self.expect(":", "after the keys")
            name = self.name("a state's name")
            self.expect(";", "after the state")
            target = ast.Name(name.pos, name.end, name.text)
            cases.append(ast.SelectCase(at.pos, keys[-1].end, keys, target))
        end = self.expect("}").end
        return ast.Select(start.pos, end, exprs, cases)

    def control(self, annotations: list[ast.Annotation]) -> ast.ControlDecl:
        """control name typeParams ( params ) [( constructor params )] ( ; | { locals apply block } )"""
        self.expect("control")
        name = self.name("the control's name")
        self.declare_type(name.text)
        type_params = self.type_parameters()
        params = self.parameters()
        if self.accept(";"):
            return ast.ControlDecl(
                name.pos, name.end, name.text, type_params, params, [], [], None, annotations=annotations
            )
        constructor = self.parameters() if self.token.kind == "(" else []
        self.expect("{", "after the control's parameters")
        local: list[ast.Decl] = []
        body: ast.Block | None = None
        while self.token.kind not in ("}", "EOF"):
            if self.token.kind == "apply" and self.peek().kind in ("{", "@"):
                self.advance()
                body = self.block()
                break
            try:
                local.append(self.control_local())
            except Abort:
                self.skip_block()
        if body is None and not self.diagnostics.error_count:
            raise self.unexpected("'apply'", f"in control {name.text}")
        self.expect("}", "at the end of the control (apply comes last)")
        return ast.ControlDecl(
            name.pos,
            name.end,
            name.text,
            type_params,
            params,
            constructor,
            local,
            body,
            annotations=annotations,
        )

    def control_local(self) -> ast.Decl:
        """constant | action | table | instantiation | variable"""
        annotations = self.annotations()
        kind = self.token.kind
        if kind == "const":
            return self.constant(annotations)
        if kind == "action":
            return self.action(annotations)
        if kind == "table":
            return self.table(annotations)
        return self.variable_or_instance(annotations)

    def package(self, annotations: list[ast.Annotation]) -> ast.PackageDecl:
        """package name typeParams ( params ) ;"""
        self.expect("package")
        name = self.name("the package's name")
        self.declare_type(name.text)
        type_params = self.type_parameters()
        params = self.parameters()
        self.expect(";", "after the package")
        return ast.PackageDecl(name.pos, name.end, name.text, type_params, params, annotations=annotations)

"""Statements."""

from __future__ import annotations

from .. import ast
from ..errors import Abort
from .base import Backtrack
from .expressions import ExpressionParser

COMPOUND_ASSIGNMENTS = ("+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=")


class StatementParser(ExpressionParser):
    """Rules statement and statementOrDeclaration."""

    def block(self) -> ast.Block:
        """blockStatement: annotations { statementOrDeclaration* }"""
        annotations = self.annotations()
        start = self.expect("{")
        items: list[ast.Stmt | ast.Decl] = []
        while self.token.kind not in ("}", "EOF"):
            at = self.at
            try:
                items.append(self.statement_or_declaration())
            except Abort:
                if self.at == at:
                    self.advance()
                self.skip_statement()
        end = self.expect("}", "at the end of the block").end
        return ast.Block(start.pos, end, items, annotations)

    def skip_statement(self) -> None:
        """Go on behind the next `;`, or before the `}` that closes the block."""
        depth = 0
        while self.token.kind != "EOF":
            kind = self.token.kind
            if kind == "}" and depth == 0:
                return
            self.advance()
            depth += (kind == "{") - (kind == "}")
            if kind == ";" and depth == 0:
                return
            if kind == "}" and depth == 0:
                return

    def statement_or_declaration(self) -> ast.Stmt | ast.Decl:
        """statementOrDeclaration: variableDeclaration | constantDeclaration | statement | instantiation"""
        if self.token.kind == "@":
            at = self.at
            annotations = self.annotations()
            if self.token.kind == "{":
                self.back_to(at)
                return self.block()
            if self.token.kind == "const":
                return self.constant(annotations)
            if self.at_declaration():
                return self.variable_or_instance(annotations)
            return self.statement()
        if self.token.kind == "const":
            return self.constant([])
        if self.at_declaration():
            return self.variable_or_instance([])
        return self.statement()

    def at_declaration(self) -> bool:
        """Say whether `type name` or `type(args) name` comes."""
        if not self.at_type() and self.token.kind != ".":
            # A name that is not a known type, before another name: let the declaration say that it is unknown.
            return self.token.kind == "ID" and self.peek().kind == "ID"
        at = self.at
        self.trial += 1
        try:
            self.type_ref()
            if self.token.kind == "(":
                self.arguments()
            return self.is_name()
        except Backtrack:
            return False
        finally:
            self.trial -= 1
            self.back_to(at)

    def variable_or_instance(self, annotations: list[ast.Annotation]) -> ast.Decl:
        """variableDeclaration: typeRef name [= expression] ;   instantiation: typeRef ( args ) name ;"""
        type_expr = self.type_ref()
        if self.token.kind == "(":
            args, names = self.arguments()
            name = self.name("the name of the instance")
            if self.token.kind == "=":
                raise self.diagnostics.failure(
                    "abstract extern methods ('= { … }' after an instance) are not supported", self.token.pos
                )
            self.expect(";", "after the instantiation")
            return ast.Instance(
                name.pos, name.end, name.text, type_expr, args, names, annotations=annotations
            )
        name = self.name("the name of the variable")
        init = self.expression() if self.accept("=") else None
        self.expect(";", "after the declaration")
        return ast.Variable(name.pos, name.end, name.text, type_expr, init, annotations=annotations)

    def constant(self, annotations: list[ast.Annotation]) -> ast.Const:
        """constantDeclaration: const typeRef name = expression ;"""
        self.expect("const")
        type_expr = self.type_ref()
        name = self.name("the name of the constant")
        self.expect("=", "(a constant needs a value)")
        value = self.expression()
        self.expect(";", "after the constant")
        return ast.Const(name.pos, name.end, name.text, type_expr, value, annotations=annotations)

    def statement(self) -> ast.Stmt:
        """statement: assignmentOrMethodCall | if | block | empty | exit | return | switch"""
        token = self.token
        kind = token.kind
        if kind == "{":
            return self.block()
        if kind == ";":
            self.advance()
            return ast.Empty(token.pos, token.end)
        if kind == "if":
            return self.conditional()
        if kind == "return":
            self.advance()
            value = None if self.token.kind == ";" else self.expression()
            end = self.last_end
            self.expect(";", "after return")
            return ast.Return(token.pos, end, value)
        if kind == "exit":
            self.advance()
            self.expect(";", "after exit")
            return ast.Exit(token.pos, token.end)
        if kind == "switch":
            return self.switch()
        if kind in ("for", "break", "continue") and self.peek().kind in ("(", ";"):
            raise self.diagnostics.failure(f"'{kind}' (loops) is not supported", token.pos, token.end)
        if kind in ("table", "action", "state", "parser", "control"):
            raise self.diagnostics.failure(
                f"a {kind} cannot be declared within statements", token.pos, token.end
            )
        return self.assignment_or_call()

    def assignment_or_call(self) -> ast.Stmt:
        """lvalue = expression ; | lvalue ( arguments ) ;"""
        left = self.postfix(self.primary())
        if self.accept("="):
            right = self.expression()
            self.expect(";", "after the assignment")
            return ast.Assign(left.pos, right.end, left, right)
        if self.token.kind in COMPOUND_ASSIGNMENTS:
            operator = self.advance().kind[:-1]
            right = self.expression()
            self.expect(";", "after the assignment")
            return ast.Assign(
                left.pos, right.end, left, ast.Binary(left.pos, right.end, operator, left, right)
            )
        if not isinstance(left, ast.Call):
            raise self.unexpected("'=' or a call")
        self.expect(";", "after the call")
        return ast.CallStmt(left.pos, left.end, left)

    def conditional(self) -> ast.If:
        """if ( expression ) statement [else statement]"""
        start = self.expect("if")
        self.expect("(", "after if")
        cond = self.expression()
        self.expect(")", "after the condition")
        then = self.statement()
        orelse = self.statement() if self.accept("else") else None
        return ast.If(start.pos, self.last_end, cond, then, orelse)

    def switch(self) -> ast.Switch:
        """switch ( expression ) { (label : [block])* }"""
        start = self.expect("switch")
        self.expect("(", "after switch")
        expr = self.expression()
        self.expect(")", "after the expression")
        self.expect("{", "after switch (…)")
        cases = []
        while self.token.kind != "}":
            token = self.token
            label: ast.Expr
            if self.accept("default"):
                label = ast.Default(token.pos, token.end)
            else:
                label = self.expression()
            self.expect(":", "after the label")
            block = self.block() if self.token.kind in ("{", "@") else None
            cases.append(ast.SwitchCase(label.pos, label.end, label, block))
        end = self.expect("}").end
        return ast.Switch(start.pos, end, expr, cases)

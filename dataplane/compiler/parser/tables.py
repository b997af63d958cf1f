"""Tables and their properties."""

from __future__ import annotations

from .. import ast
from ..errors import Abort
from .statements import StatementParser


class TableParser(StatementParser):
    """Rules tableDeclaration and tableProperty."""

    def table(self, annotations: list[ast.Annotation]) -> ast.Table:
        """tableDeclaration: table name { tableProperty* }"""
        self.expect("table")
        name = self.name("the table's name")
        self.expect("{", "after the table's name")
        table = ast.Table(
            name.pos, name.end, name.text, [], [], None, False, None, False, {}, annotations=annotations
        )
        seen: set[str] = set()
        while self.token.kind not in ("}", "EOF"):
            try:
                self.table_property(table, seen)
            except Abort:
                self.skip_statement()
        self.expect("}", "at the end of the table")
        if "actions" not in seen:
            self.diagnostics.error(f"table '{table.name}' has no 'actions'", table.pos, table.end)
        return table

    def table_property(self, table: ast.Table, seen: set[str]) -> None:
        """key = { … } | actions = { … } | [const] entries = { … } | [const] name = expression ;"""
        annotations = self.annotations()
        is_const = self.accept("const") is not None
        word = self.name("a table property")
        if word.text in seen:
            self.diagnostics.error(f"table '{table.name}' has '{word.text}' twice", word.pos, word.end)
        seen.add(word.text)
        self.expect("=", f"after '{word.text}'")
        if word.text == "key":
            table.keys = self.key()
        elif word.text == "actions":
            table.actions = self.action_list()
        elif word.text == "entries":
            table.entries, table.entries_are_const = self.entries(), is_const
        elif word.text == "default_action":
            table.default_action, table.default_is_const = self.action_ref(), is_const
            self.expect(";", "after default_action")
        else:
            value = self.expression()
            self.expect(";", f"after '{word.text}'")
            table.properties[word.text] = ast.Property(
                word.pos, value.end, word.text, value, is_const, annotations
            )

    def key(self) -> list[ast.KeyElement]:
        """{ (expression : name annotations ;)* }"""
        self.expect("{", "after key =")
        result = []
        while self.token.kind != "}":
            start = self.token
            expr = self.expression()
            self.expect(":", "after the key expression")
            kind = self.name("a match kind")
            match_kind = ast.Name(kind.pos, kind.end, kind.text)
            annotations = self.annotations()
            self.expect(";", "after the key")
            result.append(ast.KeyElement(start.pos, expr.end, expr, match_kind, annotations))
        self.expect("}")
        self.accept(";")
        return result

    def action_list(self) -> list[ast.ActionRef]:
        """{ (annotations actionRef ;)* }"""
        self.expect("{", "after actions =")
        result = []
        while self.token.kind != "}":
            result.append(self.action_ref())
            self.expect(";", "after the action")
        self.expect("}")
        self.accept(";")
        return result

    def action_ref(self) -> ast.ActionRef:
        """actionRef: [.]name | [.]name ( argumentList )"""
        annotations = self.annotations()
        start = self.token
        absolute = self.accept(".") is not None
        name = self.name("an action's name")
        call: ast.Expr = ast.Name(start.pos, name.end, name.text, absolute)
        if self.token.kind == "(":
            call = self.call(call, [])
        return ast.ActionRef(start.pos, self.last_end, call, annotations)

    def entries(self) -> list[ast.Entry]:
        """{ ([const] [priority = expression :] keyset : actionRef annotations ;)* }"""
        self.expect("{", "after entries =")
        result = []
        while self.token.kind != "}":
            start = self.token
            is_const = self.accept("const") is not None
            priority = None
            if self.token.text == "priority" and self.peek().kind == "=":
                self.advance()
                self.advance()
                priority = self.expression()
                self.expect(":", "after the priority")
            keys = self.keyset()
            self.expect(":", "after the keys")
            action = self.action_ref()
            annotations = self.annotations()
            self.expect(";", "after the entry")
            result.append(ast.Entry(start.pos, self.last_end, keys, action, annotations, is_const, priority))
        self.expect("}")
        self.accept(";")
        return result

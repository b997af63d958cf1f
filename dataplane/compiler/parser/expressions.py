"""Types and expressions."""

from __future__ import annotations

from .. import ast
from ..lexer import parse_integer
from .base import Backtrack, ParserBase

BASE_TYPES = frozenset(["bool", "error", "bit", "int", "varbit", "void", "string", "match_kind"])
# Lowest first. P4_16 section 8 ("Expressions"): as in C, except that & | ^ bind tighter than comparisons.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",),
    ("&&",),
    ("==", "!="),
    ("<", ">", "<=", ">="),
    ("|",),
    ("^",),
    ("&",),
    ("<<", ">>"),
    ("++", "+", "-", "|+|", "|-|"),
    ("*", "/", "%"),
)
LEVEL_OF = {operator: level for level, operators in enumerate(LEVELS) for operator in operators}


class ExpressionParser(ParserBase):
    """Rules typeRef and expression."""

    # ---- types

    def at_type(self) -> bool:
        """Say whether a type starts here."""
        return self.token.kind in BASE_TYPES or self.token.kind in ("tuple", "list") or self.at_type_name()

    def type_ref(self) -> ast.TypeExpr:
        """typeRef: baseType | typeName | specializedType | headerStackType | tupleType"""
        token = self.token
        result: ast.TypeExpr
        if token.kind in BASE_TYPES:
            result = self.base_type()
        elif token.kind in ("tuple", "list"):
            self.advance()
            elements = self.type_arguments()
            result = ast.TupleType(token.pos, self.last_end, elements, token.kind == "list")
        elif token.kind == "." or self.is_name():
            absolute = self.accept(".") is not None
            name = self.name("a type")
            args = self.type_arguments() if self.token.kind == "<" else None
            result = ast.TypeName(token.pos, self.last_end, name.text, args, absolute)
        else:
            raise self.unexpected("a type")
        while self.token.kind == "[":
            self.advance()
            size = self.expression()
            self.expect("]", "after the size of a header stack")
            result = ast.StackType(token.pos, self.last_end, result, size)
        return result

    def base_type(self) -> ast.BaseType:
        """baseType: bool | error | string | void | match_kind | int | bit | bit<N> | int<N> | varbit<N>"""
        token = self.advance()
        width: ast.Expr | None = None
        if token.kind in ("bit", "int", "varbit") and self.accept("<"):
            if self.token.kind == "INT":
                number = self.advance()
                width = self.integer(number.text, number.pos, number.end)
            else:
                self.expect("(", "around the width expression")
                width = self.expression()
                self.expect(")")
            self.expect(">", "after the width")
        elif token.kind == "bit":
            width = ast.Number(token.pos, token.end, 1)
        elif token.kind == "varbit":
            raise self.unexpected("'<'", "after varbit")
        return ast.BaseType(token.pos, self.last_end, token.kind, width)

    def type_arguments(self) -> list[ast.TypeExpr]:
        """typeArgumentList: < typeArg, ... >"""
        self.expect("<")
        result: list[ast.TypeExpr] = []
        while self.token.kind != ">":
            if self.token.kind == "ID" and self.token.text == "_":
                token = self.advance()
                result.append(ast.DontCareType(token.pos, token.end))
            else:
                result.append(self.type_ref())
            if not self.accept(","):
                break
        self.expect(">", "after the type arguments")
        return result

    # ---- expressions

    def expression(self, level: int = 0) -> ast.Expr:
        """expression: binary operators by precedence, ?: above all"""
        left = self.binary(level)
        if level == 0 and self.accept("?"):
            yes = self.expression()
            self.expect(":", "in the conditional expression")
            no = self.expression()
            return ast.Ternary(left.pos, no.end, left, yes, no)
        return left

    def operator(self) -> tuple[str, int]:
        """Return the binary operator that comes next and its number of tokens (`>` comes alone from the lexer)."""
        token = self.token
        if token.kind == ">":
            following = self.peek()
            if following.pos == token.end and following.kind in (">", "="):
                return ">" + following.kind, 2
            if following.pos == token.end and following.kind == "==":  # `>==` is no operator
                return ">", 1
        return token.kind, 1

    def binary(self, minimum: int) -> ast.Expr:
        """expression OP expression, all left-associative"""
        left = self.prefix()
        while True:
            operator, length = self.operator()
            level = LEVEL_OF.get(operator, -1)
            if level < minimum:
                return left
            for _ in range(length):
                self.advance()
            right = self.binary(level + 1)
            left = ast.Binary(left.pos, right.end, operator, left, right)

    def prefix(self) -> ast.Expr:
        """! ~ - + expression | ( typeRef ) expression | postfix"""
        token = self.token
        if token.kind in ("!", "~", "-", "+"):
            self.advance()
            operand = self.prefix()
            return ast.Unary(token.pos, operand.end, token.kind, operand)
        if token.kind == "(" and self.at_cast():
            self.advance()
            target = self.type_ref()
            self.expect(")")
            operand = self.prefix()
            return ast.Cast(token.pos, operand.end, target, operand)
        return self.postfix(self.primary())

    def at_cast(self) -> bool:
        """Say whether `(` starts a cast: it is followed by a type and `)` and then an operand."""
        at = self.at
        self.trial += 1
        try:
            self.advance()
            if not self.at_type():
                return False
            self.type_ref()
            self.expect(")")
            kind = self.token.kind
            return kind in ("(", "INT", "STR", "{", "!", "~", "-", "+", "true", "false", "this", ".") or (
                self.is_name() or self.at_type() or kind == "error"
            )
        except Backtrack:
            return False
        finally:
            self.trial -= 1
            self.back_to(at)

    def primary(self) -> ast.Expr:
        """INTEGER | STRING | true | false | name | .name | { list } | ( expression ) | error | _ | type"""
        token = self.token
        kind = token.kind
        if kind == "INT":
            self.advance()
            return self.integer(token.text, token.pos, token.end)
        if kind == "ID" and token.text == "_":
            self.advance()
            return ast.Default(token.pos, token.end)
        if self.is_name():
            if self.at_type_name() and self.peek().kind == "<":
                return self.type_expression()
            self.advance()
            return ast.Name(token.pos, token.end, token.text)
        if kind == ".":
            self.advance()
            name = self.name()
            return ast.Name(token.pos, name.end, name.text, True)
        if kind in ("true", "false"):
            self.advance()
            return ast.Bool(token.pos, token.end, kind == "true")
        if kind == "STR":
            return self.string()
        if kind == "(":
            self.advance()
            inner = self.expression()
            self.expect(")", "after the expression")
            return inner
        if kind == "{":
            return self.list_expression()
        if kind in BASE_TYPES or kind == "tuple":
            return self.type_expression()
        if kind == "this":
            raise self.diagnostics.failure(
                "'this' (abstract extern methods) is not supported", token.pos, token.end
            )
        raise self.unexpected("an expression")

    def type_expression(self) -> ast.TypeRef:
        """typeRef where an expression may stand"""
        target = self.type_ref()
        return ast.TypeRef(target.pos, target.end, target)

    def integer(self, text: str, pos: int, end: int) -> ast.Number:
        """INTEGER"""
        literal = parse_integer(text)
        if isinstance(literal, str):
            self.diagnostics.error(literal, pos, end)
            return ast.Number(pos, end, 0)
        return ast.Number(
            pos, end, literal.value, literal.width, literal.signed and literal.width is not None
        )

    def list_expression(self) -> ast.Expr:
        """{ expression, ... } | { name = expression, ... } | { }, with an optional comma at the end"""
        start = self.expect("{")
        names: list[str] = []
        items: list[ast.Expr] = []
        fields = self.is_name() and self.peek().kind == "="
        while self.token.kind != "}":
            if self.token.kind == "...":
                raise self.diagnostics.failure(
                    "'...' (default initializers) is not supported", self.token.pos, self.token.end
                )
            if fields:
                names.append(self.name("a field name").text)
                self.expect("=", "after the field name")
            items.append(self.expression())
            if not self.accept(","):
                break
        end = self.expect("}", "after the list").end
        if fields:
            return ast.StructExpr(start.pos, end, names, items)
        return ast.ListExpr(start.pos, end, items)

    def postfix(self, expr: ast.Expr) -> ast.Expr:
        """expression . name | expression [ i ] | expression [ h : l ] | expression optTypeArgs ( args )"""
        while True:
            kind = self.token.kind
            if kind == ".":
                self.advance()
                name = self.name("a member's name")
                expr = ast.Member(expr.pos, name.end, expr, name.text, name.pos)
            elif kind == "[":
                expr = self.subscript(expr)
            elif kind == "(":
                expr = self.call(expr, [])
            elif kind == "<" and isinstance(expr, (ast.Name, ast.Member)):
                type_args = self.call_type_arguments()
                if type_args is None:
                    return expr
                expr = self.call(expr, type_args)
            else:
                return expr

    def subscript(self, expr: ast.Expr) -> ast.Expr:
        """[ i ] or [ high : low ]"""
        self.expect("[")
        index = self.expression()
        if self.accept(":"):
            low = self.expression()
            end = self.expect("]").end
            return ast.Slice(expr.pos, end, expr, index, low)
        end = self.expect("]", "after the index").end
        return ast.Index(expr.pos, end, expr, index)

    def call_type_arguments(self) -> list[ast.TypeExpr] | None:
        """Return the `<types>` of a call, or None if `<` is a comparison."""
        at = self.at
        self.trial += 1
        try:
            result = self.type_arguments()
            if self.token.kind != "(":
                raise Backtrack
        except Backtrack:
            self.back_to(at)
            return None
        finally:
            self.trial -= 1
        return result

    def call(self, func: ast.Expr, type_args: list[ast.TypeExpr]) -> ast.Call:
        """expression ( argumentList )"""
        args, names = self.arguments()
        return ast.Call(func.pos, self.last_end, func, type_args, args, names)

    def arguments(self) -> tuple[list[ast.Expr], list[str | None]]:
        """( argument, ... ) where argument: expression | name = expression | _"""
        self.expect("(")
        args: list[ast.Expr] = []
        names: list[str | None] = []
        while self.token.kind != ")":
            if self.is_name() and self.peek().kind == "=":
                names.append(self.advance().text)
                self.advance()
            else:
                names.append(None)
            args.append(self.expression())
            if not self.accept(","):
                break
        self.expect(")", "after the arguments")
        return args, names

    # ---- keysets

    def simple_keyset(self) -> ast.Expr:
        """simpleKeysetExpression: expression | expression &&& expression | expression .. expression | default | _"""
        token = self.token
        if self.accept("default"):
            return ast.Default(token.pos, token.end)
        value = self.expression()
        if self.accept("&&&"):
            mask = self.expression()
            return ast.Mask(value.pos, mask.end, value, mask)
        if self.accept(".."):
            high = self.expression()
            return ast.Range(value.pos, high.end, value, high)
        return value

    def keyset(self) -> list[ast.Expr]:
        """keysetExpression: ( simple, simple, ... ) | simple"""
        if self.token.kind != "(" or self.at_cast():
            return [self.simple_keyset()]
        at = self.at
        self.advance()
        keys = [self.simple_keyset()]
        while self.accept(","):
            if self.token.kind == ")":
                break
            keys.append(self.simple_keyset())
        self.expect(")", "after the keys")
        if len(keys) == 1 and self.token.kind not in (":", ";", ","):
            # It was just an expression that begins with a bracket: (a + b) &&& c
            self.back_to(at)
            return [self.simple_keyset()]
        return keys

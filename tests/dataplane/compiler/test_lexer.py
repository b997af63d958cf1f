"""Tokens and numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.compiler.errors import Diagnostics
from dataplane.compiler.lexer import IntegerLiteral, Lexer, parse_integer
from dataplane.compiler.source import Sources


def tokens(text: str) -> list[tuple[str, str]]:
    """Return kind and text of all tokens."""
    sources = Sources()
    diagnostics = Diagnostics(sources)
    result = [(t.kind, t.text) for t in Lexer(sources.add("t.p4", text), diagnostics).tokens()]
    diagnostics.check()
    return result


@pytest.mark.parametrize(
    ("text", "value", "width", "signed"),
    [
        ("0", 0, None, True),
        ("1_000", 1000, None, True),
        ("0xFF", 255, None, True),
        ("0b1010", 10, None, True),
        ("0o17", 15, None, True),
        ("0d19", 19, None, True),
        ("8w0xff", 255, 8, False),
        ("4s1", 1, 4, True),
        ("16w0b1", 1, 16, False),
        ("32w0x0a_00_00_01", 0x0A000001, 32, False),
    ],
)
def test_integers(text: str, value: int, width: int | None, signed: bool) -> None:
    """Every form of P4_16 section 6.4.3.2 is read."""
    assert parse_integer(text) == IntegerLiteral(value, width, signed)


@pytest.mark.parametrize("text", ["9q", "0x", "08wff", "0b12", "0w1", "1e5", "0x_"])
def test_bad_integers(text: str) -> None:
    """What is no number is named."""
    assert isinstance(parse_integer(text), str)


@given(st.integers(0, 2**128), st.sampled_from(["{}", "0x{:x}", "0b{:b}", "0o{:o}", "128w{}", "7s0x{:x}"]))
def test_integer_round_trip(value: int, form: str) -> None:
    """Writing and reading a number gives the number."""
    literal = parse_integer(form.format(value))
    assert isinstance(literal, IntegerLiteral)
    assert literal.value == value


@given(
    st.lists(
        st.sampled_from(
            ["x", "y1", "12", "+", "++", "&&&", "..", "(", ")", "==", "<<", '"s"', "header", "|+|"]
        )
    )
)
def test_spaces_do_not_matter(words: list[str]) -> None:
    """Spaces, newlines and comments between tokens change nothing."""
    for separator in (" ", "\n", " /* c */ ", " // c\n", "\t"):
        assert [text for _, text in tokens(separator.join(words))] == words


def test_closing_brackets_stay_apart() -> None:
    """`>` comes alone, as nested type arguments need it."""
    assert [t for t, _ in tokens("register<bit<8>> >= >>")] == [
        "ID", "<", "bit", "<", "INT", ">", ">", ">", "=", ">", ">",
    ]  # fmt: skip


def test_keywords_are_kinds() -> None:
    """A keyword's kind is the word."""
    assert tokens("table tables")[0] == ("table", "table")
    assert tokens("table tables")[1] == ("ID", "tables")

"""The preprocessor."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.compiler.errors import CompileError, Diagnostics
from dataplane.compiler.preprocessor import Preprocessor, render
from dataplane.compiler.source import Sources


def preprocess(
    text: str,
    path: Path = Path("t.p4"),
    defines: dict[str, str] | None = None,
    include: list[Path] | None = None,
) -> str:
    """Return what is left, words separated by spaces."""
    sources = Sources()
    diagnostics = Diagnostics(sources)
    tokens = Preprocessor(sources, diagnostics, include or []).run(path, text, (), defines)
    diagnostics.check()
    return " ".join(token.text for token in tokens[:-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#define A 1\nA B", "1 B"),
        ("#define A B\n#define B A\nA", "A"),
        ("#define A\n#ifdef A\nx\n#else\ny\n#endif", "x"),
        ("#ifndef A\nx\n#elif 1\ny\n#endif\nz", "x z"),
        ("#if 0\nx\n#elif 2 > 1\ny\n#elif 1\nz\n#else\nw\n#endif", "y"),
        ("#if 0\n#if 1\nx\n#else\ny\n#endif\n#else\nz\n#endif", "z"),
        ("#define F(a, b) a + b\nF(1, (2, 3)) F", "1 + ( 2 , 3 ) F"),
        ("#define F() 7\nF()", "7"),
        ("#define CAT(a, b) a##b\nCAT(x, 1)", "x1"),
        ("#define STR(a) #a\nSTR(a b)", '"a b"'),
        ("#define A 1 \\\n + 2\nA", "1 + 2"),
        ("#define A 1\n#undef A\nA", "A"),
        ("#if defined(A) || defined B\nx\n#endif\ny", "y"),
        ("#define N 3\n#if N >= 3 && (N & 1) == 1 && !defined(M)\nx\n#endif", "x"),
        ("#if 0\n' \" /* #endif */ // #endif\n#endif\nx", "x"),
        ("a /* b\n#define c 1\n */ c // d", "a c"),
        ("#if 5 / 2 == 2 && -5 / 2 == -2 && -5 % 2 == -1\nx\n#endif", "x"),
        ("#if UNKNOWN\nx\n#endif\n#pragma foo\n#line 4\ny", "y"),
    ],
)
def test_directives(text: str, expected: str) -> None:
    """Directives do what C's do."""
    assert preprocess(text) == expected


def test_defines_from_outside() -> None:
    """-D defines, with a value or 1."""
    assert preprocess("A", defines={"A": "x + 1"}) == "x + 1"


def test_include(tmp_path: Path) -> None:
    """Quoted names are looked for next to the file first, then as angled ones are."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.p4").write_text('#include "sub/b.p4"\na')
    (tmp_path / "sub" / "b.p4").write_text('#include "c.p4"\nb')
    (tmp_path / "sub" / "c.p4").write_text("c")
    assert preprocess('#include "a.p4"\nx', tmp_path / "t.p4") == "c b a x"
    assert preprocess("#include <c.p4>", include=[tmp_path / "sub"]) == "c"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ('\n #include "nope.p4"', "t.p4:2:12", "cannot find the file 'nope.p4' to include"),
        ("#if 1\n", "t.p4:1:2", "never closed"),
        ("#endif", "t.p4:1:2", "#endif without #if"),
        ("#if 1 +\n#endif", "t.p4:1:2", "incomplete"),
        ("#if 1 / 0\n#endif", "t.p4:1:7", "division by zero"),
        ("#foo", "t.p4:1:2", "unknown directive '#foo'"),
        ("#error no way", "t.p4:1:2", "#error no way"),
        ("#define F(a) a\nF(1, 2)", "t.p4:2:1", "macro 'F' takes 1 argument(s), 2 given"),
        ("#define F(a) a\nF(1", "t.p4:2:1", "not closed"),
        ("/* x", "t.p4:1:1", "comment is never closed"),
        ('"x', "t.p4:1:1", "string is never closed"),
        ("x $", "t.p4:1:3", "unexpected character '$'"),
    ],
)
def test_mistakes(text: str, place: str, message: str) -> None:
    """Mistakes are reported where they are."""
    with pytest.raises(CompileError) as caught:
        preprocess(text)
    assert str(caught.value).startswith(f"{place}: error: ")
    assert message in str(caught.value)


def test_file_that_includes_itself(tmp_path: Path) -> None:
    """Endless inclusion ends with a message."""
    path = tmp_path / "a.p4"
    path.write_text('#include "a.p4"\n')
    with pytest.raises(CompileError, match="included too deeply"):
        preprocess(path.read_text(), path)


numbers = st.integers(0, 50)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, int]:
    """Return an integer expression and its value."""
    if depth == 0 or draw(st.booleans()):
        number = draw(numbers)
        return str(number), number
    left, left_value = draw(expressions(depth - 1))
    right, right_value = draw(expressions(depth - 1))
    operator = draw(st.sampled_from(["+", "-", "*", "<", "==", "&&", "||", "&", "|", "^"]))
    value = {
        "+": left_value + right_value,
        "-": left_value - right_value,
        "*": left_value * right_value,
        "<": int(left_value < right_value),
        "==": int(left_value == right_value),
        "&&": int(bool(left_value and right_value)),
        "||": int(bool(left_value or right_value)),
        "&": left_value & right_value,
        "|": left_value | right_value,
        "^": left_value ^ right_value,
    }[operator]
    return f"({left} {operator} {right})", value


@given(expressions())
def test_conditions_agree_with_python(expression: tuple[str, int]) -> None:
    """#if computes what Python computes."""
    text, value = expression
    assert preprocess(f"#if {text} == ({value})\nyes\n#else\nno\n#endif") == "yes"


@given(st.lists(st.sampled_from(["A", "B", "C", "x", "1", "+"]), max_size=8))
def test_expansion_ends(body: list[str]) -> None:
    """Macros that name each other do not expand for ever, and leave no macro that could go on."""
    text = f"#define A {' '.join(body)}\n#define B A C\n#define C B x\nA B C"
    assert isinstance(preprocess(text), str)


def test_rendered_text_has_the_lines(tmp_path: Path) -> None:
    """-E keeps every token on its line."""
    sources = Sources()
    tokens = Preprocessor(sources, Diagnostics(sources)).run(Path("t.p4"), "#define A 1\n\nA +\n  b;\n")
    assert render(tokens, sources) == '#line 3 "t.p4"\n1 +\n  b;\n'

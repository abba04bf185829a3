"""Text that comes from data shows as it is and does nothing, wherever it is shown."""

import io
import warnings

import pytest
from matplotlib.figure import Figure
from nbconvert.filters import markdown2html

from helpers.runs.text import (
    for_figure,
    for_markdown,
    for_terminal,
    markdown_table,
    reason,
    without_secrets,
)

HOSTILE = [
    "$_$", r"$\frac$", r"\$5 and $6", "a|b", "<script>alert(1)</script>", "`rm -rf`", "*bold* _it_",
    "[link](javascript:alert(1))", "\u202etxt.exe", "\x1b[2J\x1b[31mred", "# heading", "&amp;",
    "~~x~~", "grün 鳥", "x" * 300, "a\nb", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_figure_shows_hostile_names_without_reading_them(text):
    figure = Figure(figsize=(3, 3))
    axes = figure.subplots()
    axes.set_title(for_figure(text))
    axes.set_yticks([0, 1], [for_figure(text), for_figure(f"a$ {text}")])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?!.*Glyph)")
        figure.savefig(io.BytesIO(), format="svg")
    assert len(for_figure(text, 20).replace(r"\$", "$")) <= 20


def test_matplotlib_shows_a_dollar_as_a_dollar():
    for text in ("$x$", "costs $5", r"\$5 and $6"):
        shown, is_formula = Figure().text(0, 0, for_figure(text))._preprocess_math(for_figure(text))
        assert (shown, bool(is_formula)) == (text, False)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_page_shows_hostile_names_as_they_are(text):
    page = markdown2html(f"| name | b |\n| --- | --- |\n| {for_markdown(text)} | 1 |\n")
    assert page.count("<td") == 2 and page.count("<tr") == 2
    for live in ("<script", "<code", "<em", "<strong", "<a ", "<h1", "<del", "\x1b", "\u202e"):
        assert live not in page
    assert "$" not in for_markdown(text)


def test_a_terminal_gets_no_commands():
    assert for_terminal("\x1b[2J\u202ea\nb grün 鳥") == "\\u001b[2J\\u202ea\\u000ab grün 鳥"


def test_a_reason_is_one_line_of_bounded_length():
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(KeyError()) == "KeyError"
    assert len(reason(ValueError("x" * 999))) <= 300


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://me:s3cret@host/name",
        "postgresql+psycopg://me:s3%63ret@host/name?password=hunter22",
        "postgresql://host/name?user=me&password=hunter22",
        "postgresql:/me:s3cret@host/name",
        "postgresql://me:s3cret",
        "oracle+nodriver://me:s3cret@host/x",
    ],
)
def test_errors_about_a_database_keep_its_password(address):
    said = f"cannot parse {address}: bad port 's3cret', 's3%63ret' or 'hunter22' in {address}"
    for secret in ("s3cret", "hunter22", "s3%63ret"):
        if secret in address or secret == "s3cret" and "s3%63ret" in address:
            assert secret not in without_secrets(said, address)
    assert without_secrets("no such file", "folder/journal.log") == "no such file"


def test_a_table_has_whole_numbers_with_separators_and_numbers_to_the_right():
    assert markdown_table(("a", "b"), [("x", 1234), ("y", "")]) == (
        "| a | b |\n| :--- | ---: |\n| x | 1,234 |\n| y |  |"
    )
    columns = {
        "---:": ("87.5% ± 2.0%", "+1.25", "-3", "40 %", "1,234"),
        ":---": ("3 of 4", "4×8", "3 M", "a", "-"),
    }
    for rule, cells in columns.items():
        for cell in cells:
            assert markdown_table(("",), [(cell,)]).splitlines()[1] == f"| {rule} |", cell
    assert markdown_table(("a",), []).splitlines()[0] == "| a |"

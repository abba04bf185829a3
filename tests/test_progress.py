"""Bars in a notebook leave nothing behind; elsewhere they are tqdm's own."""

import nbclient
import nbformat
import pytest

from helpers import ROOT
from helpers.runs.progress import tqdm


def test_outside_a_notebook_nothing_is_shown_where_nobody_watches(capsys):
    assert list(tqdm(range(3), disable=None)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def page():
    cells = [
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom helpers.runs.progress import tqdm",
        "print('before')\nfor i in tqdm(range(30), 'counting', mininterval=0):\n    seen = i",
        "bar = tqdm(total=2, desc='open', disable=None)\nbar.update()\nbar.refresh();",
        "for i in tqdm(range(3), disable=True): pass",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    return notebook


def texts(cell):
    return [o.get("text") or o["data"] for o in cell.outputs]


def test_a_bar_in_a_notebook_is_text_and_leaves_an_empty_line(page):
    assert texts(page.cells[1]) == ["before\n", {"text/plain": ""}]
    (shown,) = texts(page.cells[2])  # not closed
    assert shown.keys() == {"text/plain"} and shown["text/plain"].startswith("open:  50%")
    assert page.cells[3].outputs == []

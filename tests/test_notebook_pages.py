"""Pages of notebooks need no network: nothing is loaded from outside, and formulas are shown."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import ROOT
from helpers.report.notebooks import to_mathml, to_page, write_pages

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOADS = {"src", "srcset", "data", "poster", "background", "action", "xlink:href"}


def requests(page: str) -> list[str]:
    """List what a browser would ask for when it opens a page, and every script."""
    soup = BeautifulSoup(page, "html.parser")
    found = [str(tag)[:80] for tag in soup.find_all(["script", "link", "iframe", "object", "base"])]
    for tag in soup.find_all(True):
        found += [value for name, value in tag.attrs.items()
                  if name in LOADS and not value.startswith("data:")]  # fmt: skip
        found += [name for name in tag.attrs if name.startswith("on")]
    styles = " ".join(str(tag.string) for tag in soup.find_all("style"))
    styles += " ".join(tag["style"] for tag in soup.find_all(style=True))
    found += re.findall(r"@import[^;]*", styles)
    return found + re.findall(r"url\(\s*['\"]?(?!data:|#)([^)'\"]*)", styles)


@pytest.fixture
def notebook():
    """Everything that asks for something in nbconvert's own page, and two kinds of formula."""
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar"}
    outputs = [
        new_output("display_data", {"text/latex": r"$\displaystyle 9 m^{2} + \frac{1}{2}$"}),
        new_output("display_data", {"text/markdown": r"It is **$\tfrac12$**."}),
        new_output("display_data", widget),
    ]
    return new_notebook(
        cells=[
            new_markdown_cell("[![Open in Colab](https://example.org/badge.svg)](https://x.org)"),
            new_markdown_cell('<img alt="without a source">'),
            new_markdown_cell("Inline $k^2$ and\n\n$$\\sum_{i=1}^n x_i$$\n\ncost 3 $."),
            new_code_cell("print('x < y')", outputs=outputs),
        ],
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )


def test_page_asks_for_nothing_and_shows_formulas(notebook):
    page = to_page(notebook, "a notebook")
    assert requests(page) == []
    soup = BeautifulSoup(page, "html.parser")
    assert [math["display"] for math in soup.find_all("math")] == [
        "inline", "block", "block", "inline",
    ]  # fmt: skip
    text = soup.get_text()
    assert "$" not in text.replace("cost 3 $", "") and "\\" not in text
    assert soup.title.string == "a notebook" and "Open in Colab" in text and "x < y" in text


def test_the_test_sees_what_nbconvert_asks_for(notebook):
    """Were our page like nbconvert's own, the test above would fail."""
    from nbconvert import HTMLExporter

    html, _ = HTMLExporter().from_notebook_node(notebook)
    found = " ".join(requests(html))
    assert "require" in found and "badge.svg" in found


def formulas(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return [block or inline for block, inline in
            re.findall(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)\$", text, re.DOTALL)]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_notebooks_is_understood(path):
    for formula in formulas(path):
        shown = BeautifulSoup(to_mathml(formula), "html.parser").get_text()
        assert shown and "\\" not in shown, formula


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_browser_makes_no_request(notebook, tmp_path):
    """By the browser's own log of its network, apart from what the browser asks its maker."""
    path = tmp_path / "page.ipynb"
    nbformat.write(notebook, path)
    (page,) = write_pages([path])
    log = tmp_path / "net.json"
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run", f"--log-net-log={log}",
         f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}",
         page.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    hosts = set(re.findall(r'"url":"https?://([^/"]*)', log.read_text()))
    own = (".google.com", "update.googleapis.com", "guide-pa.googleapis.com", ".gvt1.com")
    assert {host for host in hosts if not host.endswith(own)} == set()
    assert (tmp_path / "page.png").stat().st_size > 0

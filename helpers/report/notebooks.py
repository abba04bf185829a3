"""Write executed notebooks as pages that need nothing else: `python -m helpers.report.notebooks`.

Each page is one HTML file without scripts, whose formulas are MathML and whose pictures are inside.
Opened without a network it asks for nothing, and shows the same.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from helpers.runs.files import CannotWrite, write_atomically
from helpers.runs.progress import tqdm


def to_mathml(latex: str, display: str = "inline") -> str:
    """Turn a formula without its dollar signs into MathML; `display` is inline or block."""
    return convert(latex.strip().removeprefix(r"\displaystyle"), display=display)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def block_math(self, body: str) -> str:
        return to_mathml(body, "block")


class _Exporter(HTMLExporter):
    def default_filters(self):
        yield from super().default_filters()
        renderer = _Renderer(escape=False)
        yield "markdown2html", lambda source: MarkdownWithMath(renderer=renderer).render(source)


def to_page(notebook: nbformat.NotebookNode, title: str) -> str:
    """Return an executed notebook as the text of a page."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            formula = output.get("data", {}).pop("text/latex", None)
            if formula is not None:
                output.data["text/html"] = to_mathml(formula.strip().strip("$"), "block")
    html, _ = _Exporter().from_notebook_node(notebook, {"metadata": {"name": title}})
    page = BeautifulSoup(html, "html.parser")
    for script in page.find_all("script"):
        script.decompose()
    for image in page.find_all("img", src=lambda source: source and not source.startswith("data:")):
        image.replace_with(image.get("alt", ""))
    return str(page)


def write_pages(paths: list[Path]) -> list[Path]:
    """Write a page beside each executed notebook, and return the pages' paths."""
    pages = []
    for path in tqdm(paths, unit="page", disable=None):
        page = path.with_suffix(".html")
        write_atomically(page, to_page(nbformat.read(path, as_version=4), path.stem).encode())
        pages.append(page)
    return pages


def main() -> None:
    """Write the pages of the notebooks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m helpers.report.notebooks", description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path, help="executed notebooks (.ipynb)")
    try:
        for page in write_pages(parser.parse_args().notebooks):
            print(page)
    except CannotWrite as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""The notebooks' form: no outputs, one parameters cell, one bootstrap cell, thin code."""

import ast
import dis
import io
import os
import re
import subprocess
import sys
import tokenize
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from helpers import ROOT
from helpers.report.rows import notebook_parameters
from helpers.runs.config import DATASETS, Config, ConfigError

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = [path for path in sorted((ROOT / "experiments").glob("*.yaml"))
         if not re.match(r"r\d|not_in", path.name)]  # fmt: skip


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebook_is_valid_and_carries_no_outputs(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any("papermill" in cell.metadata for cell in notebook.cells)
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None, cell.source


def test_notebook_opens_with_a_title(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.search(r"^# \S", first.source, re.MULTILINE)


def test_every_code_cell_has_markdown_before_it(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert ("code", "code") not in set(zip(kinds, kinds[1:], strict=False))


def test_parameters_are_typed_literals_with_a_comment_each(notebook):
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    source = tagged[0].source
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for statement in ast.parse(source).body:
        text = ast.unparse(statement)
        assert isinstance(statement, ast.AnnAssign), f"needs a type: {text}"
        ast.literal_eval(statement.value)  # papermill cannot re-evaluate derived values
        lines = range(statement.lineno, statement.end_lineno + 1)
        assert comments.intersection(lines), f"needs a comment: {text}"


def test_imports_hide_no_parameter(notebook):
    """papermill may give any of Config's parameters; an import of that name would replace it."""
    cells = [TransformerManager().transform_cell(cell.source) for cell in code_cells(notebook)]
    imported = {
        alias.asname or alias.name
        for statement in ast.walk(ast.parse("\n".join(cells)))
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for alias in statement.names
    }
    if any("Config.from_parameters" in cell for cell in cells):
        assert not imported & set(Config.model_fields)


def test_no_cell_rebinds_a_parameter_of_the_run(notebook):
    """Else the cells could not be run twice: `model` would be the network, not its name."""
    cells = [TransformerManager().transform_cell(cell.source) for cell in code_cells(notebook)]
    bound = [
        name
        for cell in cells
        for name in {
            instruction.argval
            for instruction in dis.get_instructions(compile(cell, "cell", "exec"))
            if instruction.opname == "STORE_NAME"
        }
    ]
    once = {"weights"}  # notebook 06 puts the run's folder in the place of a data set's name
    twice = {name for name in bound if bound.count(name) > 1 and name in Config.model_fields}
    if any("Config.from_parameters" in cell for cell in cells):
        assert twice <= once


def test_returned_figures_are_shown(notebook):
    """Without this line a figure that a cell returns is only named in the output."""
    assert any("%matplotlib inline" in cell.source for cell in code_cells(notebook))


def test_notebook_is_thin(notebook):
    cells = code_cells(notebook)[1:]  # the first is the same everywhere
    lines = [line for cell in cells for line in cell.source.splitlines()]
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(lines) <= 120
    assert not [line for line in lines if re.match(r"\s*class \w", line)]


def test_unknown_parameter_stops_and_names_the_nearest(path):
    """Injected as papermill does, in a namespace as IPython's, up to the cell that checks."""
    loaded = load_notebook_node(str(path))
    made = parameterize_notebook(loaded, {"epoch": 1}, kernel_name="python3", language="python")
    _, parameters, injected, checks, *_ = code_cells(made)
    assert injected.metadata.tags == ["injected-parameters"]
    shell = SimpleNamespace(run_line_magic=lambda *_: None)
    namespace = {"In": [""], "root": ROOT, "get_ipython": lambda: shell}
    with pytest.raises(ConfigError, match="'epoch', did you mean 'epochs'"):
        for cell in (parameters, injected, checks):
            namespace["In"].append(cell.source)
            exec(TransformerManager().transform_cell(cell.source), namespace)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_parameters_is_one_of_its_notebook(path):
    text = path.read_text(encoding="utf-8")
    named = re.search(r"notebooks/(\w+)\.ipynb", text)
    known = notebook_parameters(named[1] if named else "02_train_from_scratch")
    given = yaml.safe_load(text)
    assert given.keys() <= Config.model_fields.keys() | known.keys()
    if given.get("weights") in DATASETS:  # notebook 06 trains on it first
        del given["weights"]
    Config(**{n: v for n, v in given.items() if n in Config.model_fields})


def test_the_run_of_all_notebooks_would_notice_a_connection():
    """`make test` executes them with tests/offline on the path of every Python that they start."""
    work = """
import http.server, socket, threading, urllib.request
server = http.server.HTTPServer(("localhost", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen(f"http://localhost:{server.server_port}/LICENSE").status)
for ask in (lambda: socket.create_connection(("192.0.2.1", 80), 0.1),
            lambda: socket.getaddrinfo("example.org", 80),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)),
            lambda: urllib.request.urlopen("https://example.org", timeout=1)):
    try:
        ask()
    except AssertionError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "offline")}
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, env=environment, text=True,
                          capture_output=True, check=True, timeout=60)  # fmt: skip
    said = done.stdout.splitlines()
    assert said[0] == "200" and len(said) == 5 and all("leave this machine" in s for s in said[1:])
    makefile = (ROOT / "Makefile").read_text()
    assert '/tests/offline" $(BIN)/python -m pytest --nbmake' in makefile

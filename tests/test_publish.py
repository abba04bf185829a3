"""The project's address: in every place the same or in none; the first cell finds or fetches."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from helpers import ROOT

spec = importlib.util.spec_from_file_location("publish", ROOT / "notebooks" / "publish.py")
publish = importlib.util.module_from_spec(spec)
spec.loader.exec_module(publish)

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = re.compile(r"github(?:\.com)?/([\w.-]+/[\w.-]+)")
HASH = "0123456789abcdef" * 2 + "01234567"


def first_cell(path):
    return nbformat.read(path, as_version=4).cells[2].source


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copy(ROOT / "README.md", folder)
    return folder


def contents(folder):
    files = [folder / "README.md", *sorted((folder / "notebooks").glob("*.ipynb"))]
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def test_all_places_hold_the_same_address(copy):
    found = re.search(r'repository, commit = "(.*?)", "(.*?)"', first_cell(PATHS[0]))
    publish.publish(copy, *found.groups())
    assert contents(copy) == contents(ROOT)


def test_without_an_address_nothing_names_one(copy):
    publish.publish(copy, "", "")
    texts = contents(copy)
    assert [name for name, text in texts.items() if "colab-badge" in text] == []
    assert {a for text in texts.values() for a in ADDRESS.findall(text)} <= {"{repository}"}
    assert "Clone this repository" in texts["README.md"]


def test_publishing_writes_badges_first_cells_and_readme_and_can_be_undone(copy):
    publish.publish(copy, "", "")
    before = contents(copy)
    publish.publish(copy, "someone/some-blocks", HASH)
    published = contents(copy)
    publish.publish(copy, "someone/some-blocks", HASH)
    assert contents(copy) == published
    for path in (copy / "notebooks").glob("*.ipynb"):
        text = nbformat.read(path, as_version=4).cells[0].source
        assert f"someone/some-blocks/blob/main/notebooks/{path.name})" in text.splitlines()[0]
        assert f'"someone/some-blocks", "{HASH}"' in first_cell(path)
        assert published["README.md"].count(f"blob/main/notebooks/{path.name}") == 1
    assert "git clone https://github.com/someone/some-blocks && cd some-blocks" in published[
        "README.md"
    ]
    publish.publish(copy, "", "")
    assert contents(copy) == before


@pytest.mark.parametrize("wrong", ["https://github.com/a/b", "five-blocks", "a/b; rm"])
def test_an_address_of_another_form_is_refused(wrong):
    with pytest.raises(SystemExit, match="it should be owner/name"):
        publish.main(wrong)


def start(tmp_path, repository="", commit="", before="", notebook=None, folder=None):
    """Run a first cell by papermill's command; returns the folder that it found, or the error."""
    cells = [before, publish.FIRST_CELL.format(repository=repository, commit=commit),
             'print("FOUND", root, sys.path[0])']  # fmt: skip
    notebook = notebook or tmp_path / "small.ipynb"
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(made, notebook)
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", notebook, out, "--no-progress-bar"]
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://github.com/",
           "GIT_CONFIG_KEY_0": f"url.{tmp_path}/.insteadOf"}  # fmt: skip
    ended = subprocess.run(command, cwd=folder or tmp_path, env=os.environ | git, check=False,
                           capture_output=True, text=True)  # fmt: skip
    if ended.returncode:
        return ended.stderr.strip().splitlines()[-1]
    return "".join(o.text for o in nbformat.read(out, as_version=4).cells[2].outputs)


ELSEWHERE = 'import sys\nsys.prefix = "/nowhere"'  # no environment inside of a checkout


def test_papermill_from_any_folder_uses_the_notebooks_own_checkout(tmp_path):
    own, other = tmp_path / "my own", tmp_path / "other"
    for checkout in (own, other):
        (checkout / "helpers" / "runs").mkdir(parents=True)
        (checkout / "helpers" / "runs" / "config.py").write_text("")
    (own / "notebooks").mkdir()
    found = start(tmp_path, notebook=own / "notebooks" / "n.ipynb", folder=other, before=ELSEWHERE)
    assert found == f"FOUND {own} {own}\n"


@pytest.mark.parametrize("repository", ["", "someone/blocks"])
def test_where_the_code_cannot_be_had_it_says_what_to_do(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setattr("psutil.Process.parent", lambda self: None)
    offline = SimpleNamespace(system=lambda command: None)
    code = TransformerManager().transform_cell(
        publish.FIRST_CELL.format(repository=repository, commit="")
    )
    with pytest.raises(FileNotFoundError, match="code is not here: upload or clone"):
        exec(code, {"get_ipython": lambda: offline})


def test_the_published_commit_is_fetched_once_into_a_folder_with_a_space(tmp_path, monkeypatch):
    source, folder = tmp_path / "someone" / "blocks", tmp_path / "My Drive"
    (source / "helpers" / "runs").mkdir(parents=True)
    folder.mkdir()

    def git(*command):
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        return subprocess.check_output(["git", *identity, *command], cwd=source, text=True).strip()

    git("init", "-q")
    for version in ("pinned", "later"):
        (source / "helpers" / "runs" / "config.py").write_text(version)
        git("add", ".")
        git("commit", "-q", "-m", version)
    pinned = git("rev-parse", "HEAD~1")
    root = folder / "five-blocks"
    found = start(tmp_path, "someone/blocks", pinned, ELSEWHERE, folder=folder)
    assert found == f"FOUND {root} {root}\n"
    assert (root / "helpers" / "runs" / "config.py").read_text() == "pinned"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("psutil.Process.parent", lambda self: None)
    asked, code = [], publish.FIRST_CELL.format(repository="someone/blocks", commit=pinned)
    namespace = {"get_ipython": lambda: SimpleNamespace(system=asked.append)}
    exec(TransformerManager().transform_cell(code), namespace)
    assert asked == [] and namespace["root"] == root

"""The repository's form: nothing machine-bound, nothing large, imports in one direction."""

import ast
import inspect
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module, metadata

import pytest
from packaging.requirements import Requirement

from helpers import ROOT

HELPERS = ROOT / "helpers"
CORE = {"runs", "data", "count", "models"}
MAY_IMPORT = {  # each part of helpers: the other parts that it may use
    "runs": set(),
    "data": {"runs"},
    "count": {"runs"},
    "models": {"runs", "count"},
    "evaluate": CORE,
    "train": CORE | {"evaluate"},
    "sweep": CORE | {"evaluate", "train"},
    "visualize": CORE | {"evaluate"},
    "detect": CORE | {"evaluate"},
    "report": CORE | {"evaluate", "train", "sweep"},
}


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    return [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]


def requirements(name):
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_tracked_files_are_small(tracked):
    assert [p for p in tracked if p.stat().st_size > 1_000_000] == []


def test_no_file_names_a_place_on_somebodys_machine(tracked):
    private = re.compile(r"(?<![\w.~])/(?:home|root|work|Users)/\w|\b[A-Z]:\\\\?Users")
    texts = [p for p in tracked if p.suffix not in {".png", ".jpg", ".gif", ".mp4", ".pt"}]
    assert [p for p in texts if private.search(p.read_text(encoding="utf-8"))] == []


def imported(path):
    """Return the modules and packages of helpers that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write `from helpers ...`, not a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if module_file(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("helpers.")}


def module_file(name):
    path = ROOT / name.replace(".", "/")
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.exists()), None)


def test_the_parts_of_helpers_import_in_one_direction():
    parts = {path.stem for path in HELPERS.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__"} == MAY_IMPORT.keys()
    for path in HELPERS.rglob("*.py"):
        part = path.relative_to(HELPERS).parts[0].removesuffix(".py")
        used = {name.split(".")[1] for name in imported(path)} - {part}
        assert used <= MAY_IMPORT.get(part, set()), f"{path.relative_to(ROOT)} imports {used}"


def test_no_module_imports_itself_by_a_detour():
    files = [path for path in HELPERS.rglob("*.py") if path.name != "__init__.py"]
    graph = {path: {module_file(name) for name in imported(path)} for path in files}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_reading_order_is_short():
    text = (HELPERS / "README.md").read_text(encoding="utf-8").partition("## Reading order")[2]
    lines = 0
    for name in re.findall(r"`([a-z_.]+\.\w+)`", text):
        module, _, thing = name.rpartition(".")
        source = inspect.getsource(getattr(import_module(f"helpers.{module}"), thing))
        lines += len(source.splitlines())
    assert 300 < lines <= 800


def test_documents_link_to_what_exists(tracked):
    for document in [p for p in tracked if p.suffix == ".md"]:
        text = document.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)\s#]+)|(?:src|href)=\"([^\"#]+)\"", text)
        local = [a or b for a, b in links if "://" not in (a or b)]
        assert [link for link in local if not (document.parent / link).exists()] == []


def test_readme_names_every_notebook():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    notebooks = [f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")]
    assert [name for name in notebooks if name not in text] == []


def test_licence_is_mit():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 knows less of what is installed")
def test_requirements_name_every_package_that_helpers_import():
    optional = {"ultralytics", "IPython"}  # the second comes with ipykernel
    distributions = metadata.packages_distributions()
    files = requirements("requirements.txt") + requirements("requirements-dev.txt")
    named = {requirement.name.lower() for requirement in files}
    for path in HELPERS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names]
            names = [node.module] if isinstance(node, ast.ImportFrom) else names
            for name in {name.partition(".")[0] for name in names}:
                if name not in sys.stdlib_module_names | optional | {"helpers"}:
                    found = {d.lower() for d in distributions[name]}
                    assert found & named, f"{path}: {name} is in no requirements"


def test_requirements_never_replace_what_a_notebook_service_ships():
    for requirement in requirements("requirements.txt"):
        assert {bound.operator for bound in requirement.specifier} == {">="}, requirement


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_has_one_exact_tested_version(python):
    pins = {}
    for pin in requirements("constraints.txt"):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert pin.name.lower() not in pins, f"two versions of {pin.name} on Python {python}"
            (exact,) = pin.specifier
            assert exact.operator == "=="
            pins[pin.name.lower()] = exact.version
    for requirement in requirements("requirements.txt") + requirements("requirements-dev.txt"):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement


def test_continuous_integration_script_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_importing_says_nothing_even_at_exit():
    """Objects that are frozen at the wrong moment are listed as leaks when Python ends.

    With torch or torchvision imported before, test_norm_pool.py looks at it.
    """
    command = [sys.executable, "-c", "from helpers.train import fine_tune"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

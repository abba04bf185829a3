"""The repository's form: nothing machine-bound, nothing large, imports in one direction."""

import ast
import os
import re
import subprocess
from graphlib import TopologicalSorter

import pytest
from packaging.requirements import Requirement

from helpers import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT / "helpers").with_suffix("").parts): path
    for path in (ROOT / "helpers").rglob("*.py")
    if path.stem != "__init__"
}
LAYERS = {
    "parameters": 0,
    "config": 0,
    "runs": 2,
    "wandb_log": 2,
    "train": 2,
    "loop": 2,
    "evaluate": 2,
}  # others: 1
LAYERS |= {"figures": 3, "sweep": 3, "sweep_worker": 3, "findings": 3, "panels": 3}
LAYERS |= {"visualize": 3, "experiments": 3, "executions": 3, "detect": 3, "leakage": 3}
LAYERS |= {"transfer": 3, "tradeoff": 3, "ledger": 4, "batch": 4, "report": 4}


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


@pytest.mark.parametrize("name", MODULES)
def test_module_is_short(name):
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= 320


def test_imports_point_one_way():
    """In a sub-package, too; its modules are in the layer of LAYERS[sub-package], else 1."""
    imports = {}
    for name, path in MODULES.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: write `from helpers ...`, not a relative import"
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found = {alias.name for alias in node.names}
            else:
                continue
            imports[name] |= {m for m in MODULES if f"helpers.{m}" in found}
    layer = {name: LAYERS.get(name.split(".")[0], 1) for name in MODULES}
    upward = [(a, b) for a, names in imports.items() for b in names if layer[b] > layer[a]]
    assert upward == []
    TopologicalSorter(imports).prepare()  # raises CycleError


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

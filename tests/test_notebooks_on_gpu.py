"""The code of every notebook, on a pretended GPU, with a small data set and small parameters."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from matplotlib.figure import Figure
from PIL import Image
from pretended_gpu import A100, T4, pretended_gpu

from helpers import ROOT
from helpers.detect.drawn import traffic
from helpers.evaluate import ensembles

SMALL = {"image_size": 32, "filters": [4, 4, 8, 8, 8], "dense": 8, "batch_size": 8}


@pytest.fixture(scope="module", params=[T4, A100], ids=["T4", "A100"])
def place(request, tmp_path_factory):
    """A GPU, a folder of noise whose class is the brightest channel, and a place for runs."""
    folder = tmp_path_factory.mktemp("notebooks")
    rng = np.random.default_rng(0)
    for number in range(60):
        pixels = rng.integers(0, 160, (32, 32, 3), np.uint8)
        pixels[..., number % 3] += 60
        split = "train" if number < 42 else "test"
        target = folder / "images" / split / "rgb"[number % 3] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return SimpleNamespace(gpu=request.param, folder=folder, dataset=f"folder:{folder}/images",
                           runs=str(folder / "runs"), run=str(folder / "runs" / "one"))  # fmt: skip


# For code that chooses no number format, in which alone the two kinds of GPU differ.
on_one_kind = pytest.mark.parametrize("place", [T4], ids=["T4"], indirect=True)


def save_nothing(figure, target, **options):
    """Rendering takes longer than all else, and knows no GPU."""
    if hasattr(target, "write"):
        target.write(b"<svg/>")
    else:
        Path(target).write_bytes(b"")


def execute(place, number, **parameters):
    """Execute a notebook's code, after papermill's parameters; returns its variables."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    shell = SimpleNamespace(run_line_magic=lambda *_: None)
    namespace = {"In": [""], "root": ROOT, "get_ipython": lambda: shell}
    injected = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    with pretended_gpu(place.gpu), mock.patch.object(Figure, "savefig", save_nothing):
        for cell in cells[1:]:  # the first finds the project
            sources = [cell.source]
            if "parameters" in cell.metadata.get("tags", []):
                sources.append(f"# Parameters\n{injected}")
            for source in sources:
                namespace["In"].append(source)
                code = TransformerManager().transform_cell(source)
                exec(compile(code, f"<{path.stem}>", "exec"), namespace)
    plt.close("all")
    return namespace


@pytest.fixture(scope="module")
def trained(place):
    return execute(
        place, "02", dataset=place.dataset, epochs=2, name="one", runs_root=place.runs, **SMALL
    )


@on_one_kind
def test_01_counts(place):
    execute(place, "01", classifiers=["squeezenet1_0"])


def test_02_trains(place, trained):
    assert trained["run"].finished and str(trained["run"].folder) == place.run


def test_03_sweeps(place):
    path = place.folder / "small.yaml"
    parameters = {"lr": {"values": [0.001, 0.01]}, "batch_norm": {"values": [True, False]}}
    parameters |= {name: {"value": value} for name, value in {**SMALL, "epochs": 1}.items()}
    metric = {"name": "val_accuracy", "goal": "maximize"}
    path.write_text(yaml.safe_dump({"method": "grid", "metric": metric, "parameters": parameters}))
    done = execute(
        place, "03", sweep=str(path), dataset=place.dataset, runs_root=place.runs, pairs=0
    )
    assert len(done["runs"]) == 4


def test_04_opens_the_test_set(place, trained):
    assert len(execute(place, "04", run=place.run, rows=2)["result"].labels) == 18


@on_one_kind
def test_04_lets_runs_vote(place, trained, monkeypatch):
    monkeypatch.setattr(ensembles, "ROOT", place.folder)  # figures go to runs/votes/
    other = execute(place, "02", dataset=place.dataset, epochs=2, seed=1, name="two",
                    runs_root=place.runs, **SMALL)["run"]  # fmt: skip
    done = execute(place, "04", run=f"{place.run}, {other.folder}", rows=2)
    expected = np.mean([one.probabilities for one in done["results"]], 0)
    np.testing.assert_allclose(done["result"].probabilities, expected, atol=1e-6)
    assert done["folder"].parent == place.folder / "runs" / "votes"
    assert (done["folder"] / "test_grid.png").exists()


@on_one_kind
def test_05_looks_inside(place, trained):
    done = execute(place, "05", run=place.run, neurons=3, looked_at=8, compared=2,
                   random_networks=2, large_kernels=0)  # fmt: skip
    assert all(gradients.abs().sum() > 0 for gradients in done["random_gradients"])


def test_06_fine_tunes(place, trained):
    done = execute(
        place, "06", dataset=place.dataset, model="five_blocks", weights=place.run, head="dense",
        pooling="flatten", dense=8, image_size=32, filters=[4, 4, 8, 8, 8], val_fraction=0.4,
        batch_size=8, epochs=2,
        feature_views=2, compare=["scratch", "all_but_head"], seeds=2, final=True, test=True,
        runs_root=place.runs, name="tuned",
    )  # fmt: skip
    assert len(done["everyone"]) == 4 and done["saved"]
    assert done["last"].metrics["test"]["images"] == 18


@on_one_kind
def test_06_trains_a_row_of_a_report(place, trained):
    done = execute(
        place, "06", dataset=place.dataset, model="five_blocks", weights=place.run, head="dense",
        pooling="flatten", dense=8, image_size=32, filters=[4, 4, 8, 8, 8], val_fraction=0.4,
        batch_size=8, epochs=2, freeze="all_but_head", compare=[], test=True,
        tradeoff_by="test", runs_root=place.runs, name="alone",
    )  # fmt: skip
    assert list(done["runs"]) == ["all_but_head"] and done["last"].name == "alone"
    assert done["last"].metrics["test_opened"]["count"] == 2


def test_07_detects(place):
    def few(count, seed):
        return draw_scenes(8, seed)

    draw_scenes = traffic.draw_scenes
    with mock.patch.object(traffic, "draw_scenes", few):
        done = execute(place, "07", frames=8, steps=2, folder=str(place.folder / "detect"))
    assert done["summary"].frames == 8


@on_one_kind
def test_08_reports(place, trained):
    page = execute(place, "08", runs_root=place.runs, demonstrate_leak=False)["page"]
    assert page.is_relative_to(place.folder)


@on_one_kind
def test_09_goes_wrong(place):
    execute(place, "09", steps=2, filters=4)

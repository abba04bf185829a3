"""Several processes train to the same result as one, and one of them writes."""

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ROOT, data, models, train
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import open_run
from helpers.train.processes import launch

SMALL = {
    "image_size": 32, "filters": 8, "dense": 16, "batch_size": 15, "epochs": 8, "augment": [],
    "dropout": 0.0, "schedule": "one_cycle", "lr": 2e-3, "precision": "float32", "optimizer": "sgd",
    "early_stopping": 6,
}  # fmt: skip
FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of noise whose class is the channel that is brightest; 61 to train, 23 to validate."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(84):
        pixels = rng.integers(0, 160, (32, 32, 3), np.uint8)
        pixels[..., number % 3] += 60
        target = folder / ("train" if number < 61 else "val") / "rgb"[number % 3] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return folder


@pytest.fixture
def config(folder, tmp_path):
    return Config(**SMALL, dataset=f"folder:{folder}", runs_root=str(tmp_path))


def test_more_processes_than_images_in_a_batch_are_refused_in_one_sentence(config):
    with pytest.raises(ConfigError, match=r"^processes=16 cannot share a batch of 15 images: use"):
        launch(config, 16)


def test_more_processes_than_gpus_are_refused_in_one_sentence(config):
    refused = pytest.raises(ConfigError, match=r"^processes=2 would need as many GPUs: use 1 here$")
    with mock.patch("torch.cuda.device_count", return_value=1), refused:
        launch(config, 2)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run of two processes that nobody disturbs."""
    runs_root = str(tmp_path_factory.mktemp("runs"))
    config = Config(**SMALL, dataset=f"folder:{folder}", runs_root=runs_root)
    launch(config, 2)
    return open_run(config)


def test_two_processes_equal_one_batch_norm_included(config, whole):
    """61 images in batches of about 15: the two parts of a batch differ in length.

    Sums in another order round differently, which grows from step to step.
    """
    splits = data.load(config)
    run = train.fit(models.build(config, len(splits.classes)), splits, config)
    assert whole.finished
    for row, other in zip(run.history, whole.history, strict=True):
        assert row["images"] == other["images"]
        for figure in FIGURES if row["epoch"] <= 3 else ():
            assert row[figure] == pytest.approx(other[figure], abs=1e-5), figure
    weights = run.read_checkpoint("best.pt")["model"]
    for name, tensor in whole.read_checkpoint("best.pt")["model"].items():
        assert torch.allclose(tensor.float(), weights[name].float(), atol=1e-3), name
    assert len(whole.predictions) == len(splits.val)


def test_two_processes_killed_on_the_way_continue_to_the_same_result(config, whole, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.model_dump()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "helpers.train", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    run = open_run(config)
    while not (run.folder / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.finished
    launch(config, 2)
    for row, other in zip(run.history, whole.history, strict=True):
        for figure in FIGURES:
            assert row[figure] == other[figure], figure
    weights = whole.read_checkpoint("best.pt")["model"]
    for name, tensor in run.read_checkpoint("best.pt")["model"].items():
        assert torch.equal(tensor, weights[name]), name


def test_a_training_that_fails_says_so(config):
    with pytest.raises(RuntimeError, match="2 processes stopped with exit status"):
        launch(config.replace(dataset="folder:nowhere"), 2)

"""Several processes train to the same result as one, and one of them writes."""

import json
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from helpers import ROOT, data, models, train
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run
from helpers.train.processes import launch


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


def make_config(folder, runs):
    return Config(
        dataset=f"folder:{folder}", image_size=32, filters=8, dense=16, batch_size=15, epochs=5,
        augment=[], dropout=0.0, schedule="one_cycle", lr=2e-3, precision="float32",
        optimizer="sgd", runs_root=str(runs), early_stopping=0,
    )  # fmt: skip


@pytest.fixture
def config(folder, tmp_path):
    return make_config(folder, tmp_path)


@pytest.fixture(scope="module")
def several(folder, tmp_path_factory):
    """The run of two processes; 61 images in batches of 15: parts of a batch differ in length."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)  # a relative folder starts here, in all processes
        launch(make_config(folder.name, runs).replace(name="several"), 2)
    return Run(runs / "several")


def test_more_processes_than_images_in_a_batch_are_refused_in_one_sentence(config):
    with pytest.raises(ConfigError, match=r"^processes=16 cannot share a batch of 15 images: use"):
        launch(config, 16)


def test_batches_are_alike_in_length_and_the_smallest_has_an_image_for_each_process(config):
    """49 images (12 are kept for testing) in batches of at most 48 are 25 and 24."""
    splits = data.load(config)
    config = config.replace(batch_size=48)
    refused = pytest.raises(ConfigError, match=r"^25 processes cannot share a batch of 24 images")
    with mock.patch("helpers.train.processes.world_size", return_value=25), refused:
        train.fit(models.build(config, 3), splits, config)


def test_more_processes_than_gpus_are_refused_in_one_sentence(config):
    refused = pytest.raises(ConfigError, match=r"^processes=2 would need as many GPUs: use 1 here$")
    with mock.patch("torch.cuda.device_count", return_value=1), refused:
        launch(config, 2)


def test_two_processes_equal_one_batch_norm_included(config, several):
    splits = data.load(config)
    run = train.fit(models.build(config, len(splits.classes)), splits, config)
    assert several.finished
    for row, other in zip(run.history, several.history, strict=True):
        assert row["images"] == other["images"]
        for figure in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert row[figure] == pytest.approx(other[figure], abs=1e-5), figure
    weights = run.read_checkpoint("best.pt")["model"]
    for name, tensor in several.read_checkpoint("best.pt")["model"].items():
        assert torch.allclose(tensor.float(), weights[name].float(), atol=1e-5), name
    assert len(several.predictions) == len(splits.val)


def test_two_processes_killed_on_the_way_continue_to_the_same_result(config, several, tmp_path):
    path = tmp_path / "config.json"
    config = config.replace(name="killed")
    path.write_text(json.dumps(config.model_dump()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "helpers.train", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    last = tmp_path / "killed" / "last.pt"
    workers = []  # each in its own session
    while not last.exists() and process.poll() is None:
        workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    for one in (process, *workers):
        one.kill()
    process.wait()
    run = Run(tmp_path / "killed")
    assert last.exists() and not run.finished and len(run.history) < config.epochs
    launch(config, 2)
    run = Run(tmp_path / "killed")
    for row, other in zip(run.history, several.history, strict=True):
        for figure in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert row[figure] == other[figure], figure
    weights = several.read_checkpoint("best.pt")["model"]
    for name, tensor in run.read_checkpoint("best.pt")["model"].items():
        assert torch.equal(tensor, weights[name]), name


def test_a_training_that_fails_says_so(config):
    with pytest.raises(RuntimeError, match="1 processes stopped with exit status"):
        launch(config.replace(dataset="folder:nowhere"), 1)

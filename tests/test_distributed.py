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


@pytest.fixture
def config(folder, tmp_path):
    return Config(
        dataset=f"folder:{folder}", image_size=32, filters=8, dense=16, batch_size=15, epochs=3,
        augment=[], dropout=0.0, schedule="one_cycle", lr=2e-3, precision="float32",
        optimizer="sgd", runs_root=str(tmp_path), early_stopping=2,
    )  # fmt: skip


def test_more_processes_than_images_in_a_batch_are_refused_in_one_sentence(config):
    with pytest.raises(ConfigError, match=r"^processes=16 cannot share a batch of 15 images: use"):
        launch(config, 16)


def test_more_processes_than_gpus_are_refused_in_one_sentence(config):
    refused = pytest.raises(ConfigError, match=r"^processes=2 would need as many GPUs: use 1 here$")
    with mock.patch("torch.cuda.device_count", return_value=1), refused:
        launch(config, 2)


def same_as_one_process(config, name="several"):
    """Compare the run of several processes with one that is trained here."""
    one = config.replace(name="one")
    splits = data.load(one)
    run = train.fit(models.build(one, len(splits.classes)), splits, one)
    several = Run(ROOT / config.runs_root / name)
    assert several.finished
    for row, other in zip(run.history, several.history, strict=True):
        assert row["images"] == other["images"]
        for figure in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert row[figure] == pytest.approx(other[figure], abs=1e-5), figure
    weights = run.read_checkpoint("best.pt")["model"]
    for name, tensor in several.read_checkpoint("best.pt")["model"].items():
        assert torch.allclose(tensor.float(), weights[name].float(), atol=1e-5), name
    assert len(several.predictions) == len(splits.val)


def test_two_processes_equal_one_batch_norm_included(config, folder, monkeypatch):
    """61 images in batches of about 15: the two parts of a batch differ in length."""
    monkeypatch.chdir(folder.parent)  # a relative folder starts here, in all processes
    config = config.replace(dataset=f"folder:{folder.name}")
    launch(config.replace(name="several"), 2)
    same_as_one_process(config)


def test_two_processes_killed_on_the_way_continue_to_the_same_result(config, tmp_path):
    path = tmp_path / "config.json"
    several = config.replace(name="several", epochs=8, early_stopping=0)
    path.write_text(json.dumps(several.model_dump()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "helpers.train", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    last = tmp_path / "several" / "last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Run(tmp_path / "several").finished
    launch(several, 2)
    launch(several.replace(name="whole"), 2)
    run, whole = Run(tmp_path / "several"), Run(tmp_path / "whole")
    for row, other in zip(run.history, whole.history, strict=True):
        for figure in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert row[figure] == other[figure], figure
    weights = whole.read_checkpoint("best.pt")["model"]
    for name, tensor in run.read_checkpoint("best.pt")["model"].items():
        assert torch.equal(tensor, weights[name]), name


def test_a_training_that_fails_says_so(config):
    with pytest.raises(RuntimeError, match="2 processes stopped with exit status"):
        launch(config.replace(dataset="folder:nowhere"), 2)

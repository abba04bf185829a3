"""Training learns, chooses on validation, stops when told, and survives being killed."""

import math
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import ROOT, train
from helpers.data import batches as batching
from helpers.data import images as pixels
from helpers.data.batches import shuffle
from helpers.data.images import ImageSet, Splits
from helpers.models import build, rebuild
from helpers.models.device import mixed_precision
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run, open_run
from helpers.runs.search import find_runs
from helpers.train import loop, optimizers
from helpers.train.loop import image_size_of_epoch

SMALL = {
    "image_size": 32, "filters": 8, "dense": 16, "batch_size": 16, "epochs": 3, "augment": [],
    "dropout": 0.0, "weight_decay": 0.0, "schedule": "none", "precision": "float32",
}  # fmt: skip


def image_set(count: int, seed: int, classes: int = 3, side: int = 32) -> ImageSet:
    """Make noise whose class is the colour channel that is brightest."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, side, side, 3), np.uint8)
    labels = np.arange(count) % classes
    images[np.arange(count), :, :, labels] += 90
    names = [f"class {label}" for label in range(classes)]
    return ImageSet(images, np.arange(count), labels, [f"{seed}/{i}" for i in range(count)], names,
                    ROOT)  # fmt: skip


@pytest.fixture
def splits():
    return Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))


@pytest.fixture
def config(tmp_path):
    return Config(**SMALL, runs_root=str(tmp_path))


def fit(splits, config):
    """Train, and keep a copy of last.pt, which is gone when the run has finished."""
    folder = open_run(config).folder
    return train.fit(build(config, 3), splits, config, lambda row: keep_last(folder))


def keep_last(folder):
    shutil.copyfile(folder / "last.pt", folder.with_name(f"{folder.name} last.pt"))


def weights(run: Run, name: str = "best.pt") -> dict:
    if name == "last.pt":
        path = run.folder.with_name(f"{run.folder.name} last.pt")
        return torch.load(path, weights_only=True)["model"]
    return run.read_checkpoint(name)["model"]


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_one_batch_is_learned_by_heart(config, optimizer):
    batch = image_set(16, 0)
    batch.labels[:] = np.random.default_rng(0).permutation(batch.labels)  # nothing but memory helps
    lr = {"sgd": 0.05, "rmsprop": 1e-3}.get(optimizer, 5e-3)
    config = config.replace(epochs=40, optimizer=optimizer, lr=lr, val_fraction=0.0)
    run = fit(Splits(batch, batch.subset(np.arange(0)), batch), config)
    assert run.history[-1]["train_accuracy"] == 1
    assert run.history[-1]["train_loss"] < 0.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_real_difference_is_learned(splits, config, precision):
    run = fit(splits, config.replace(epochs=8, precision=precision))
    assert run.metrics["val"]["accuracy"] > 0.9


def test_the_run_folder_is_complete_and_plain(splits, config):
    run = fit(splits, config)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.json", "history.csv", "metrics.json", "predictions.csv", "best.pt",
        "environment.json", "status.json", ".training.lock",
    }  # fmt: skip
    assert run.config == config
    assert run.status["state"] == "finished"
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert len(run.predictions) == 24
    share = np.mean([row["label"] == row["predicted"] for row in run.predictions])
    assert share == pytest.approx(run.metrics["val"]["accuracy"])


def test_the_best_epoch_is_chosen_on_validation(splits, config):
    run = fit(splits, config.replace(epochs=6, lr=0.02))
    accuracies = [row["val_accuracy"] for row in run.history]
    assert run.metrics["best_epoch"] == 1 + int(np.argmax(accuracies))
    assert run.metrics["val"]["accuracy"] == pytest.approx(max(accuracies))


def test_training_never_sees_validation_or_test_images(splits, config, monkeypatch):
    """Destroying both changes nothing in the last epoch's weights."""
    first = fit(splits, config)
    noise = image_set(24, 9)
    noise.labels[:] = 0
    other = fit(Splits(splits.train, noise, noise), config.replace(name="noise"))
    assert same(weights(first, "last.pt"), weights(other, "last.pt"))


def test_a_run_elsewhere_is_found_from_runs_on_where_runs_is_absent_or_a_link(
    splits, config, tmp_path, monkeypatch
):
    name = fit(splits, config).folder.relative_to(tmp_path)
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setattr(loop, "ROOT", repository)
    assert loop.choose_run(f"../../{name}", "").finished
    (tmp_path / "drive/deep/runs").mkdir(parents=True)
    (repository / "runs").symlink_to(tmp_path / "drive/deep/runs")
    assert loop.choose_run(f"../../{name}", "").finished


def test_a_finished_run_is_loaded_not_trained(splits, config, monkeypatch):
    run = fit(splits, config)
    monkeypatch.setattr(loop, "Training", None)  # a call would raise
    model = build(config, 3)
    again = train.fit(model, splits, config)
    assert again.folder == run.folder and same(weights(run), model.state_dict())


@pytest.mark.parametrize("schedule", ["none", "step", "cosine", "one_cycle", "plateau"])
def test_stopped_after_any_epoch_it_continues_to_the_same_weights(
    splits, config, schedule, monkeypatch
):
    config = config.replace(
        schedule=schedule, dropout=0.3, augment=["horizontal_flip", "random_crop=4"]
    )
    whole = fit(splits, config.replace(name="whole"))
    end_epoch = loop.Training._end_epoch

    def end_and_stop(self, row):
        end_epoch(self, row)
        keep_last(self.run.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_end_epoch", end_and_stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            fit(splits, config)
    monkeypatch.undo()
    parts = fit(splits, config)
    assert same(weights(whole), weights(parts)) and same(
        weights(whole, "last.pt"), weights(parts, "last.pt")
    )
    assert [r["val_loss"] for r in whole.history] == [r["val_loss"] for r in parts.history]
    texts = [(run.folder / "history.csv").read_text().splitlines() for run in (whole, parts)]
    first, second = ([line.split(",")[:2] for line in lines] for lines in texts)
    assert first == second  # epoch and stage, written as whole numbers


KILLED = """
import sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {tests!r})
from helpers.runs.config import Config
from test_train import fit, image_set
from helpers.data.images import Splits
config = Config.load(sys.argv[1])
fit(Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2)), config)
"""


def test_killed_at_random_moments_it_ends_with_the_same_weights(splits, config, tmp_path):
    """SIGKILL, which no program can catch, at moments spread over the training."""
    config = config.replace(epochs=16, dropout=0.3, schedule="one_cycle")
    whole = fit(splits, config.replace(name="whole"))
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"))
    run, rng, ends = open_run(config), np.random.default_rng(0), []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        epoch = len(run.history)
        while len(run.history) <= epoch + 1 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        ends.append(process.wait(120))
    assert ends == [-signal.SIGKILL] * 2 and not run.finished  # it was on its way, both times
    assert same(weights(whole), weights(fit(splits, config)))


def test_on_epoch_sees_every_saved_epoch_and_ends_the_run(splits, config):
    seen = []

    def stop_after_two(row):
        seen.append(row)
        return len(seen) == 2

    config = config.replace(epochs=4)
    run = train.fit(build(config, 3), splits, config, stop_after_two)
    assert [row["epoch"] for row in seen] == [1, 2] == [int(r["epoch"]) for r in run.history]
    assert run.finished and run.status["stopped_at"] == 2
    best = max(row["val_accuracy"] for row in seen)
    assert run.metrics["val"]["accuracy"] == pytest.approx(best)


def test_a_run_that_was_ended_begins_no_later_stage(splits, config, monkeypatch):
    begun, freeze = [], loop.freeze
    monkeypatch.setattr(loop, "freeze", lambda model, how: begun.append(how) or freeze(model, how))
    config = config.replace(stages=[{"epochs": 2}, {"epochs": 1, "freeze": "all_but_head"}])
    run = train.fit(build(config, 3), splits, config, lambda row: True)
    assert run.status["stopped_at"] == 1
    assert begun == ["nothing", "all_but_head"]  # the second only counts what was to be trained


def test_early_stopping(splits, config):
    config = config.replace(epochs=50, early_stopping=2, lr=1e-6)
    run = fit(splits, config)
    accuracies = [row["val_accuracy"] for row in run.history]
    assert len(accuracies) == int(np.argmax(accuracies)) + 1 + 2


def test_plateau_lowers_the_rate_after_its_patience(splits, config):
    config = config.replace(
        schedule="plateau", plateau_patience=1, gamma=0.5, lr=1e-7, epochs=6, batch_norm=False
    )  # too small a rate for the accuracy to change
    rates = [row["lr"] for row in fit(splits, config).history]
    assert rates == pytest.approx([1e-7, 1e-7, 1e-7, 5e-8, 5e-8, 2.5e-8])


def test_plateau_of_a_loss_is_one_too():
    """Rising a little every epoch, or not falling: PyTorch's threshold would take it for better."""
    for rise in 0.0, 5e-5:
        parameter = torch.nn.Parameter(torch.zeros(1))
        config = Config(schedule="plateau", plateau_patience=2, gamma=0.5, monitor="val_loss")
        optimizer = torch.optim.SGD([parameter], 1.0)
        scheduler = optimizers.make_scheduler(optimizer, config, 1)
        rates = []
        for epoch in range(8):
            scheduler.step(-2.302585 * (1 + rise * epoch))
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_step_schedule(splits, config):
    config = config.replace(schedule="step", step_size=2, gamma=0.1, epochs=5)
    rates = [row["lr"] for row in fit(splits, config).history]
    assert rates == pytest.approx([3e-3, 3e-3, 3e-4, 3e-4, 3e-5])


def test_steps_per_epoch_and_val_steps_limit_the_work(splits, config):
    run = fit(splits, config.replace(steps_per_epoch=2, val_steps=1))
    assert [row["images"] for row in run.history] == [32, 32, 32]
    more = fit(splits, config.replace(steps_per_epoch=5))
    assert [row["images"] for row in more.history] == [80, 80, 80]


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(
    splits, config, monkeypatch
):
    run = fit(splits, config.replace(name="good", epochs=1))
    config = config.replace(epochs=4)
    cross_entropy = F.cross_entropy
    calls = 0

    def break_in_the_fifth_step(logits, labels, **options):
        nonlocal calls
        calls += "label_smoothing" in options
        return cross_entropy(logits, labels, **options) * (math.nan if calls == 5 else 1)

    monkeypatch.setattr(F, "cross_entropy", break_in_the_fifth_step)
    with pytest.raises(train.TrainingDiverged, match="epoch 2, step 2 of 3"):
        fit(splits, config)
    broken = open_run(config)
    assert broken.status["state"] == "failed" and "epoch 2, step 2" in broken.status["reason"]
    assert same(weights(run, "last.pt"), weights(broken, "last.pt"))


def test_another_configuration_under_the_same_name_stops(splits, config):
    fit(splits, config.replace(name="mine"))
    with pytest.raises(ConfigError, match=r"'mine' already holds .* \(lr 0.003 -> 0.1\)"):
        fit(splits, config.replace(name="mine", lr=0.1))


def test_what_differs_under_the_same_name_is_named_and_nothing_else(config):
    config = config.replace(name="mine", stages=[{"epochs": 1}])
    open_run(config)
    with pytest.raises(ConfigError, match=r"other parameters \(lr 0.003 -> 0.1\)"):
        open_run(config.replace(lr=0.1, data_root="elsewhere"))


def test_a_validation_loss_that_is_never_a_number_still_leaves_weights(
    splits, config, monkeypatch
):
    monkeypatch.setattr(loop, "predict", lambda model, images, _: torch.full((24, 3), math.nan))
    run = fit(splits, config.replace(monitor="val_loss"))
    assert run.finished and run.metrics["best_epoch"] == 1


def test_the_default_network_is_trained_on_the_images_below_data_root(monkeypatch):
    trained = []
    monkeypatch.setattr(loop, "best_run", lambda dataset: None)
    monkeypatch.setattr(loop, "train", trained.append)
    loop.choose_run("", "caltech101", "somewhere")
    assert trained == [Config(dataset="caltech101", data_root="somewhere")]


def test_files_of_older_versions_are_used_and_continued(splits, config, monkeypatch):
    whole = fit(splits, config)
    config = config.replace(name="old")
    end_epoch = loop.Training._end_epoch

    def end_and_stop(self, row):
        end_epoch(self, row)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "_end_epoch", end_and_stop)
    with pytest.raises(KeyboardInterrupt):
        fit(splits, config)
    monkeypatch.undo()
    run = open_run(config)
    for name, later in (("best.pt", ["history"]), ("last.pt", ["config"])):
        kept = torch.load(run.folder / name, weights_only=True)
        for key in ["mean", "std", *later]:
            del kept[key]
        torch.save(kept, run.folder / name)
    assert rebuild(run).mean == (0.5,) * 3
    assert same(weights(fit(splits, config)), weights(whole))


def test_finding_runs_by_parameter(splits, config):
    fit(splits, config)
    fit(splits, config.replace(lr=0.01))
    found = find_runs(config.runs_root)
    assert [run.config.lr for run in found] == [0.003, 0.01]
    assert [run.config.lr for run in find_runs(config.runs_root, lr=0.01)] == [0.01]


def test_images_grow_over_the_first_seventy_percent(splits, config):
    config = Config(image_size=128, start_image_size=64, epochs=20)
    sizes = [image_size_of_epoch(config, epoch) for epoch in range(1, 21)]
    assert sizes == sorted(sizes) and set(sizes) == {64, 80, 96, 112, 128}
    assert sizes[0] == 64 and set(sizes[14:]) == {128} and sizes[12] < 128
    assert image_size_of_epoch(Config(image_size=100), 1) == 100


def test_training_on_growing_images_ends_in_the_network_for_the_final_size(splits, config):
    run = fit(splits, config.replace(image_size=64, start_image_size=32, epochs=4))
    assert run.metrics["epochs"] == 4


def test_batches_are_even_and_every_image_comes_once():
    images = image_set(100, 0)
    chunks = shuffle(images, steps=4, batch_size=32, seed=0, epoch=1)
    assert [len(chunk) for chunk in chunks] == [25, 25, 25, 25]
    assert sorted(np.concatenate(chunks)) == list(range(100))
    other = shuffle(images, steps=4, batch_size=32, seed=0, epoch=2)
    assert not np.array_equal(np.concatenate(chunks), np.concatenate(other))


def test_what_does_not_fit_in_memory_is_read_in_blocks(monkeypatch):
    """A batch comes from one window of the file; every image comes once, each epoch otherwise."""
    images = image_set(1000, 0)
    images.rows = np.random.default_rng(0).permutation(1000)
    monkeypatch.setattr(pixels, "MEMORY", 0.0)
    monkeypatch.setattr(batching, "BLOCK", 20)
    monkeypatch.setattr(batching, "WINDOW", 5)
    chunks = shuffle(images, steps=20, batch_size=50, seed=0, epoch=1)
    assert sorted(np.concatenate(chunks)) == list(range(1000))
    for first, second in zip(chunks[::2], chunks[1::2], strict=True):  # two batches a window
        window = np.sort(images.rows[np.concatenate([first, second])])
        starts = window.reshape(5, 20)  # five blocks of twenty neighbours
        assert (np.diff(starts) == 1).all() and (starts[:, 0] % 20 == 0).all()
    other = shuffle(images, steps=20, batch_size=50, seed=0, epoch=2)
    assert not np.array_equal(np.sort(other[0]), np.sort(chunks[0]))


def test_on_a_cpu_depthwise_convolutions_train_in_float32():
    images, dtypes = torch.rand(2, 4, 8, 8), {}
    for groups in (1, 2, 4):
        conv = nn.Conv2d(4, 8, 3, groups=groups)
        (expected,) = torch.autograd.grad(conv(images).square().sum(), conv.weight)
        with mixed_precision(torch.device("cpu"), torch.bfloat16):
            out = conv(images.bfloat16() if groups == 4 else images)
        dtypes[groups] = out.dtype
        (gradient,) = torch.autograd.grad(out.float().square().sum(), conv.weight)
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.5)
    assert dtypes == {1: torch.bfloat16, 2: torch.bfloat16, 4: torch.float32}
    assert torch.conv2d(images, conv.weight, groups=4).dtype == torch.float32


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_leaves_out_infinite_steps_as_pytorchs_with_a_waiting_scaler_does(momentum):
    """The gradients are infinite at the first steps, as they usually are, and once in between."""
    weights = []
    for kind in (torch.optim.RMSprop, optimizers.RMSprop):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = kind(layer.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for step in range(8):
            optimizer.zero_grad()
            loss = layer(torch.randn(4, 3)).square().mean()
            scaler.scale(loss * (math.inf if step in (0, 1, 5) else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
        weights.append([p.detach() for p in layer.parameters()])
    for one, other in zip(*weights, strict=True):
        assert one.isfinite().all() and torch.allclose(one, other, atol=1e-6)

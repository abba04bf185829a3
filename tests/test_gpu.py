"""What a GPU would refuse or wait for, found without one (see pretended_gpu.py)."""

import contextlib
import gc
import itertools
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
from pretended_gpu import A100, GIB, T4, pretended_gpu
from test_train import SMALL, image_set

from helpers import evaluate, models, train
from helpers.data.augment import augment, normalize
from helpers.data.images import Splits
from helpers.detect.detectors import as_detector
from helpers.detect.drawn.detector import train_detector
from helpers.detect.drawn.traffic import draw_scenes
from helpers.models.device import choose_device, choose_dtype
from helpers.runs.config import AUGMENTATIONS, Config
from helpers.runs.folder import open_run
from helpers.train import loop
from helpers.visualize import saliency
from helpers.visualize.guided import guided_backprop


@pytest.fixture
def splits():
    return Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))


@pytest.fixture
def config(tmp_path):
    return Config(**{
        **SMALL, "precision": "auto", "epochs": 2, "augment": ["horizontal_flip", "random_crop=4"],
    }, runs_root=str(tmp_path))  # fmt: skip


def fit(splits, config):
    return train.fit(models.build(config, 3), splits, config)


both = pytest.mark.parametrize("gpu", [T4, A100], ids=["T4", "A100"])


@both
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_trains_and_tests_with_every_optimizer(splits, config, gpu, optimizer):
    with pretended_gpu(gpu):
        number_format = choose_dtype(config, choose_device())
        model = models.build(config, 3)
        config = config.replace(optimizer=optimizer)
        scaled = []

        def look(row):
            scaled.append(open_run(config).read_checkpoint("last.pt")["scaler"])

        run = train.fit(model, splits, config, look)
        assert {p.device for p in model.parameters()} == {torch.device("cuda", 0)}
        evaluate.open_test_set(run, splits)
    assert number_format == (torch.float16 if gpu == T4 else torch.bfloat16)
    assert run.metrics["test"]["images"] == 24
    assert bool(scaled[-1]) == (gpu == T4)


def test_a_gpu_learns_what_a_cpu_learns(splits, config):
    config = config.replace(precision="float32", optimizer="sgd", lr=0.01, epochs=3)
    cpu = fit(splits, config.replace(name="cpu"))
    with pretended_gpu(A100):
        gpu = fit(splits, config.replace(name="gpu"))
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        for one, other in zip(cpu.history, gpu.history, strict=True):
            assert one[name] == pytest.approx(other[name], abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"start_image_size": 32, "image_size": 64},
        {"stages": [{"epochs": 1}, {"epochs": 1, "lr": 1e-4, "freeze": "convolutional"}]},
        {"freeze": "all_but_head", "feature_views": 2, "head": "dense"},
        {"freeze": "all_but_last_1_blocks", "augment": []},
        {"schedule": "one_cycle", "early_stopping": 1, "label_smoothing": 0.1, "val_steps": 1},
        {"schedule": "plateau", "norm_after_pool": True, "activation": "gelu", "dropout": 0.2},
        {"augment": list(AUGMENTATIONS)},
    ],
    ids=lambda changes: "-".join(changes),
)
@both
def test_trains_in_every_way(config, splits, gpu, changes):
    with pretended_gpu(gpu):
        run = fit(splits, config.replace(**changes))
    assert run.metrics["epochs"] == 2
    frozen = "freeze" in changes and "stages" not in changes
    assert len(run.metrics["features"]) == frozen


def test_images_too_large_for_the_gpu_stay_in_memory_and_train_alike(splits, config):
    config = config.replace(precision="float32", optimizer="sgd")
    histories = []
    for name, free in ("large", T4.memory), ("small", 1 << 10):
        with pretended_gpu(T4, free=free):
            fresh = Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))
            histories.append(fit(fresh, config.replace(name=name)).history)
            assert (fresh.train.on_gpu is not None) == (name == "large")
    for one, other in zip(*histories, strict=True):
        assert one["val_loss"] == other["val_loss"]


def test_the_second_gpu_gets_its_own_images(splits, config):
    with pretended_gpu(A100, count=2) as log:
        torch.cuda.set_device(1)  # as processes.join does
        model = models.build(config, 3)
        train.fit(model, splits, config)
        assert {p.device for p in model.parameters()} == {torch.device("cuda", 1)}
        assert splits.train.on_gpu.device == torch.device("cuda", 1)
    assert set(log.devices) == {1}


@pytest.mark.parametrize(("first", "then"), [(A100, T4), (T4, A100), (None, T4), (T4, None)])
def test_a_run_continues_on_another_kind_of_device(splits, config, first, then):
    def on(gpu):
        return pretended_gpu(gpu) if gpu else contextlib.nullcontext()

    def interrupt(row):
        raise KeyboardInterrupt

    with on(first), pytest.raises(KeyboardInterrupt):
        train.fit(models.build(config, 3), splits, config, interrupt)
    splits = Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))
    with on(then):
        assert fit(splits, config).metrics["epochs"] == 2


def steps(config, count, free):
    """Train one epoch of `count` steps; returns what the device was asked for."""
    splits = Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))
    config = config.replace(steps_per_epoch=count, epochs=1, name=f"steps-{count}")
    ticks = itertools.count()
    clock = mock.patch.object(loop.time, "perf_counter", lambda: next(ticks) * 1e-6)
    with pretended_gpu(T4, free=free) as log, clock:
        fit(splits, config)
    assert splits.val.on_gpu is not None
    assert (splits.train.on_gpu is None) == (free < GIB)
    return log


USUAL = ["horizontal_flip", "random_crop"]


@pytest.mark.parametrize(
    ("optimizer", "chosen", "free"),
    [
        ("adamw", USUAL, T4.memory), ("adamw", USUAL, 250_000),
        ("adamw", list(AUGMENTATIONS), T4.memory), ("adamw", list(AUGMENTATIONS), 250_000),
        ("sgd", USUAL, T4.memory), ("rmsprop", USUAL, T4.memory),
    ],
    ids=["adamw", "too large", "all augmentations", "all, too large", "sgd", "rmsprop"],
)  # fmt: skip
def test_no_step_waits_for_the_gpu(config, optimizer, chosen, free):
    """More steps, and the host waits no more often: at the ends of epochs alone."""
    config = config.replace(augment=chosen, schedule="one_cycle", optimizer=optimizer)
    few, many = (steps(config, count, free) for count in (2, 6))
    assert many.waits == few.waits
    assert sum(many.launches.values()) > sum(few.launches.values())


def test_validation_images_are_uploaded_once(splits, config):
    with pretended_gpu(A100) as log:
        fit(splits, config.replace(epochs=4))
    whole = splits.val.decoded[splits.val.rows].nbytes
    assert sum(n for (_, size), n in log.uploads.items() if size == whole) == 1


def test_crop_and_flip_of_a_batch_take_few_launches():
    with pretended_gpu(T4) as log:
        pixels = torch.zeros(64, 3, 32, 32, dtype=torch.uint8, device="cuda")
        log.launches.clear()
        chosen = [("random_crop", 4), ("horizontal_flip", 0.5)]
        images = augment(pixels, chosen, torch.Generator().manual_seed(0))
        normalize(images, (0.5,) * 3, (0.5,) * 3, torch.float16)
        assert 0 < sum(log.launches.values()) <= 60
        assert not log.waits


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_on_a_gpu_as_on_a_cpu(name):
    images = image_set(16, 0).take(np.arange(16))
    chosen = [(name, AUGMENTATIONS[name][0])]
    expected = augment(images, chosen, torch.Generator().manual_seed(1))
    with pretended_gpu(A100):
        seen = augment(images.to("cuda"), chosen, torch.Generator().manual_seed(1)).cpu()
    assert (seen.int() - expected.int()).abs().max() <= 1  # one rounds floats, one bytes


def test_an_interrupted_training_leaves_the_gpu(splits, config, monkeypatch):
    kept = []

    class Watched(loop.Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(weakref.ref(self))

    def interrupt(row):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "Training", Watched)
    with pytest.raises(KeyboardInterrupt) as caught:
        train.fit(models.build(config, 3), splits, config, interrupt)
    gc.collect()
    assert len(kept) == 1 and kept[0]() is None, caught.traceback


def test_guided_gradients_and_saliency_can_be_drawn(config):
    with pretended_gpu(A100):
        model = models.build(config, 3).to("cuda").eval()
        images = normalize(image_set(4, 0).take(np.arange(4)), (0.5,) * 3, (0.5,) * 3)
        found = guided_backprop(model, images, "blocks.1", [0, 1, 2, 3])
        concentration = saliency.gini(found.abs().sum(1))
        maps = saliency.explain(model, images, torch.tensor([0, 1, 2, 0]), "blocks.2")
        edges = saliency.edges(images)
        similar = saliency.similarity(maps["gradient"], edges)
    assert np.isfinite(concentration.numpy()).any() and len(similar) == 4


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64), ("squeezenet1_1", 64), ("shufflenet_v2_x0_5", 64),
        ("mobilenet_v3_small", 64), ("timm:test_efficientnet", 64), ("timm:test_convnext", 64),
        ("timm:test_vit", 160),
    ],
)  # fmt: skip
@both
def test_fine_tunes_one_network_a_family(config, gpu, name, side):
    config = config.replace(model=name, image_size=side, epochs=1, batch_size=4, augment=[],
                            freeze="nothing" if gpu == T4 else "all_but_head")  # fmt: skip
    splits = Splits(*(image_set(count, count, side=side) for count in (4, 4, 4)))
    with pretended_gpu(gpu):
        assert fit(splits, config).metrics["epochs"] == 1


def test_detector_trains_and_finds():
    images, targets = draw_scenes(8, 0)
    with pretended_gpu(T4):
        network, names = train_detector(images, targets, steps=2, seed=0, batch_size=2)
        detector = as_detector(network, names, .5)
        found = detector.predict(images[:2])
    assert len(found) == 2 and all(isinstance(one.boxes, np.ndarray) for one in found)

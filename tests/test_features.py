"""Features computed once give the training that recomputing them at every step gives."""

import numpy as np
import pytest
import torch
from test_train import SMALL, image_set
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers import models, train
from helpers.data.images import Splits
from helpers.models.freezing import freeze
from helpers.models.graph import fold
from helpers.runs.config import Config
from helpers.train import features, loop


@pytest.fixture
def splits():
    return Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))


@pytest.fixture
def config(tmp_path):
    return Config(**{**SMALL, "dropout": 0.3}, runs_root=str(tmp_path), freeze="all_but_head")


def fit(splits, config):
    return train.fit(models.build(config, 3), splits, config)


def split(name, strategy, size=64, **parameters):
    config = Config(model=name, image_size=size, **parameters)
    model = models.build(config, 3)
    freeze(model, strategy)
    return model, features.split(model, size)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"freeze": "all_but_last_2_blocks"},
        {"freeze": "convolutional", "optimizer": "sgd", "lr": 0.01},
        {"head": "dense", "pooling": "average", "head_norm": True},
        # Not Adam: of a rounding of folded batch norms, in a gradient near 0, it makes a step.
        {"model": "resnet18", "batch_size": 12, "freeze": "all_but_last_1_stages",
         "optimizer": "sgd", "lr": 0.01},
        {"model": "squeezenet1_1", "image_size": 32},
    ],
    ids=str,
)
def test_without_augmentation_it_is_the_plain_training(splits, config, parameters, monkeypatch):
    config = config.replace(**parameters)
    fast = fit(splits, config.replace(name="fast"))
    assert len(fast.metrics["features"]) == 1
    monkeypatch.setattr(loop.features, "compute", lambda *_: None)
    plain = fit(splits, config.replace(name="plain"))
    assert plain.metrics["features"] == []
    for row, other in zip(fast.history, plain.history, strict=True):
        for figure in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            assert row[figure] == pytest.approx(other[figure], rel=1e-3, abs=1e-6), figure
    weights, others = (run.read_checkpoint("best.pt")["model"] for run in (fast, plain))
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-5)


def test_each_image_goes_through_the_frozen_part_once(splits, config, monkeypatch):
    seen = []
    conv = nn.Conv2d.forward

    def record(self, images):
        seen.append(len(images) if self.in_channels == 3 and images.device.type != "meta" else 0)
        return conv(self, images)

    monkeypatch.setattr(nn.Conv2d, "forward", record)
    fit(splits, config.replace(epochs=5))
    final = 24  # the finished network is measured whole
    compared = 2 + 2  # two images, in two parts and in one
    assert sum(seen) == 48 + 24 + final + compared


def test_views_are_augmented_differently_and_take_turns(splits, config):
    config = config.replace(augment=["color_jitter"], feature_views=3, epochs=4)
    model = models.build(config, 3)
    freeze(model, config.freeze)
    found = features.compute(model, splits.train, splits.val, config, torch.float32, None)
    assert [len(view) for view in found.train] == [48] * 3 and len(found.val) == 24
    first, second, third = (view.values for view in found.train)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    run = fit(splits, config)
    assert run.metrics["features"][0]["views"] == 3
    more = config.replace(feature_views=9, epochs=2)  # no epoch would see the others
    found = features.compute(model, splits.train, splits.val, more, torch.float32, None)
    assert len(found.train) == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {"freeze": "nothing"},
        {"augment": ["horizontal_flip"]},
        {"freeze": "fully_connected"},
        {"start_image_size": 32, "image_size": 64},
        {"freeze": "all_but_last_5_blocks"},
    ],
    ids=str,
)
def test_what_changes_from_epoch_to_epoch_is_not_kept(splits, config, parameters):
    config = config.replace(epochs=1, **parameters)
    assert fit(splits, config).metrics["features"] == []


@pytest.mark.parametrize(
    ("name", "strategy", "up_to"),
    [
        ("resnet18", "all_but_head", "avgpool"),
        ("resnet18", "all_but_last_1_stages", "layer3.1"),
        ("alexnet", "all_but_head", "classifier.5"),
        ("alexnet", "convolutional", "avgpool"),  # behind it dropout stays active
        ("five_blocks", "all_but_head", "head.activation1"),
        ("vit_b_16", "all_but_last_1_blocks", "encoder.layers.encoder_layer_10"),
        ("mobilenet_v2", "all_but_last_2_blocks", "features.15"),
        ("densenet121", "all_but_head", "features.norm5"),
        ("googlenet", "all_but_last_1_blocks", "inception5a"),
        ("inception_v3", "all_but_head", "dropout"),
        ("legacy_xception", "all_but_head", "global_pool.flatten"),
        ("tf_efficientnet_lite0", "all_but_head", "global_pool.flatten"),  # padding by size
        ("tf_efficientnet_lite0", "all_but_last_1_blocks", "blocks.5.3"),
        ("timm:test_resnet", "all_but_last_1_blocks", "layer3.0"),
        ("timm:vit_tiny_patch16_224", "all_but_last_1_blocks", "blocks.10"),
        ("timm:test_convnext", "all_but_last_1_blocks", "stages.3.blocks.0"),
        ("timm:test_nfnet", "all_but_head", "head.global_pool.flatten"),
        ("timm:test_byobnet", "all_but_head", "head.global_pool.flatten"),
        ("timm:vgg11_bn", "all_but_head", "head.global_pool.flatten"),  # looks at the map's size
        ("timm:mobilenetv3_small_050", "all_but_last_1_blocks", "blocks.4.1"),
        ("regnet_y_400mf", "all_but_head", "avgpool"),
        ("mnasnet0_5", "all_but_head", "classifier.0"),
        ("convnext_tiny", "all_but_head", "classifier.1"),
        ("swin_t", "all_but_head", "flatten"),
    ],
)
def test_the_cut_is_late_and_loses_nothing(name, strategy, up_to):
    size = {"timm:vit_tiny_patch16_224": 224, "inception_v3": 96, "alexnet": 96,
            "legacy_xception": 96}.get(name, 64)  # fmt: skip
    model, (beginning, rest, last) = split(name, strategy, size)
    assert last == up_to
    images = torch.randn(2, 3, size, size)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(rest(beginning(images)), model(images))


@pytest.mark.parametrize("name", ["googlenet", "tf_efficientnet_lite0", "timm:test_resnet"])
def test_folded_batch_norms_compute_the_same(name):
    model = models.build(Config(model=name, image_size=64), 3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it had been trained
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    folded, images = fold(model), torch.randn(2, 3, 64, 64)
    left = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == [] and any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-3)


class Branching(nn.Module):
    """A network whose own `forward` looks at the images, or rolls dice by a function."""

    mean, std = (0.5,) * 3, (0.5,) * 3

    def __init__(self, dice):
        super().__init__()
        self.conv, self.head, self.dice = nn.Conv2d(3, 64, 3), nn.Linear(64, 3), dice

    def forward(self, images):
        vectors = self.conv(images).mean((2, 3))
        if self.dice:
            return self.head(F.dropout(vectors, 0.5, self.training))
        return self.head(vectors if vectors.sum() > 0 else -vectors)


@pytest.mark.parametrize(("dice", "reason"), [(False, "cannot be cut"), (True, "in two parts")])
def test_a_network_that_cannot_be_cut_says_so(dice, reason, splits, config, capsys):
    model = Branching(dice)
    freeze(model, "all_but_head")
    found = features.compute(model, splits.train, splits.val, config, torch.float32, None)
    said = capsys.readouterr().out
    assert found is None and reason in said and said.count("\n") == 1


def test_features_too_large_for_memory_go_to_a_file(splits, config, tmp_path, monkeypatch):
    whole = fit(splits, config.replace(name="whole"))
    monkeypatch.setattr(features, "MEMORY", 0.0)
    mapped = fit(splits, config.replace(name="mapped"))
    assert [r["val_loss"] for r in whole.history] == [r["val_loss"] for r in mapped.history]
    assert not (tmp_path / "mapped" / ".features").exists()


def test_the_saving_is_counted():
    """10 images took 2 s once; training looked at 24 and validation 3 times at 2: 6 s, not 2."""
    train, val = (features.FeatureSet(torch.zeros(n, 5), np.zeros(n)) for n in (8, 2))
    summary = features.Features(nn.Identity(), [train], val, "x", seconds=2.0).summary(24, 3)
    assert summary["saved_seconds"] == pytest.approx(0.2 * 30 - 2)
    assert summary["shape"] == [5] and summary["views"] == 1


class PretendedTF32(TorchFunctionMode):
    """Round what convolutions take to ten bits behind the point where cuDNN is allowed to."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d and torch.backends.cudnn.allow_tf32:
            args = [rounded(args[0]), rounded(args[1]), *args[2:]]
        return function(*args, **(kwargs or {}))


def rounded(values: torch.Tensor) -> torch.Tensor:
    bits = values.detach().float().contiguous().view(torch.int32)
    return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


def test_three_digits_of_a_gpu_do_not_keep_features_from_being_computed(splits, tmp_path):
    config = Config(model="efficientnet_lite0", weights="imagenet", image_size=32, augment=[],
                    freeze="all_but_head", runs_root=str(tmp_path))  # fmt: skip
    model = models.build(config, 3)
    freeze(model, config.freeze)
    with PretendedTF32():
        found = features.compute(model, splits.train, splits.val, config, torch.float32, tmp_path)
    assert found is not None

"""The five-block CNN is the network that its configuration describes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.models import build
from helpers.models.device import choose_device
from helpers.models.heads import ACTIVATIONS, SquareRoot
from helpers.runs.config import Config, ConfigError


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_forward_is_conv_norm_activation_pool(activation, batch_norm):
    """Whatever the order of pooling and activation, the result is that of the textbook order."""
    config = Config(
        activation=activation, batch_norm=batch_norm, filters=4, image_size=32, dense=[6, 5]
    )
    model = build(config, 3).eval()
    images = torch.randn(2, 3, 32, 32)
    features = images
    for block in model.blocks:
        features = block.conv(features)
        if batch_norm:
            features = block.norm(features)
        features = F.max_pool2d(ACTIVATIONS[activation]()(features), 2)
    hidden = ACTIVATIONS[activation]()(model.head.dense1(features.flatten(1)))
    hidden = ACTIVATIONS[activation]()(model.head.dense2(hidden))
    torch.testing.assert_close(model(images), model.head.classifier(hidden))


def test_norm_after_pool_is_conv_pool_norm_activation():
    model = build(Config(norm_after_pool=True, activation="gelu", filters=4), 3).eval()
    images = torch.randn(2, 3, 64, 64)
    block = model.blocks[0]
    expected = F.gelu(block.norm(F.max_pool2d(block.conv(images), 2)))
    torch.testing.assert_close(block(images), expected)


@pytest.mark.parametrize("pooling", ["flatten", "average", "quarters"])
@pytest.mark.parametrize("kernel_size", [1, 3, 4, [11, 7, 5, 3, 2]])
@pytest.mark.parametrize(("padding", "size"), [("same", 40), ("valid", 150)])
def test_shapes(pooling, kernel_size, padding, size):
    config = Config(
        image_size=size, kernel_size=kernel_size, padding=padding, pooling=pooling, filters=3
    )
    model = build(config, 7)
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("pooling", ["average", "quarters"])
def test_pooling_takes_other_image_sizes(pooling):
    model = build(Config(pooling=pooling, filters=3), 4)
    assert model(torch.zeros(2, 3, 96, 160)).shape == (2, 4)


def test_dense_layers_see_the_roots_of_the_quarters_averages():
    config = Config(image_size=128, filters=3, pooling="quarters", head_sqrt=True, dense=[])
    model = build(config, 5).eval()
    images = torch.randn(2, 3, 128, 128)
    maps = model.blocks(images)  # (2, 3, 4, 4)
    quarters = [maps[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)]
    features = torch.stack(quarters, 2).flatten(1).sqrt()  # behind ReLU nothing is negative
    expected = features @ model.head.classifier.weight.T + model.head.classifier.bias
    torch.testing.assert_close(model(images), expected, atol=1e-3, rtol=1e-3)


def test_square_root_keeps_the_sign_and_has_a_slope_everywhere():
    values = torch.tensor([-4.0, 0.0, 0.25], requires_grad=True)
    roots = SquareRoot()(values)
    torch.testing.assert_close(roots, torch.tensor([-2.0, 0.0, 0.5]), atol=1e-5, rtol=0)
    roots.sum().backward()
    torch.testing.assert_close(values.grad[[0, 2]], torch.tensor([0.25, 1.0]), atol=1e-4, rtol=0)
    assert values.grad.isfinite().all()


@pytest.mark.parametrize(("dropout_after", "places"), [("dense", 2), ("blocks", 5), ("both", 7)])
def test_dropout_is_where_it_is_asked_for(dropout_after, places):
    model = build(Config(dropout=0.3, dropout_after=dropout_after, dense=[8, 8], filters=2), 3)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == places and {m.p for m in dropouts} == {0.3}


def test_batch_norm_behind_the_dense_layer():
    model = build(Config(filters=4, dense=[6, 5], dense_norm=True, activation="relu"), 3).eval()
    features = torch.randn(4, model.head.dense1.in_features)
    hidden = F.relu(model.head.norm1(model.head.dense1(features)))
    hidden = F.relu(model.head.norm2(model.head.dense2(hidden)))
    torch.testing.assert_close(model.head(features), model.head.classifier(hidden))


@pytest.mark.parametrize("name", ["five_blocks", "efficientnet_b0"])
def test_activation_and_dropout_on_the_logits(name):
    """As a CUB-200 report's appendix has it: dense to the classes, ReLU, dropout."""
    given = dict(model=name, filters=4, dense=6, image_size=64, seed=3, dropout=0.0)
    plain = build(Config(**given), 7).eval()
    model = build(Config(**given, logits_activation="relu", logits_dropout=0.5), 7).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(6, 3, 64, 64)
    with torch.no_grad():
        expected = F.relu(plain(images))
        torch.testing.assert_close(model(images), expected)
    assert 0 < (expected == 0).float().mean() < 1
    head = model.get_submodule(model.head_name.removesuffix(".classifier"))
    names = [name for name, _ in head.named_children()]
    assert names[-3:] == ["classifier", "logits_activation", "logits_dropout"]
    assert head.logits_dropout.p == 0.5


@pytest.mark.parametrize(("init", "gain"), [("kaiming", 2.0), ("glorot", 1.0)])
def test_initialization_has_the_published_variance(init, gain):
    """He et al. 2015: 2 / fan_in; Glorot and Bengio 2010: 2 / (fan_in + fan_out)."""
    model = build(Config(init=init, filters=64, dense=512), 10)
    conv, dense = model.blocks[2].conv, model.head.dense1
    for layer, fan_in, fan_out in (conv, 64 * 9, 64 * 9), (dense, dense.in_features, 512):
        expected = gain / fan_in if init == "kaiming" else 2 / (fan_in + fan_out)
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.05)
        assert layer.bias.abs().max() == 0


def test_the_seed_decides_the_weights():
    first, again, other = (build(Config(seed=seed), 3).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.conv.weight"], other["blocks.0.conv.weight"])


def test_googlenet_has_no_auxiliary_heads_that_would_answer_in_training():
    model = build(Config(model="googlenet"), 7)
    assert model.training and model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build(Config(model="resnet_18"), 3)


def test_a_gpu_that_is_too_old_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a"])
    assert {choose_device().type for _ in range(3)} == {"cpu"}
    assert capsys.readouterr().out.count("Tesla P100 is too old") == 1

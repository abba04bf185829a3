"""Each way of going wrong is found by the function that is meant to find it."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from helpers.models import build
from helpers.runs.config import Config
from helpers.train import diagnosis


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    colors = torch.rand(4, 3, 1, 1, generator=generator)[labels]
    noise = torch.randn(32, 3, 32, 32, generator=generator)
    return 3 * (colors - 0.5) + 0.3 * noise, labels


def network(batch_norm=True):
    config = Config(image_size=32, filters=8, dense=16, dropout=0.0, batch_norm=batch_norm)
    return build(config, 4)


def test_loss_at_the_start_is_that_of_knowing_nothing(batch):
    assert diagnosis.initial_loss(network(), *batch) == pytest.approx(math.log(4), abs=0.2)
    images, labels = batch
    unnormalised = diagnosis.initial_loss(network(batch_norm=False), 2000 * images, labels)
    assert unnormalised > 1.5 * math.log(4)


def test_a_batch_is_learned_by_heart_unless_something_is_wrong(batch):
    healthy = diagnosis.learn_by_heart(network(), *batch, lr=1e-2, steps=60)
    assert len(healthy) == 60 and healthy[-1] < 0.1 < 1 < healthy[0]
    twice = diagnosis.learn_by_heart(
        network(), *batch, lr=1e-2, steps=60,
        loss=lambda logits, labels: F.cross_entropy(logits.softmax(1), labels),
    )  # fmt: skip
    least = math.log(math.e + 3) - 1  # the softmax of a softmax is never sure
    assert least <= twice[-1] < twice[0] and min(twice) > 0.7
    broken = diagnosis.learn_by_heart(network(), batch[0] * math.inf, batch[1])
    assert len(broken) == 1 and not math.isfinite(broken[0])


def test_range_test_rises_from_low_to_high_and_stops_where_the_loss_explodes(batch):
    found = diagnosis.range_test(network(batch_norm=False), [batch] * 50, 1e-5, 100.0)
    rates = [rate for rate, _ in found]
    assert rates[0] == pytest.approx(1e-5) and rates == sorted(rates) and len(found) < 50
    assert found[0][1] == pytest.approx(math.log(4), abs=0.2)
    assert 1e-4 < diagnosis.best_rate(found) < 0.1


def test_layers_tell_what_reaches_them_and_what_comes_back(batch):
    """By hand: two dense layers, the second of whose inputs are half dead."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([9.0, 9.0, -99.0, -99.0]))
    images, labels = torch.rand(5, 3, 2, 2), torch.arange(5) % 3
    first, second = diagnosis.watch_layers(model, images, labels)
    assert first.inputs == pytest.approx(images.pow(2).mean().sqrt().item()) and first.dead == 0
    assert second.layer == "3" and second.dead == 0.5
    F.cross_entropy(model(images), labels).backward()
    weights = model[3].weight
    assert second.gradient == pytest.approx((weights.grad.norm() / weights.norm()).item())


def test_dead_channels_of_a_convolution_are_seen_behind_it(batch):
    model = network(batch_norm=False)
    with torch.no_grad():
        model.blocks[1].conv.bias.fill_(-1000)
    dead = [signal.dead for signal in diagnosis.watch_layers(model, *batch)]
    assert dead[2] == 1 and dead[0] == dead[1] == 0
    assert diagnosis.watch_layers(model, *batch)[0].gradient == 0  # nothing comes back


def test_transformers_and_frozen_layers_are_watched_too(batch):
    """An attention's last layer never runs as a module; the channels of tokens come last."""
    model = nn.Sequential(
        nn.Flatten(2), nn.Linear(1024, 6), nn.ReLU(), nn.TransformerEncoderLayer(6, 2, 8, 0.0),
        nn.Flatten(), nn.Linear(18, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[1].bias[:3] = -1000  # 3 of 6 channels of every token
    model[1].requires_grad_(False)
    signals = {signal.layer: signal for signal in diagnosis.watch_layers(model, *batch)}
    assert list(signals) == ["1", "3.linear1", "3.linear2", "5"]
    assert signals["1"].gradient == 0 and signals["5"].gradient > 0
    model[3] = nn.Linear(6, 6)
    signals = {signal.layer: signal for signal in diagnosis.watch_layers(model, *batch)}
    assert signals["3"].dead == 0.5


def test_what_was_measured_can_be_drawn(batch):
    signals = diagnosis.watch_layers(network(), *batch)
    figures = [
        diagnosis.draw_losses({"a": [2.0, 1.0], "b": [1.0]}, {"ln 4": 1.39}),
        diagnosis.draw_range_test({"a": [(1e-4, 1.4), (1e-3, 1.0), (1e-2, 3.0)]}),
        diagnosis.draw_layers({"a": signals}),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
    assert len(figures[2].axes) == 3

"""Counts against hand computation, torchvision's published figures and PyTorch's own counter."""

import copy

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.count.algebra import cs6910_operations, formulas
from helpers.count.layers import (
    classifier,
    compare,
    count,
    describe,
    figure,
    group,
    match_table,
    table,
    without_weights,
)
from helpers.models import build
from helpers.runs.config import Config, ConfigError

R1 = Config(
    image_size=274,
    filters=64,
    kernel_size=3,
    padding="valid",
    conv_bias=True,
    batch_norm=True,
    pooling="flatten",
    dense=1024,
)
R3 = Config(
    image_size=256,
    filters=32,
    kernel_size=3,
    padding="same",
    conv_bias=False,
    batch_norm=False,
    pooling="flatten",
    dense=64,
)


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),  # 10 -> 8: 3*3*3*4 weights + 4 biases, 8*8*108 MACs
        nn.BatchNorm2d(4),  # 8 trainable, 8 moving statistics
        nn.Conv2d(4, 6, (1, 3), stride=2, groups=2, bias=False),  # 8x8 -> 4x3
        nn.Flatten(),  # 6*4*3 = 72
        nn.Linear(72, 5),
    )


def test_count_by_hand():
    counts = count(small_network(), 10)
    macs = [8 * 8 * 3 * 3 * 3 * 4, 0, 4 * 3 * 3 * 2 * 6, 0, 72 * 5]
    assert [layer.macs for layer in counts.layers] == macs
    assert [layer.params for layer in counts.layers] == [112, 8, 36, 0, 365]
    assert [layer.output for layer in counts.layers][:3] == [(4, 8, 8), (4, 8, 8), (6, 4, 3)]
    assert (counts.params, counts.trainable, counts.buffers) == (521, 521, 8)
    assert (counts.macs, counts.flops) == (sum(macs), 2 * sum(macs))
    assert counts.layers[2].formula == "4·3·1·3·2·6"
    assert counts.match


def test_frozen_parameters_are_not_trainable():
    model = small_network()
    model[0].requires_grad_(False)
    counts = count(model, 10)
    assert (counts.params, counts.trainable) == (521, 521 - 112)


def test_shared_weights_count_once_and_repeated_layers_compute_twice():
    layer = nn.Conv2d(3, 3, 1, bias=False)
    twin = nn.Conv2d(3, 3, 1, bias=False)
    twin.weight = layer.weight
    counts = count(nn.Sequential(layer, nn.Sequential(twin)), 4)
    assert (counts.params, sum(x.params for x in counts.layers)) == (9, 9)
    assert counts.macs == counts.macs_seen == 2 * 4 * 4 * 9


def test_a_layer_that_two_blocks_share_is_counted_where_it_is():
    """As CoaT's position encodings in timm."""

    class Block(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

        def forward(self, images):
            return self.conv(images)

    conv = nn.Conv2d(3, 3, 1)
    counts = count(nn.Sequential(Block(conv), Block(conv)), 4)
    assert [(x.name, x.macs, x.macs_seen) for x in counts.layers] == [("0.conv", 288, 288)]
    assert counts.match


def test_count_leaves_the_model_as_it_was():
    model = small_network().train()
    before = copy.deepcopy(model.state_dict())
    count(model, 10)
    assert model.training and all(module.training for module in model)
    assert not any(module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_without_a_formula_is_measured():
    class Doubled(nn.Conv2d):
        def forward(self, images):
            return super().forward(images) + super().forward(images)

    counts = count(Doubled(3, 4, 3), 10)
    assert counts.macs == 2 * 8 * 8 * 108
    assert counts.layers[0].formula == "by FlopCounterMode"


@pytest.mark.parametrize("kind", [list, tuple])
def test_modules_may_hand_on_several_maps(kind):
    """As those of HRNet, CrossViT and CoaT in timm."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return kind([self.conv(images), images])

    class First(nn.Module):
        def forward(self, maps):
            return maps[0]

    counts = count(nn.Sequential(Two(), First()), 10)
    assert counts.macs == 8 * 8 * 108 and counts.match
    assert counts.outputs["0"] == counts.outputs["1"] == (4, 8, 8)


@pytest.mark.parametrize(("others", "match"), [(0, True), (5, False)])
def test_a_formula_that_does_not_hold_shows(others, match):
    class Attention(nn.Module):  # 16 pixels as tokens of 3 numbers; the formula: to each other
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1)

        def forward(self, images):
            tokens = images.flatten(2).permute(2, 0, 1)
            keys = tokens.repeat(1 + others, 1, 1)
            return self.attention(tokens, keys, keys)[0]

    counts = count(Attention(), 4)
    assert counts.macs == 4 * 16 * 3 * 3 + 2 * 16 * 16 * 3
    assert counts.match == match
    assert ("**no**" not in table(counts)) == match


def test_cs6910_report_numbers():
    counts = count(build(R1, 10), 274)
    convolutions = [3 * 9 * 64 * 272**2] + [64 * 9 * 64 * s**2 for s in (134, 65, 30, 13)]
    assert counts.macs == sum(convolutions) + 2304 * 1024 + 1024 * 10 == 987301888
    assert (counts.trainable, counts.buffers) == (2520714, 640)
    assert counts.trainable + counts.buffers == 2521354
    assert counts.match
    operations = cs6910_operations(R1, 10)
    assert [row.reported for row in operations] == [
        241483776,
        58608384,
        13790400,
        2937600,
        551616,
        2360320,
        10260,
    ]
    assert sum(row.reported for row in operations) == 319742356
    assert [row.flops for row in operations] == [2 * x.macs for x in counts.layers if x.macs]


def test_da6401_report_formulas_for_every_m_k_n():
    params, macs = formulas(R3, 10)
    assert params.latex().replace(" ", "") == (
        r"\underbrace{3k^{2}m+4k^{2}m^{2}}_{\text{convolutions}}"
        r"+\underbrace{64mn+n}_{\text{dense}}+\underbrace{10n+10}_{\text{classifier}}"
    )
    claimed = sympy.sympify("3*k**2*m + 4*k**2*m**2 + 64*m*n + n + 10*n + 10")
    assert sympy.expand(claimed - params.expression) == 0
    claimed = sympy.sympify("k**2*H*W*(3*m + 85*m**2/256) + n*(64*m + 10)")
    assert sympy.expand(claimed - macs.expression) == 0
    assert r"H W k^{2} \left(3 m + \frac{85 m^{2}}{256}\right)" in macs.latex(factored=True)
    biased, _ = formulas(R3.replace(conv_bias=True), 10)
    assert biased.expression - params.expression == 5 * sympy.Symbol("m")


def test_growth_is_the_ratio_of_two_counts():
    params, macs = formulas(R3, 10)
    wider = count(build(R3.replace(filters=64), 10), 256)
    assert params.growth("m") == pytest.approx(wider.params / params.value)
    assert macs.growth("m") == pytest.approx(wider.macs / macs.value)


@settings(max_examples=40)
@given(
    image_size=st.integers(32, 96),
    filters=st.one_of(st.integers(1, 24), st.lists(st.integers(1, 24), min_size=5, max_size=5)),
    filter_organization=st.sampled_from(["same", "double", "half"]),
    kernel_size=st.one_of(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=5, max_size=5)),
    padding=st.sampled_from(["same", "valid"]),
    conv_bias=st.booleans(),
    batch_norm=st.booleans(),
    pooling=st.sampled_from(["flatten", "average", "quarters"]),
    dense=st.one_of(st.integers(1, 40), st.lists(st.integers(1, 40), max_size=3)),
    dense_norm=st.booleans(),
    head_norm=st.booleans(),
    num_classes=st.integers(2, 20),
)
def test_formulas_equal_pytorch_for_any_configuration(num_classes, **parameters):
    try:
        config = Config(**parameters)
    except ConfigError:  # five poolings leave nothing of so small an image
        assume(False)
    model = build(config, num_classes)
    params, macs = formulas(config, num_classes)
    counts = count(model, config.image_size)
    assert params.value == sum(parameter.numel() for parameter in model.parameters())
    assert macs.value == counts.macs_seen == counts.macs
    assert counts.match
    operations = cs6910_operations(config, num_classes)
    assert sum(row.flops for row in operations) == 2 * counts.macs_seen


def test_formulas_of_another_model_are_refused():
    with pytest.raises(ValueError, match="'resnet18'"):
        formulas(Config(model="resnet18"), 10)


@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "convnext_tiny",
        "densenet121",
        "efficientnet_b0",
        "efficientnet_v2_s",
        "googlenet",
        "inception_v3",
        "maxvit_t",
        "mobilenet_v3_large",
        "regnet_y_400mf",
        "resnet101",
        "shufflenet_v2_x1_0",
        "squeezenet1_0",
        "swin_v2_t",
        "vgg19",
        "vit_b_32",
        "vit_h_14",
    ],
)
def test_classifier_has_its_published_counts_without_memory(name):
    model, image_size, published = classifier(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    counts = count(model, image_size)
    assert counts.params == published["num_params"] == sum(x.params for x in counts.layers)
    assert round(counts.macs / 1e9, 3) == published["_ops"]
    assert counts.match


def test_attention_has_a_formula_with_frozen_parameters_too():
    model, image_size, _ = classifier("vit_b_32")
    counts = count(model.requires_grad_(False), image_size)
    assert counts.trainable == 0 and counts.match
    assert "by FlopCounterMode" not in {layer.formula for layer in counts.layers}


def test_without_weights_ends_with_its_block():
    with without_weights():
        assert nn.Linear(2, 2).weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


def test_unknown_classifier_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        classifier("resnet5O")


def test_groups_keep_the_totals_and_the_modules_own_shape():
    model, image_size, _ = classifier("densenet121")
    counts = count(model, image_size)
    rows = group(counts, 24)
    assert len(rows) <= 24
    assert sum(row.params for row in rows) == counts.params
    assert sum(row.macs for row in rows) == counts.macs
    shapes = {row.name: row.output for row in rows}
    assert shapes["features.denseblock1"] == (256, 56, 56)  # 64 + 6 layers of 32 channels


def test_figure_shows_every_count_and_both_totals():
    counts = count(build(R1, 10), 274)
    left, right = figure(counts).axes
    assert left.get_title("left") == "987,301,888 MACs"
    assert right.get_title("left") == "2,520,714 parameters"
    for axes, total in (left, counts.macs), (right, counts.params):
        assert sum(bar.get_width() for bar in axes.containers[1]) == total
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names[:2] == ["blocks.0.conv", "blocks.1.conv"]
    assert names[-1] == "5 smaller layers"  # the batch norms


def test_no_classifier_to_compare_is_said_in_one_sentence():
    with pytest.raises(ValueError, match=r"^classifiers = \[\] is not possible: name at least one"):
        compare([])


def test_tables():
    lines = table(count(small_network(), 10)).splitlines()
    assert lines[2] == "| 0 | Conv2d | 4×8×8 | 112 | 8·8·3·3·3·4 | 13,824 | 13,824 | yes |"
    assert lines[-1] == "| **total** |  |  | 521 | 7,704 | 15,408 | 15,408 | yes |"
    assert "| 1 | 2 | **no** |" in match_table({"": (1, 2)})
    assert compare(["alexnet"]).endswith("| 61,100,840 | 61,100,840 | 714,188,480 | 714,188,480 | 0.714 G | yes |")  # fmt: skip  # noqa: E501


def test_description_names_the_largest_layers():
    assert describe(count(build(R3, 10), 256)) == (
        "`blocks.1.conv` computes most, 58.7% of 257,294,976 MACs, with 5.4% of the parameters; "
        "`head.dense1` holds most, 77.4% of 169,514 parameters, for 0.1% of the MACs."
    )

"""Every strategy trains what the reports say, to the parameter, and what is frozen stays still."""

import copy

import pytest
import torch
from torch import nn

from helpers import models
from helpers.count.layers import without_weights
from helpers.models import freezing
from helpers.runs.config import Config, ConfigError
from helpers.train.optimizers import make_optimizer, make_scheduler


def build(classes=10, **parameters):
    sizes = {"inception_resnet_v2": 299, "inception_v3": 299, "five_blocks": 64}
    size = sizes.get(parameters.get("model", "five_blocks"), 224)
    with without_weights():
        return models.build(Config(**{"image_size": size, **parameters}), classes)


def counts(model, strategy):
    """Return (trainable, total), counted on the parameters themselves."""
    models.freeze(model, strategy)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters())


LAST = "all_but_last_block_and_norms"
R4 = [  # model, frozen, dropout, head activation, trainable, total; more in test_experiments.py
    ("efficientnet_b2", "nothing", 0.0, "relu", 7982794, 7982794),
    ("efficientnet_b2", LAST, 0.5, "relu", 2229136, 7982794),
    ("efficientnet_b0", LAST, 0.2, "leaky_relu", 1010200, 4263748),
]


@pytest.mark.parametrize(("model", "strategy", "dropout", "activation", "trained", "total"), R4)
def test_gnr638_rows(model, strategy, dropout, activation, trained, total):
    network = build(200, model=model, dropout=dropout, head_activation=activation,
                    max_parameters=10_000_000)  # fmt: skip
    assert counts(network, strategy) == (trained, total)
    assert [m.p for m in network.classifier.modules() if isinstance(m, nn.Dropout)] == (
        [dropout] if dropout else []
    )


def test_da6401_vgg19_last_layer_alone():
    assert counts(build(10, model="vgg19"), "all_but_head") == (40_970, 139_611_210)


def test_second_project_head_on_resnet101():
    """ResNet101 without fc, batch norm on 2048 x 7 x 7, dense 256, dense 15; all but it frozen."""
    model = build(15, model="resnet101", head="dense", dense=256, head_norm=True)
    head = 2 * 100_352 + (100_352 * 256 + 256) + (256 * 15 + 15)
    assert counts(model, "all_but_head") == (head, 42_500_160 + head)
    kinds = [type(layer).__name__ for layer in model.fc]
    assert kinds == ["Flatten", "BatchNorm1d", "Linear", "ReLU", "Dropout", "Linear"]


def test_last_60_keras_layers_of_inception_resnet_v2_are_34_layers_with_weights():
    """Keras counts activations, concatenations and scalings, too: 10,810,432 with the gammas."""
    model = build(15, model="inception_resnet_v2", dropout=0.0)
    head = 1536 * 15 + 15
    assert counts(model, "all_but_last_34_layers")[0] - head == 10_810_432


def test_homework_2_alexnet_and_resnet34():
    conv, dense, last = 2_469_696, 54_947_941, 413_797
    model = build(101, model="alexnet")
    assert counts(model, "all_but_head") == (last, conv + dense)
    assert counts(model, "convolutional") == (dense, conv + dense)
    assert counts(model, "fully_connected") == (conv + last, conv + dense)
    assert counts(model, "nothing") == (conv + dense, conv + dense)
    assert counts(build(101, model="resnet34"), "all_but_head") == (51_813, 21_336_485)


def test_last_stages_and_blocks_of_resnet50():
    model = build(10, model="resnet50")
    head = 2048 * 10 + 10
    stage = sum(p.numel() for p in model.layer4.parameters())
    block = sum(p.numel() for p in model.layer4[-1].parameters())
    assert counts(model, "all_but_last_1_stages")[0] == stage + head
    assert counts(model, "all_but_last_1_blocks")[0] == block + head
    assert counts(model, "all_but_last_3_blocks")[0] == stage + head


@pytest.mark.parametrize(
    ("name", "blocks", "stages"),
    [("five_blocks", 5, 5), ("convnext_tiny", 18, 4), ("swin_t", 12, 4)],
)
def test_blocks_and_stages_are_those_of_the_papers(name, blocks, stages):
    """For more networks, that are built there anyway, test_pretrained.py looks."""
    model = build(model=name)
    assert (len(freezing.blocks(model)), len(freezing.stages(model))) == (blocks, stages)


@pytest.mark.parametrize("name", ["five_blocks", "resnet18", "alexnet", "vit_b_16", "googlenet"])
def test_parts_hold_every_parameter_once_and_end_in_the_head(name):
    model = build(model=name)
    parts = freezing.parts(model)
    names = [parameter for part in parts for parameter in part]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(parameter.startswith(model.head_name) for parameter in parts[-1])


def test_table_counts_what_is_trained():
    model = models.build(Config(), 10)
    rows = models.freeze(model, "all_but_last_1_blocks")
    assert [row.name for row in rows if row.trained] == [
        "blocks.4.conv", "blocks.4.norm", "head.dense1", "head.classifier",
    ]  # fmt: skip
    assert sum(row.params for row in rows) == sum(p.numel() for p in model.parameters())
    text = freezing.table(rows)
    assert "| `blocks.0.conv` | Conv2d | 448 |  | frozen |" in text
    total = sum(row.trained for row in rows)
    assert f"{total:,}" in text.splitlines()[-1]


def test_table_of_a_deep_network_is_short_and_its_sums_are_right():
    rows = models.freeze(build(model="densenet121"), "all_but_last_1_stages")
    lines = freezing.table(rows).splitlines()
    assert len(lines) <= 24 + 3
    params = [int(line.split("|")[3].replace(",", "")) for line in lines[2:]]
    assert sum(params[:-1]) == params[-1] == sum(row.params for row in rows)


def step(model, images, config):
    """Train one step in the way the loop does."""
    models.train_mode(model)
    optimizer = make_optimizer(model, config)
    nn.functional.cross_entropy(model(images), torch.arange(len(images)) % 3).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["five_blocks", "resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("strategy", ["all_but_head", "all_but_last_1_blocks", "convolutional"])
def test_a_step_changes_the_trained_part_alone_running_statistics_too(name, strategy):
    config = Config(model=name, lr=0.1, filters=4, dense=[], optimizer="sgd")
    model = models.build(config, 3)
    rows = models.freeze(model, strategy)
    before = copy.deepcopy(model.state_dict())
    step(model, torch.randn(4, 3, 64, 64), config)
    state = {row.name: row.trained for row in rows}
    for key, tensor in model.state_dict().items():
        same = torch.equal(tensor, before[key])
        assert same == (state[key.rpartition(".")[0]] == 0), key


def test_train_does_not_wake_frozen_norms_and_unfreezing_does():
    model = models.build(Config(model="resnet18", image_size=64), 3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    models.freeze(model, "all_but_last_1_stages")
    for network in (model, copy.deepcopy(model).eval()):
        models.train_mode(network)
        awake = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        assert len(awake) == 5 and network.training
    models.freeze(model, "nothing")
    models.train_mode(model)
    assert all(norm.training for norm in norms)


def test_dropout_rests_in_the_frozen_beginning_alone():
    model = build(10, model="alexnet")
    models.freeze(model, "all_but_head")
    models.train_mode(model)
    own, new = model.classifier[0], model.classifier[6].dropout
    assert not own.training and not model.classifier[3].training and new.training
    models.freeze(model, "convolutional")  # behind the last frozen layer: it protects what learns
    models.train_mode(model)
    assert own.training and model.classifier[3].training


@pytest.mark.parametrize(
    ("model", "strategy", "message"),
    [
        ("alexnet", "all_but_last_2_blocks", "AlexNet is not built of blocks"),
        ("resnet18", "all_but_last_9_blocks", "ResNet has 8 blocks"),
        ("resnet18", "fully_connected", "no dense layer besides its new head"),
        ("five_blocks", "all_but_last_99_layers", "FiveBlocks has 11 layers"),
    ],
)
def test_what_a_network_has_not_cannot_be_frozen(model, strategy, message):
    with pytest.raises(ConfigError, match=message):
        models.freeze(build(model=model), strategy)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'all_but_head'"):
        models.freeze(build(), "all_but_heads")


def test_layer_decay_lowers_the_rate_stage_by_stage():
    config = Config(model="resnet18", layer_decay=0.5, lr=1.0, image_size=64)
    model = models.build(config, 3)
    models.freeze(model, "all_but_last_2_stages")
    optimizer = make_optimizer(model, config)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5, 0.25]
    sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    parts = (model.fc, model.layer4, model.layer3)
    assert sizes == [sum(p.numel() for p in part.parameters()) for part in parts]
    make_scheduler(optimizer, config.replace(schedule="one_cycle"), 10)
    rates = [group["max_lr"] for group in optimizer.param_groups]
    assert rates == [1.0, 0.5, 0.25]

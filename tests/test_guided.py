"""Guided backpropagation against captum, a second implementation and hand calculation."""

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from captum.attr import NeuronGuidedBackprop
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models import vgg

from helpers import models
from helpers.runs.config import Config
from helpers.visualize.guided import describe_rule, feature_maps, guided_backprop, spatial_layers
from helpers.visualize.receptive_field import Axis


class Rule(torch.autograd.Function):
    """The documented rule, written out: f'(x) * [x > 0] * max(gradient, 0)."""

    @staticmethod
    def forward(ctx, x, function):
        ctx.save_for_backward(x)
        ctx.function = function
        return function(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            derivative = torch.autograd.grad(ctx.function(x).sum(), x)[0]
        return derivative * (x > 0) * gradient.clamp(min=0), None


class Ruled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return Rule.apply(x, self.function)


FUNCTIONS = {
    nn.ReLU: F.relu,
    nn.ReLU6: F.relu6,
    nn.LeakyReLU: F.leaky_relu,
    nn.GELU: F.gelu,
    nn.SiLU: F.silu,
    nn.Mish: F.mish,
    nn.ELU: F.elu,
    nn.Tanh: torch.tanh,
    nn.Hardswish: F.hardswish,
}


def reference(model, images, layer, neurons):
    """Whole images, one after the other, activations replaced by `Rule`."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in FUNCTIONS:
                setattr(parent, name, Ruled(FUNCTIONS[type(child)]))
    seen = []
    model.get_submodule(layer).register_forward_hook(
        lambda m, i, output: seen.append(output.clone())
    )
    gradients = []
    for image, neuron in zip(images, neurons, strict=True):
        image = image[None].clone().requires_grad_()
        model(image * 1)
        gradients.append(torch.autograd.grad(seen[-1][(0, *neuron)], image)[0])
    return torch.cat(gradients)


def captum(model, images, layer, neurons):
    method = NeuronGuidedBackprop(model, model.get_submodule(layer))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = zip(images, neurons, strict=True)
        return torch.cat([method.attribute(image[None].clone(), n) for image, n in pairs])


def error(found, expected):
    """Largest deviation relative to the largest gradient; the gradients must not all be 0."""
    assert expected.abs().max() > 0
    return ((found - expected).abs().max() / expected.abs().max()).item()


def strongest(model, images, layer, count):
    """`count` neurons that are active in the images: the strongest of the most active channels."""
    maps = feature_maps(model, images, layer)
    channels = maps.amax((2, 3)).mean(0).topk(count).indices.tolist()
    return [
        (channel, *divmod(maps[i, channel].argmax().item(), maps.shape[3]))
        for i, channel in enumerate(channels)
    ]


def five_blocks(size=64, **parameters):
    config = Config(image_size=size, filters=[8, 12, 16, 20, 24], dense=16, **parameters)
    return models.build(config, 5).eval()


def torchvision_model(name):
    if name == "vgg11":  # its classifier, of 120 million weights, is of no interest here
        return vgg.make_layers(vgg.cfgs["A"], batch_norm=False).eval()
    options = {"googlenet": {"aux_logits": False, "init_weights": False}}.get(name, {})
    return torchvision.models.get_model(name, weights=None, num_classes=7, **options).eval()


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("five_blocks", "blocks.4.conv", 96),
        ("five_blocks", "blocks.4", 96),
        ("five_blocks", "blocks.2.activation", 96),
        ("vgg11", "18", 64),
        ("alexnet", "features.10", 96),
        ("resnet18", "layer4.1.conv2", 64),
        ("resnet18", "layer3", 64),
        ("densenet121", "features.transition1", 64),
    ],
)
def test_same_as_captum_for_rectifiers(name, layer, size):
    model = five_blocks(size) if name == "five_blocks" else torchvision_model(name)
    model = model.double()  # in float32 a rounding may tip a ReLU or a max pooling
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    neurons = strongest(model, images, layer, 3)
    found = guided_backprop(model, images, layer, neurons)
    assert error(found, captum(model, images, layer, neurons)) < 1e-10


@pytest.mark.parametrize("name", ["five_blocks", "vgg11", "alexnet", "resnet18"])
def test_same_as_captum_in_single_precision(name):
    layer = {"vgg11": "18", "alexnet": "features.10", "resnet18": "layer4.1.conv2"}
    model = five_blocks(96) if name == "five_blocks" else torchvision_model(name)
    images = torch.randn(1, 3, 96, 96)
    layer = layer.get(name, "blocks.4.conv")
    neurons = strongest(model, images, layer, 1)
    found = guided_backprop(model, images, layer, neurons)
    assert error(found, captum(model, images, layer, neurons)) < 1e-5


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu", "silu", "mish", "elu", "tanh"])
def test_generalised_rule_for_other_activations(activation):
    model = five_blocks(64, activation=activation).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    neurons = strongest(model, images, "blocks.4", 2)
    found = guided_backprop(model, images, "blocks.4", neurons)
    assert error(found, reference(model, images, "blocks.4", neurons)) < 1e-10
    assert "5 " in describe_rule(model, images, "blocks.4")


@pytest.mark.parametrize(("name", "layer"), [("mobilenet_v2", "5"), ("efficientnet_b0", "3")])
def test_rule_in_networks_that_captum_gets_wrong(name, layer):
    model = torchvision_model(name).features[: int(layer) + 1].double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    neurons = strongest(model, images, layer, 2)
    found = guided_backprop(model, images, layer, neurons)
    assert error(found, reference(model, images, layer, neurons)) < 1e-10
    assert error(captum(model, images, layer, neurons), found) > 0.1


def test_functional_relu(monkeypatch):
    model = torchvision_model("googlenet").double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    neurons = strongest(model, images, "inception5b", 2)
    found = guided_backprop(model, images, "inception5b", neurons)
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: Rule.apply(x, relu))
    expected = reference(model, images, "inception5b", neurons)
    assert error(found, expected) < 1e-10


def test_timm_model():
    model = timm.create_model("resnetv2_50", pretrained=False, num_classes=5).eval().double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    neurons = strongest(model, images, "stages.2", 1)
    found = guided_backprop(model, images, "stages.2", neurons)
    relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert len(relus) > 10  # or captum would be no truth
    assert error(found, captum(model, images, "stages.2", neurons)) < 1e-10


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    model[0].weight.data = torch.tensor([[[[2.0]]], [[[-1.0]]]])
    model[2].weight.data = torch.tensor([[[[3.0]], [[5.0]]]])
    images = torch.tensor([[[[1.0, -1.0]]]])
    # At pixel 0 only the first channel is positive: 3 * 2. At pixel 1 only the second: 5 * -1.
    found = guided_backprop(model, images, "2", [(0, 0, 0), (0, 0, 1)])
    assert found.tolist() == [[[[6.0, 0.0]]], [[[0.0, -5.0]]]]
    model[2].weight.data = torch.tensor([[[[-3.0]], [[5.0]]]])
    # Now the gradient that arrives at pixel 0's rectifier is negative and does not pass.
    found = guided_backprop(model, images, "2", [(0, 0, 0)])
    assert found.tolist() == [[[[0.0, 0.0]]]]


class EveryWayToWriteIt(nn.Module):
    """The same rectifier as a reused in-place module, functions, methods and operators."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(8))

    def forward(self, images):
        x = images
        rectifiers = [
            self.relu,
            F.relu,
            torch.relu,
            lambda x: x.relu_(),
            lambda x: x.clamp(min=0),
            torch.ops.aten.relu,
            lambda x: F.threshold(x, 0, 0),
        ]
        for conv, rectifier in zip(self.convs, rectifiers, strict=False):
            x = x + rectifier(conv(x))
            x += 0.1
        return self.relu(self.convs[-1](x))


def test_every_way_to_write_a_rectifier():
    model = EveryWayToWriteIt().double()
    images = torch.randn(1, 3, 12, 12, dtype=torch.float64)

    class Written(EveryWayToWriteIt):
        def forward(self, images):
            x = images
            for conv in self.convs[:-1]:
                x = x + Rule.apply(conv(x), torch.relu) + 0.1
            return self.convs[-1](x)

    truth = Written().double()
    truth.load_state_dict(model.state_dict())
    neurons = strongest(model, images, "convs.7", 1)
    found = guided_backprop(model, images, "convs.7", neurons)
    assert error(found, reference(truth, images, "convs.7", neurons)) < 1e-12
    assert describe_rule(model, images, "convs.7").startswith("Guided through 5 ReLU and 1 clamp")


@st.composite
def local_networks(draw):
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 4))):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        stride = draw(st.integers(1, 2))
        padding = (
            draw(st.sampled_from([0, 1, 2, "same"])) if stride == 1 else draw(st.integers(0, 2))
        )
        width = draw(st.integers(2, 4))
        layers.append(nn.Conv2d(channels, width, kernel, stride, padding, dilation))
        layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=draw(st.booleans())))
        pool = draw(st.sampled_from([None, nn.MaxPool2d, nn.AvgPool2d]))
        if pool:
            layers.append(pool(2, ceil_mode=draw(st.booleans())))
        channels = width
    layers.append(nn.Conv2d(channels, 2, 1))
    return nn.Sequential(*layers), draw(st.integers(30, 60)), draw(st.integers(30, 60))


@settings(max_examples=40)
@given(local_networks(), st.randoms(use_true_random=False))
def test_cutting_to_the_receptive_field_changes_nothing(network, random):
    torch.manual_seed(0)
    model, height, width = network
    model = model.double().eval()
    images = torch.randn(3, 3, height, width, dtype=torch.float64)
    layer = str(len(model) - 1)
    assume(_runs(model, images))
    _, rows, columns = spatial_layers(model, images)[layer]
    assume(rows)
    neurons = [(1, random.randrange(rows), random.randrange(columns)) for _ in images]
    found = guided_backprop(model, images, layer, neurons)
    torch.testing.assert_close(found, reference(model, images, layer, neurons))


def _runs(model, images):
    try:
        model(images)
    except RuntimeError:  # too small for the kernel
        return False
    return True


class Gated(nn.Module):
    """Every neuron sees the whole image, through a global average."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 4, 3)
        self.relu = nn.ReLU()

    def forward(self, images):
        x = self.relu(self.first(images))
        return self.last(x * x.mean((2, 3), keepdim=True).sigmoid())


def test_global_context_is_kept():
    model = Gated().double()
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    neurons = [(0, 3, 3), (1, 30, 20)]
    found = guided_backprop(model, images, "last", neurons)
    assert error(found, reference(model, images, "last", neurons)) < 1e-12
    assert (found != 0).any(1).float().mean() > 0.5


def test_receptive_field_arithmetic():
    # Two 3x3 convolutions with padding 1 around a 2x2 pooling see 8 pixels: 1 + 2 + 1 + 2 * 2.
    axis = Axis().through(3, 1, 1, 1).through(2, 2, 0, 1).through(3, 1, 1, 1)
    assert (axis.jump, axis.low, axis.high) == (2, -3, 4)
    # "same" puts the odd pixel of an even kernel's padding behind.
    assert Axis().through(4, 1, "same", 1) == Axis(1, -1, 2)


def test_one_image_serves_all_neurons_and_one_neuron_all_images():
    model, images = five_blocks(), torch.randn(3, 3, 64, 64)
    many = guided_backprop(model, images[:1], "blocks.3", [(0, 1, 1), (2, 0, 3)])
    one = guided_backprop(model, images[:1], "blocks.3", [(2, 0, 3)])
    torch.testing.assert_close(many[1:], one)
    assert guided_backprop(model, images, "blocks.3", [(0, 1, 1)]).shape == (3, 3, 64, 64)


def test_channel_alone_means_its_strongest_position():
    model, images = five_blocks(), torch.randn(2, 3, 64, 64)
    maps = feature_maps(model, images, "blocks.1")
    places = [(3, *divmod(maps[i, 3].argmax().item(), maps.shape[3])) for i in range(2)]
    found = guided_backprop(model, images, "blocks.1", [3, 3])
    torch.testing.assert_close(found, guided_backprop(model, images, "blocks.1", places))


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
    )


@pytest.mark.parametrize("neurons", [[(0, 0, 0)], [(0, 0, 99)], []])
def test_model_is_left_as_it_was_also_after_an_error(neurons):
    model = five_blocks().train()
    model.blocks[0].eval()
    model.blocks[1].conv.weight.requires_grad_(False)
    before = snapshot(model)
    try:
        guided_backprop(model, torch.randn(1, 3, 64, 64), "blocks.4", neurons)
    except ValueError:
        assert neurons != [(0, 0, 0)]
    after = snapshot(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(context):
    model, images = five_blocks(), torch.randn(1, 3, 64, 64)
    expected = guided_backprop(model, images, "blocks.1", [0])
    with context():
        found = guided_backprop(model, images.clone(), "blocks.1", [0])
    torch.testing.assert_close(found, expected)


def test_maps_joined_along_rows_are_seen_whole():
    """What lies below in a joined map is of a place above in the image."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, images):
            maps = self.first(images)
            return self.last(torch.cat([maps, maps], dim=2))

    images = torch.randn(1, 3, 9, 9, requires_grad=True)
    model = Joined()
    (expected,) = torch.autograd.grad(model(images)[0, 1, 13, 2], images)
    assert torch.allclose(guided_backprop(model, images, "last", [(1, 13, 2)]), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer": "blocks.4.convs"}, "did you mean 'blocks.4.conv'"),
        ({"layer": "conv5"}, "layers with feature maps: blocks.0.conv, blocks.0.norm"),
        ({"layer": "head.dense1"}, "gives no feature maps .* choose one of blocks.0.conv"),
        ({"neurons": [(24, 0, 0)]}, "channel, 0 to 23"),
        ({"neurons": [(0, 0, 2)]}, "columns 0 to 1"),
        ({"neurons": [-1]}, "no neuron -1"),
        ({"neurons": [(0, 0)]}, "no neuron"),
        ({"neurons": []}, "do not pair"),
        ({"neurons": [0] * 3}, "2 images do not pair with 3 neurons"),
        ({"images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)}, "augment.normalize"),
        ({"images": torch.zeros(3, 64, 64)}, r"\(N, 3, H, W\)"),
        ({"model": five_blocks().half()}, r"half precision \(torch.float16\).*model.float"),
        ({"model": five_blocks().bfloat16()}, "half precision"),
        (
            {"model": nn.Sequential(nn.Identity(), nn.BatchNorm2d(3, track_running_stats=False))},
            "layer '1' normalises by the statistics of each batch.*track_running_stats=True",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence(change, sentence):
    arguments = {"images": torch.randn(2, 3, 64, 64), "layer": "blocks.4", "neurons": [0]}
    arguments = {"model": five_blocks(), **arguments, **change}
    with pytest.raises(ValueError, match=sentence) as raised:
        guided_backprop(**arguments)
    assert "\n" not in str(raised.value)


def test_rule_is_described():
    images = torch.randn(1, 3, 64, 64)
    assert "plain gradient" in describe_rule(five_blocks(), images, "blocks.0.conv")
    relu = describe_rule(five_blocks(), images, "blocks.4")
    assert relu.startswith("Guided through 5 ReLU:") and "derivative" not in relu
    gelu = describe_rule(five_blocks(activation="gelu"), images, "blocks.1")
    assert "2 GELU" in gelu and "derivative of GELU (not a rectifier)" in gelu
    assert "ReLU6" in describe_rule(torchvision_model("mobilenet_v2"), images, "features.3")

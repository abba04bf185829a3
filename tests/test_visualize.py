"""What is looked at, how pictures are measured, and that figures show what they are given."""

import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from scipy.stats import ttest_1samp
from torch import nn

from helpers import models
from helpers.runs.config import Config
from helpers.visualize import conclusions, saliency
from helpers.visualize import figures as visualize
from helpers.visualize.guided import describe_rule, feature_maps, guided_backprop, receptive_field
from helpers.visualize.neurons import Excitations, excitations, first_filters, stages
from helpers.visualize.receptive_field import window
from helpers.visualize.saliency import METHODS, explain, gini, guided_logit, randomised, similarity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def model():
    config = Config(image_size=64, filters=[16, 12, 8, 8, 12], dense=16)
    return models.build(config, 5).eval()


def excited(values):
    values = torch.tensor(values, dtype=torch.float32)
    return Excitations("layer", values, values.long() * 0, values.long() * 0)


def test_excitations_are_the_maxima_of_the_feature_maps(model):
    images = torch.randn(7, 3, 64, 64)
    found = excitations(model, images, "blocks.2", batch_size=3)
    maps = feature_maps(model, images, "blocks.2")
    torch.testing.assert_close(found.values, maps.amax((2, 3)))
    for image, channel in [(0, 0), (6, 7)]:
        row, column = found.rows[image, channel], found.columns[image, channel]
        assert maps[image, channel, row, column] == maps[image, channel].max()
    (channel, row, column), image = found.neuron(3)
    assert maps[image, channel, row, column] == maps[:, 3].max()


def test_dead_channels_are_reported_and_never_chosen():
    found = excited([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, -1.0, 0.5]])
    assert found.dead == [0, 2]
    assert found.choose(10) == [1, 3]


def test_no_live_channel_is_said_plainly():
    with pytest.raises(ValueError, match="no image brings any channel of layer 'layer' above 0"):
        excited([[0.0, 0.0]]).choose()


def test_choice_is_diverse_and_seeded():
    # Two families of channels: 0 to 4 respond to image 0, 5 to 9 to image 1.
    values = np.zeros((4, 10))
    values[0, :5], values[1, 5:] = np.arange(1, 6), np.arange(1, 6)
    found = excited(values)
    for seed in range(5):
        first, second = found.choose(2, seed)
        assert first < 5 <= second
        assert found.choose(2, seed) == [first, second]
    assert len({tuple(found.choose(2, seed)) for seed in range(9)}) > 1


def test_choice_prefers_channels_with_another_favourite_image():
    # Channels 0 and 1 like image 0 best; 2 likes image 1 best and is much like 0 otherwise.
    found = excited([[5.0, 5.0, 4.0], [4.0, 0.0, 5.0], [0.0, 1.0, 0.0], [0.0, 4.0, 0.0]])
    assert all(2 in found.choose(2, seed) for seed in range(9))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_stages_are_the_ends_of_the_five_blocks(activation):
    config = Config(image_size=64, filters=4, activation=activation)
    found = stages(models.build(config, 3), torch.randn(1, 3, 64, 64))
    assert found == [f"blocks.{i}" for i in range(5)]


def test_stages_of_a_residual_network():
    found = stages(models.build(Config(model="resnet18"), 3), torch.randn(1, 3, 64, 64))
    assert found == ["relu", "layer1", "layer2", "layer3", "layer4"]


def test_stages_of_a_network_with_channels_last_inside():
    model, images = models.build(Config(model="convnext_tiny"), 3), torch.randn(1, 3, 96, 96)
    shapes = [tuple(feature_maps(model, images, name).shape[1:]) for name in stages(model, images)]
    assert shapes == [(96, 24, 24), (192, 12, 12), (384, 6, 6), (768, 3, 3)]


def test_first_filters():
    name, weights = first_filters(models.build(Config(model="resnet18"), 3))
    assert name == "conv1" and weights.shape == (64, 3, 7, 7)
    with pytest.raises(ValueError, match="no convolution with three input channels"):
        first_filters(nn.Linear(3, 3))


def test_gini():
    one_pixel = torch.zeros(10, 10)
    one_pixel[3, 4] = -2.0
    assert gini(torch.ones(5, 5)) == pytest.approx(0)
    assert gini(one_pixel) == pytest.approx(1 - 1 / 100)
    assert gini(torch.tensor([[1.0, 3.0]])) == pytest.approx(
        0.25
    )  # half the mean difference / mean
    assert gini(torch.zeros(2, 2)).isnan()
    maps = torch.rand(3, 6, 7)
    torch.testing.assert_close(gini(maps * 5), gini(maps))


def test_similarity_is_a_rank_correlation():
    maps = torch.rand(2, 8, 8)
    assert similarity(maps, maps**3) == pytest.approx([1, 1])
    assert similarity(maps, -maps) == pytest.approx([-1, -1])
    assert np.isnan(similarity(maps, torch.zeros(2, 8, 8))).all()


def test_edges_of_a_step():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1
    found = saliency.edges(image)[0]
    assert (found[:, [3, 4]] == 4).all() and found.sum() == 4 * 2 * 8


class Linear(nn.Module):
    """A network whose every attribution is known: logit c is weight c times the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = torch.eye(3)[:, :, None, None]
        self.weight = nn.Parameter(torch.randn(2, 3, 16, 16))

    def forward(self, images):
        return torch.einsum("nchw,kchw->nk", self.conv(images), self.weight)


def test_methods_on_a_linear_network():
    model, images = Linear(), torch.randn(2, 3, 16, 16)
    targets = torch.tensor([1, 0])
    weights = model.weight.detach()[targets]
    found = explain(model, images, targets, "conv")
    assert tuple(found) == METHODS
    torch.testing.assert_close(found["gradient"], weights.abs().sum(1))
    torch.testing.assert_close(found["guided backprop"], weights.abs().sum(1))
    torch.testing.assert_close(found["integrated gradients"], (weights * images).abs().sum(1))
    cam = (weights.mean((2, 3), keepdim=True) * images).sum(1).relu()
    torch.testing.assert_close(found["Grad-CAM"], cam)
    # Occlusion: each 2x2 window with stride 1 takes its contribution away; here the top left one.
    contribution = (weights * images).sum(1)
    torch.testing.assert_close(
        found["occlusion"][:, 0, 0], contribution[:, :2, :2].sum((1, 2)).relu() * 3
    )


def test_guided_logit_is_captums(model):
    from captum.attr import GuidedBackprop

    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = GuidedBackprop(model).attribute(images.clone(), targets)
    torch.testing.assert_close(guided_logit(model, images, targets), expected)


def test_missing_captum_is_said_plainly(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(ImportError, match="pip install captum"):
        explain(model, torch.randn(1, 3, 64, 64), torch.tensor([0]), "blocks.4")


def test_cascade_randomises_from_the_output_down(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    names, changed = [], []
    for name, copied in randomised(model, seed=0, steps=4):
        names.append(name)
        state = copied.state_dict()
        changed.append(
            {
                n
                for n in before
                if n.endswith("conv.weight") and not torch.equal(state[n], before[n])
            }
        )
    assert names[-1] == "blocks.0.conv" and len(names) == 4
    assert all(name.startswith(("head", "blocks")) and "norm" not in name for name in names)
    assert all(a <= b for a, b in zip(changed, changed[1:], strict=False))
    assert "blocks.0.conv.weight" not in changed[-2] and len(changed[-1]) == 5
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_sanity_check_starts_with_the_trained_network(model):
    images, targets = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    steps = saliency.sanity_check(model, images, targets, "blocks.4")
    assert next(iter(steps)) == "trained"
    means = saliency.mean_similarities(steps, "gradient")
    values = saliency.similarities(steps, "gradient")
    assert values.shape == (len(steps), 2) and means == pytest.approx(list(values.mean(1)))
    assert means[0] == pytest.approx(1) and max(means[1:]) < 0.999


@pytest.mark.parametrize(
    ("count", "shape"), [(64, (8, 8)), (32, (4, 8)), (48, (6, 8)), (96, (8, 12)), (1, (1, 1)),
                         (512, (16, 32)), (37, (6, 7)), (7, (3, 3)), (14, (4, 4))]
)  # fmt: skip
def test_grid_is_the_nearest_rectangle(count, shape):
    assert visualize.grid_shape(count) == shape


def test_mosaic_places_maps_in_reading_order():
    maps = np.arange(6)[:, None, None] * np.ones((6, 3, 3))
    found = visualize.mosaic(maps)
    assert found.shape == (2 * 4 - 1, 3 * 4 - 1)
    assert found[0, 0] == 0 and found[0, 8] == 2 and found[6, 10] == 5
    assert np.isnan(found[3]).all()


def texts(figure):
    figure.draw_without_rendering()
    found = [figure._suptitle.get_text() if figure._suptitle else ""]
    found += [figure._supxlabel.get_text() if figure._supxlabel else ""]
    for axes in figure.axes:
        found += [axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
        found += [axes.get_title(loc) for loc in ("left", "center", "right")]
    return " | ".join(found)


def test_figures(model):
    pixels = torch.randint(0, 256, (10, 3, 64, 64), dtype=torch.uint8)
    images = pixels / 255 - 0.5
    name, weights = first_filters(model)
    last = stages(model, images)[-1]
    found = excitations(model, images, last)
    early = excitations(model, images, "blocks.1")
    channels = found.choose(10)
    neurons, shown = zip(*map(found.neuron, channels), strict=True)
    shown = list(shown)
    gradients = guided_backprop(model, images[shown], last, list(neurons))
    caption = describe_rule(model, images, last)
    maps = explain(model, images[:2], torch.tensor([0, 1]), last)
    steps = saliency.sanity_check(model, images[:2], torch.tensor([0, 1]), last)
    first_maps = feature_maps(model, images[:1], name)[0]
    figures = {
        "16 filters": visualize.draw_filters(weights, name),
        "before training": visualize.draw_filters(weights, name, weights / 2),
        "16 outputs": visualize.draw_feature_maps(pixels[0], first_maps, name),
        "blocks.4: 12 maps, 2 × 2": visualize.draw_strongest_maps(
            pixels[0], {s: feature_maps(model, images[:1], s)[0] for s in stages(model, images)}
        ),
        f"channel {channels[0]}": visualize.draw_exciting_images(pixels, found, channels),
        "10 × 10 pixels": visualize.draw_exciting_images(
            pixels, early, early.choose(3), receptive_field(model, images, "blocks.1")
        ),
        "5 ReLU": visualize.draw_guided(
            pixels[shown], gradients, [f"{c}" for c in channels], caption
        ),
        f"Gini {gini(gradients.abs().sum(1))[0]:.2f}": visualize.draw_guided(
            pixels[shown], gradients, [f"{c}" for c in channels], caption, rows=10
        ),
        "integrated gradients": visualize.draw_comparison(pixels[:2], maps, ["a", "b"]),
        "rank correlation": visualize.draw_sanity_check(
            pixels[0], steps, saliency.edges(images[:2])
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, a layout that does not fit
        for expected, figure in figures.items():
            assert isinstance(figure, Figure)
            assert expected in texts(figure)


def test_maps_of_large_images_are_drawn():
    """64 maps of 512 x 512, as of an image of 512 pixels, are more than older quantiles take."""
    image, maps = torch.zeros(3, 512, 512, dtype=torch.uint8), torch.zeros(64, 512, 512)
    maps[:2] = 3.0
    shown = visualize.draw_feature_maps(image, maps, "conv").axes[1].images[0]
    assert shown.get_clim() == (0, 3)


def test_two_lines_of_a_name_are_two_lines_below_its_image():
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    figure = visualize.draw_comparison(
        pixels, {"gradient": torch.rand(1, 8, 8)}, ["cat\nseen as \x1bdog"]
    )
    label = figure.axes[0].get_xlabel()
    assert label.startswith("cat\nseen as ") and label.endswith("dog") and "\x1b" not in label


def test_ten_by_one_has_ten_rows():
    pixels = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    figure = visualize.draw_guided(
        pixels, torch.randn(10, 3, 8, 8), list("abcdefghij"), "", rows=10
    )
    assert figure.axes[0].get_gridspec().get_geometry() == (10, 2)
    figure = visualize.draw_guided(pixels, torch.randn(10, 3, 8, 8), list("abcdefghij"), "", rows=2)
    assert figure.axes[0].get_gridspec().get_geometry() == (2, 10)


def test_a_frame_shows_what_a_neuron_sees_and_gradients_end_there(model):
    """Two blocks: 3 + 1 pixels, then 2 * 2 for the convolution and 2 for the pooling: 10 x 10."""
    images = torch.randn(1, 3, 64, 64)
    field = receptive_field(model, images, "blocks.1")
    seen = window(field, (64, 64), 5, 0)
    assert seen == (slice(5 * 4 - 3, 5 * 4 - 3 + 10), slice(0, 7))  # cut off at the border
    gradient = guided_backprop(model, images, "blocks.1", [(2, 5, 0)])[0].abs().sum(0)
    outside = gradient.clone()
    outside[seen] = 0
    assert outside.max() == 0
    rows, _ = receptive_field(model, images, "blocks.4")
    assert rows.high - rows.low + 1 == 1 + 3 * (1 + 2 + 4 + 8 + 16)
    assert window(None, (64, 32), 1, 1) == (slice(0, 64), slice(0, 32))


def test_concentration_counts_no_pixel_that_the_neuron_cannot_see():
    gradients = torch.zeros(2, 3, 8, 8)
    gradients[0, :, 2:4, 2:4] = 1  # as even as can be, where it can be
    gradients[1, 0, 3, 3] = 1
    windows = [(slice(2, 4), slice(2, 4))] * 2
    assert conclusions.concentrations(gradients, windows) == pytest.approx([0, 0.75])


def test_concentration_is_compared_neuron_by_neuron():
    learned = np.array([0.8, 0.7, 0.9, 0.6])
    random = learned - np.array([[0.1, 0.2, 0.1, 0.2], [0.1, 0.2, 0.3, 0.0]])
    mean, low, high = conclusions.compare_concentrations(learned, random)
    differences = [0.1, 0.2, 0.2, 0.1]
    assert mean == pytest.approx(np.mean(differences)) and low < mean < high
    neurons = np.var(differences, ddof=1) / 4
    networks = np.var([0.15, 0.15], ddof=1) * 1.5  # both differ by .15 on average
    assert networks == pytest.approx(0)
    assert high - mean == pytest.approx(stats.t.ppf(0.975, 3) * neurons**0.5)
    apart = learned - np.array([[0.1, 0.2, 0.2, 0.1]]) - np.array([[0.05], [-0.05]])
    wide = conclusions.compare_concentrations(learned, apart)
    assert wide[0] == pytest.approx(mean) and wide[1] < 0 < low  # two networks, and far apart
    assert np.isnan(conclusions.compare_concentrations(learned, random[:1])[1])
    random[:, 0] = np.nan  # an empty picture
    assert conclusions.compare_concentrations(learned, random)[0] == pytest.approx(0.5 / 3)


def test_energy_of_filters():
    even = torch.tensor([1.0, -2.0, 0.5])[:, None, None].expand(3, 3, 3)
    edge = torch.tensor([-1.0, 0.0, 1.0]).expand(3, 3, 3)
    coloured = edge * torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    shares = conclusions.filter_energy(torch.stack([even, edge, coloured, even + edge]))
    assert shares[:3] == pytest.approx(np.eye(3), abs=1e-12)
    energies = even.pow(2).sum().item(), edge.pow(2).sum().item()
    assert shares[3] == pytest.approx([e / sum(energies) for e in energies] + [0])
    random = conclusions.filter_energy(torch.randn(4000, 3, 5, 5)).mean(0)
    assert random == pytest.approx(conclusions.energy_of_chance(5), abs=0.01)


def test_change_of_energy_is_counted_filter_by_filter():
    """Two filters, one of grey that turns to colour by half, one that stays as it was."""
    edge = torch.tensor([-1.0, 0.0, 1.0]).expand(3, 3, 3)
    coloured = edge * torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    half = edge / edge.norm() + coloured / coloured.norm()
    before, after = torch.stack([edge, edge]), torch.stack([edge, half])
    assert conclusions.mean_energy(after) == pytest.approx(
        {"one even colour": 0, "edges of grey": 0.75, "edges of colour": 0.25}, abs=1e-6
    )
    changes = conclusions.compare_energy(after, before)
    expected = ttest_1samp([0, 0.5], 0).confidence_interval(0.95)
    ends = 0.25, expected.low, expected.high
    assert changes["edges of colour"] == pytest.approx(ends, abs=1e-6)
    assert changes["edges of grey"][0] == pytest.approx(-0.25)
    against_chance = conclusions.compare_energy(after, None)
    assert against_chance["edges of grey"][0] == pytest.approx(0.75 - 8 / 27)
    assert against_chance["edges of colour"][0] == pytest.approx(0.25 - 16 / 27)


def test_similarity_to_edges_leaves_flat_maps_out():
    edges = torch.arange(12.0).reshape(2, 2, 3)
    flat = edges.clone()
    flat[0] = 1.0
    trained = {"same": edges * 3, "opposite": -edges, "flat": flat}
    found = saliency.similarity_to_edges({"trained": trained, "random": {}}, edges)
    assert found == pytest.approx({"same": 1, "opposite": -1, "flat": 1})


def test_selectivity_names_every_class_that_ties():
    found = excited([[3.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.5, 3.0]])
    names = ["a", "a", "b", "b", "c"]
    rows = conclusions.selectivity(found, [0, 1], names, most=3)
    assert rows[0] == (0, 2 / 3, ["a"]) and rows[1] == (1, 2 / 3, ["b"])
    (tied,) = conclusions.selectivity(found, [0], names, most=4)
    assert tied == (0, 0.5, ["a"])
    (tied,) = conclusions.selectivity(found, [1], names, most=2)
    assert tied == (1, 0.5, ["b", "c"])


def test_selectivity_of_chance_is_that_of_two_images():
    names = ["a", "b"] * 50  # two images are of one class in 49 of 99 cases
    expected = (49 / 99) * 1 + (50 / 99) * 0.5
    assert conclusions.selectivity_of_chance(names, 2) == pytest.approx(expected, abs=0.03)

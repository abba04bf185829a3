"""Augmentation is drawn for each image, reproducible, and does what its strength says."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from helpers.data.augment import augment, normalize
from helpers.models.weights import NORMALIZATIONS
from helpers.runs.config import AUGMENTATIONS


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    """One smooth picture, sixteen times, channels last in memory."""
    ramp = torch.linspace(0, 255, 32)
    picture = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.flip(0) * ramp
                           / 255 + 0 * ramp[:, None]])  # fmt: skip
    return picture.round().to(torch.uint8).expand(16, -1, -1, -1).contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_image_is_changed_by_a_draw_of_its_own(images, name):
    strength = {"horizontal_flip": 0.5, "random_erasing": 0.5}.get(name, AUGMENTATIONS[name][0])
    before = images.clone()
    seen = augment(images, [(name, strength)], generator())
    assert torch.equal(images, before), "the input is left as it was"
    assert seen.dtype == torch.uint8 and seen.shape == images.shape
    assert len({image.numpy().tobytes() for image in seen}) > 1
    assert torch.equal(seen, augment(images, [(name, strength)], generator()))
    assert not torch.equal(seen, augment(images, [(name, strength)], generator(1)))


def test_no_augmentation_changes_nothing(images):
    assert torch.equal(augment(images, [], generator()), images)


def test_flip_mirrors_the_chosen_share(images):
    assert torch.equal(augment(images, [("horizontal_flip", 1.0)], generator()), images.flip(3))
    assert torch.equal(augment(images, [("horizontal_flip", 0.0)], generator()), images)
    many = images[:1].expand(4000, -1, -1, -1)
    flipped = augment(many, [("horizontal_flip", 0.3)], generator())
    share = (flipped != many).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("padding", [1, 5, 31, 64])
def test_random_crop_is_a_window_of_numpys_reflection(padding):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
    seen = augment(torch.from_numpy(images), [("random_crop", padding)], generator())
    most = min(padding, 31)
    offsets = torch.randint(-most, most + 1, (6, 2), generator=generator()).tolist()
    for image, shown, (down, right) in zip(images, seen.numpy(), offsets, strict=True):
        wide = np.pad(image, [(0, 0), (most, most), (most, most)], mode="reflect")
        top, left = most + down, most + right
        assert np.array_equal(shown, wide[:, top : top + 32, left : left + 32])


def test_shift_moves_by_at_most_its_share(images):
    """A single bright column moves by at most 10 % of the side."""
    column = torch.zeros(64, 3, 40, 40, dtype=torch.uint8)
    column[..., 20] = 255
    seen = augment(column, [("shift", 0.1)], generator())
    places = seen[:, 0, 20].float().argmax(1)
    assert places.min() >= 16 and places.max() <= 24
    assert len(set(places.tolist())) > 4


def test_rotation_by_a_known_angle_is_torchvisions(images, monkeypatch):
    monkeypatch.setattr(
        "helpers.data.augment._uniform", lambda n, low, high, g: torch.full((n,), high)
    )
    seen = augment(images, [("rotation", 30)], generator()).float()
    expected = v2.functional.rotate(images, 30, v2.InterpolationMode.BILINEAR).float()
    inside = (slice(None), slice(None), slice(12, 20), slice(12, 20))
    assert (seen[inside] - expected[inside]).abs().mean() < 2


def test_color_jitter_is_torchvisions(images, monkeypatch):
    monkeypatch.setattr(
        "helpers.data.augment._uniform", lambda n, low, high, g: torch.linspace(low, high, n)
    )
    one = images[:1]
    seen = augment(one, [("color_jitter", 0.4)], generator())
    brightness, contrast, saturation = 0.6, 1.0, 1.4
    expected = v2.functional.adjust_brightness(one, brightness)
    expected = v2.functional.adjust_contrast(expected, contrast)
    expected = v2.functional.adjust_saturation(expected, saturation)
    assert (seen.float() - expected.float()).abs().max() <= 3


def test_resized_crop_keeps_at_least_its_share(images):
    """On a ramp from 0 to 255 the values that are left say how wide the box was."""
    many = images[:1].expand(200, -1, -1, -1)
    seen = augment(many, [("random_resized_crop", 0.5)], generator()).float()
    widths = (seen[:, 0].amax((1, 2)) - seen[:, 0].amin((1, 2))) / 255
    heights = (seen[:, 1].amax((1, 2)) - seen[:, 1].amin((1, 2))) / 255
    areas = widths * heights
    assert areas.min() > 0.38 and areas.max() > 0.85
    whole = augment(many, [("random_resized_crop", 1.0)], generator())
    assert torch.equal(whole, many)  # no box as large as the image is oblong


def test_erasing_greys_a_rectangle_in_its_share_of_images(images):
    many = images[:1].expand(1000, -1, -1, -1)
    seen = augment(many, [("random_erasing", 0.25)], generator())
    changed = (seen != many).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert set(seen[seen != many].tolist()) == {128}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalize_is_torchvisions(images, name):
    mean, std = NORMALIZATIONS[name]
    expected = v2.functional.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(normalize(images, mean, std), expected, atol=1e-5, rtol=1e-5)

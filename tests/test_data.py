"""Splits are disjoint, stratified, reproducible; files are decoded once; bad ones left out."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data
from helpers.data import images as decoding
from helpers.data.batches import batches
from helpers.data.images import ImageSet
from helpers.runs.config import Config


def write_image(path, color, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make 3 classes with 20, 10 and 10 training images and 4 test images each."""
    monkeypatch.setattr(decoding, "DECODED", tmp_path / "decoded")
    for label, (name, count) in enumerate([("ant", 20), ("bee", 10), ("cat", 10)]):
        for number in range(count):
            color = (80 * label, 6 * number, 100)
            write_image(tmp_path / f"set/train/{name}/{number:02}.png", color)
        for number in range(4):
            write_image(tmp_path / f"set/test/{name}/{number}.png", (80 * label, 200, number))
    return tmp_path / "set"


def load(folder, **changes):
    return data.load(Config(dataset=f"folder:{folder}", image_size=32, **changes))


def test_splits_are_disjoint_stratified_and_complete(folder):
    splits = load(folder, val_fraction=0.2)
    train, val, test = (set(s.paths) for s in (splits.train, splits.val, splits.test))
    assert not train & val and not train & test and not val & test
    assert len(train | val) == 40 and len(test) == 12
    assert np.bincount(splits.val.labels).tolist() == [4, 2, 2]
    assert np.bincount(splits.train.labels).tolist() == [16, 8, 8]


def test_the_split_depends_on_the_seed_alone(folder):
    first, again, other = (load(folder, seed=seed).val.paths for seed in (1, 1, 2))
    assert first == again != other
    assert load(folder, seed=1, lr=0.5, epochs=2).val.paths == first


def test_without_validation_all_images_train(folder):
    splits = load(folder, val_fraction=0.0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 0, 12)


def test_pixels_labels_and_paths_belong_together(folder):
    splits = load(folder)
    for images in (splits.train, splits.val, splits.test):
        pixels = images.take(np.arange(len(images)))
        for image, label, path in zip(pixels, images.labels, images.paths, strict=True):
            name = path.split("/")[-2]
            assert images.classes[label] == name
            with Image.open(images.folder / path) as file:
                assert image[:, 0, 0].tolist() == list(file.getpixel((0, 0)))


def test_a_second_load_reads_no_image(folder, monkeypatch):
    load(folder)
    monkeypatch.setattr(decoding, "decode", None)  # a call would raise
    assert len(load(folder).train) == 32


def test_a_changed_file_is_decoded_again(folder):
    load(folder)
    write_image(folder / "test/ant/0.png", (255, 255, 255), (50, 50))
    test = load(folder).test
    assert test.take([test.paths.index("test/ant/0.png")]).min() == 255


def test_bad_files_are_left_out_and_named(folder, capsys):
    (folder / "train/ant/00.png").write_bytes(b"not an image")
    (folder / "train/bee/00.png").write_bytes(b"")
    splits = load(folder)
    assert len(splits.train) + len(splits.val) == 38
    assert any("train/ant/00.png" in reason for reason in splits.skipped)
    assert any("train/bee/00.png" in reason for reason in splits.skipped)
    assert "left out 2 files" in capsys.readouterr().out
    labels = {}
    for images in (splits.train, splits.val):
        labels |= zip(images.paths, images.labels, strict=True)
    assert labels["train/ant/01.png"] == 0 and labels["train/bee/01.png"] == 1


def test_a_truncated_jpeg_is_left_out(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "train/ant/cut.jpg")
    whole = (folder / "train/ant/cut.jpg").read_bytes()
    (folder / "train/ant/cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert any("cut.jpg" in reason for reason in load(folder).skipped)


def gradient(mode="RGB", size=(60, 40)):
    """A smooth picture: red grows to the right, green grows downwards."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    return Image.fromarray(np.stack([x, y, 0 * x + 60], 2).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("RGB", "jpg"), ("RGB", "png"), ("RGB", "webp"), ("RGB", "bmp"), ("CMYK", "jpg"),
        ("RGBA", "png"), ("P", "png"), ("P", "gif"), ("L", "jpg"), ("LA", "png"), ("1", "png"),
    ],
)  # fmt: skip
def test_every_kind_of_file_decodes_as_pillow_reads_it(tmp_path, mode, suffix):
    path = tmp_path / f"grün {mode}.{suffix}"
    gradient(mode).save(path)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    seen = data.decode(path, 32).astype(int)
    assert seen.shape == (32, 32, 3)
    assert np.abs(seen - expected).mean() < 3


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    seen = data.decode(tmp_path / "deep.png", 64)
    assert np.abs(seen[..., 0].astype(int) - ramp // 257).max() <= 2


def test_exif_orientation_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    gradient(size=(64, 64)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    seen = data.decode(tmp_path / "turned.jpg", 64).astype(int)
    expected = np.asarray(gradient(size=(64, 64)).transpose(Image.Transpose.ROTATE_270), int)
    assert np.abs(seen - expected).mean() < 3


def test_squash_crop_and_pad(tmp_path):
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = 255  # the middle square is white
    Image.fromarray(picture).save(tmp_path / "wide.png")
    white = {
        mode: (data.decode(tmp_path / "wide.png", 30, mode) > 127).mean(axis=(0, 1))[0]
        for mode in ("squash", "crop", "pad")
    }
    assert white["crop"] == 1
    assert white["squash"] == pytest.approx(1 / 3, abs=0.05)
    assert white["pad"] == pytest.approx(1 / 9, abs=0.03)


@pytest.mark.parametrize("fits", [True, False], ids=["in memory", "ahead, in a thread"])
def test_batches_come_in_order_and_once(folder, monkeypatch, fits):
    monkeypatch.setattr(ImageSet, "fits_in_memory", fits)
    images = load(folder).train
    chunks = np.array_split(np.random.default_rng(0).permutation(len(images)), 5)
    seen = list(batches(images, chunks, torch.device("cpu"), lambda pixels, step: pixels))
    for chunk, (pixels, labels) in zip(chunks, seen, strict=True):
        assert torch.equal(pixels, images.take(chunk))
        assert labels.tolist() == images.labels[chunk].tolist()


@pytest.mark.parametrize("fits", [True, False])
def test_batches_are_prepared_in_their_own_number_format(folder, monkeypatch, fits):
    """A blur, say, is a convolution, which autocast would compute in bfloat16."""
    monkeypatch.setattr(ImageSet, "fits_in_memory", fits)
    kernel = torch.ones(3, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for pixels, _ in batches(
            load(folder).train,
            [np.arange(2)],
            torch.device("cpu"),
            lambda pixels, _: torch.conv2d(pixels.float(), kernel),
        ):
            assert pixels.dtype == torch.float32
            assert torch.conv2d(pixels, kernel).dtype == torch.bfloat16


def test_too_few_images_for_validation_is_one_sentence(folder):
    with pytest.raises(ValueError, match="val_fraction 0.02 of 40 training images"):
        load(folder, val_fraction=0.02)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("uint16", [0, 257, 65535], [0, 1, 255]),
        ("uint16", [32896] * 3, [128] * 3),  # one even gray is not white
        ("int32", [0, 128, 255], [0, 128, 255]),
        ("int32", [0, 32896, 65535], [0, 128, 255]),
        ("int32", [0, 1_000_000, 2_000_000], [0, 128, 255]),
        ("float32", [0, 0.2, 1], [0, 51, 255]),
        ("float32", [0, 51, 200], [0, 51, 200]),
        ("float32", [-1, 0, 1], [0, 128, 255]),  # negative values do not wrap
        ("float32", [0, float("nan"), 1], [0, 0, 255]),
    ],
)
def test_wide_pixels_become_eight_bits_by_their_type(tmp_path, kind, values, expected):
    path = tmp_path / ("a.png" if kind == "uint16" else "a.tif")
    Image.fromarray(np.repeat(np.array([values], kind), 8, 1).repeat(24, 0)).save(path)
    gray = decoding.decode(path, 24)[12, [4, 12, 20]]
    assert np.abs(gray.astype(int) - np.array(expected)[:, None]).max() <= 1

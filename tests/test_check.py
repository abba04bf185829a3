import warnings

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from nbconvert.filters import markdown2html
from PIL import Image
from scipy.ndimage import gaussian_filter

from helpers import data
from helpers.data.quality import FINDINGS, Report, check


def picture(seed, size=(64, 48)):
    """Return a smooth random colour picture, unlike that of any other seed."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    return Image.fromarray((128 + 120 * smooth / np.abs(smooth).max()).astype(np.uint8))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Write a folder with one file of each oddity and return it with its report."""
    folder = tmp_path_factory.mktemp("odd")
    seeds = iter(range(1000, 2000))
    for split, count in (("train", 4), ("val", 1), ("test", 2)):
        for name in ("ant", "bee", "cow"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture(next(seeds)).save(folder / split / name / f"{i}.png")
    ant, bee, cow = (folder / "train" / name for name in ("ant", "bee", "cow"))
    picture(1).convert("L").save(ant / "gray.jpg")
    Image.merge("RGB", [picture(2).convert("L")] * 3).save(ant / "gray_in_colour.png")
    picture(3).convert("CMYK").save(ant / "cmyk.jpg")
    picture(4).convert("P").save(ant / "palette.png")
    rgba = picture(5).convert("RGBA")
    rgba.putalpha(128)
    rgba.save(ant / "alpha.png")
    deep = np.asarray(picture(6).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(ant / "sixteen.png")
    frames = [picture(7), picture(8)]
    frames[0].save(ant / "film.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(9).save(bee / "rotated.jpg", exif=exif)
    picture(10, (20, 90)).save(bee / "small.png")
    Image.new("RGB", (6000, 5000), "navy").save(bee / "large.png")
    (bee / "nested" / "deeper").mkdir(parents=True)
    picture(11).save(bee / "nested" / "deeper" / "größe 鳥.jpg")
    whole = (bee / "rotated.jpg").read_bytes()
    (cow / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (cow / "half.png").write_bytes((cow / "0.png").read_bytes()[:900])
    (cow / "empty.jpg").write_bytes(b"")
    (cow / "text.jpg").write_text("not a picture at all" * 50)
    (cow / "broken.jpg").write_bytes(whole[:2] + bytes(500))
    (cow / "notes.txt").write_text("hello")
    (cow / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "train" / "dog").mkdir()
    return folder, check(f"folder:{folder}")


def names(entries):
    return sorted(entry.partition(": ")[0].rpartition("/")[2] for entry in entries)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("unreadable", ["empty.jpg"]),
        ("truncated", ["half.jpg", "half.png"]),
        ("not an image", ["broken.jpg", "notes.txt", "text.jpg"]),
        ("otherwise left out", [".DS_Store"]),
        ("grayscale", ["gray.jpg", "gray_in_colour.png", "sixteen.png"]),
        ("EXIF-rotated", ["rotated.jpg"]),
        ("unusual format", ["alpha.png", "cmyk.jpg", "film.gif", "palette.png", "sixteen.png"]),
        ("tiny", ["small.png"]),
        ("huge", ["large.png"]),
        ("identical across splits", []),
        ("identical within a split", []),
        ("near-identical across splits", []),
        ("near-identical within a split", []),
        ("labels disagree", []),
    ],
)
def test_each_oddity_is_found_and_nothing_else(odd, kind, expected):
    assert names(odd[1].findings[kind]) == expected


def test_bad_files_do_not_count(odd):
    folder, report = odd
    assert report.classes == ["ant", "bee", "cow"]
    assert report.counts == {"train": [11, 8, 4], "val": [1, 1, 1], "test": [2, 2, 2]}
    assert report.findings["empty class"] == ["train/dog/: class without images"]


def test_training_reads_exactly_the_files_that_the_check_accepts(odd):
    """The pixels for training come from another decoder, which must judge alike."""
    folder, report = odd
    refused = ("unreadable", "truncated", "not an image")
    bad = {entry.partition(": ")[0] for kind in refused for entry in report.findings[kind]}
    for path in (path for path in folder.rglob("*.*") if path.suffix in {".jpg", ".png", ".gif"}):
        if path.relative_to(folder).as_posix() in bad:
            with pytest.raises(Exception):  # noqa: B017
                data.decode(path, 32)
        else:
            assert data.decode(path, 32).shape == (32, 32, 3)


def test_rotated_pictures_are_shown_upright(tmp_path):
    left_red = np.zeros((96, 96, 3), np.uint8)
    left_red[:, :48, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: what was left comes up
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(left_red).save(tmp_path / name / "x.jpg", exif=exif, quality=95)
    samples = check(f"folder:{tmp_path}").samples
    assert samples[0, :40, :, 0].min() > 240
    assert samples[0, 56:, :, 0].max() < 15


@pytest.fixture
def doubles(tmp_path):
    """Write twelve pictures in two classes and two splits, and copies of three of them."""
    for number, name in enumerate(["train/a", "train/b", "test/a", "test/b"]):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            picture(100 + 10 * number + i, (120, 90)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_identical_files_are_found_across_and_within_splits(doubles):
    def copy(source, target):
        (doubles / target).write_bytes((doubles / source).read_bytes())

    copy("train/a/0.png", "train/a/copy.png")
    copy("train/a/1.png", "test/b/leak.png")
    copy("train/b/2.png", "train/a/doubt.png")
    findings = check(f"folder:{doubles}").findings
    leak = "train train/a/1.png = test test/b/leak.png"
    doubt = "train train/a/doubt.png = train train/b/2.png"
    assert findings["identical across splits"] == [leak]
    assert findings["identical within a split"] == [
        "train train/a/0.png = train train/a/copy.png",
        doubt,
    ]
    assert sorted(findings["labels disagree"]) == sorted([leak, doubt])
    assert findings["near-identical across splits"] == []
    assert findings["near-identical within a split"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((60, 45)),
        lambda image: image.point(lambda level: 0.8 * level + 20),
        lambda image: image.convert("L"),
    ],
    ids=["smaller", "fainter", "gray"],
)
def test_near_identical_pictures_are_found(doubles, change):
    image = Image.open(doubles / "train" / "a" / "0.png")
    change(image).save(doubles / "test" / "a" / "leak.jpg", quality=60)
    findings = check(f"folder:{doubles}").findings
    line = "train train/a/0.png = test test/a/leak.jpg"
    assert findings["near-identical across splits"] == [line]
    assert findings["near-identical within a split"] == []
    assert findings["identical across splits"] == findings["labels disagree"] == []


def test_flat_pictures_are_not_taken_for_copies(doubles):
    for i, color in enumerate(["navy", "white", "black"]):
        Image.new("RGB", (50, 50), color).save(doubles / "train" / "a" / f"flat{i}.png")
    findings = check(f"folder:{doubles}").findings
    assert all("flat" not in entry for kind in findings if "ident" in kind
               for entry in findings[kind])  # fmt: skip


def test_a_class_without_test_images_is_reported(tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        picture(len(name)).save(tmp_path / name / "0.png")
    (tmp_path / "test" / "a" / "1.jpg").write_text("no picture")
    report = check(f"folder:{tmp_path}")
    assert report.findings["empty class"] == ["b: no image in test"]
    assert report.counts == {"train": [1, 1], "test": [1, 0]}


def test_table_shows_every_finding_and_every_split(odd):
    lines = odd[1].table().splitlines()
    rows = {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in lines)
            if len(cells) > 2}  # fmt: skip
    assert set(FINDINGS) <= set(rows)
    assert rows["truncated"] == "2"
    assert rows["train"] == "23" and rows["test"] == "6"
    columns = [line.count("|") for line in lines if line]
    assert set(columns) == {5}


def draw(number):
    labels = [f"{i:03}.Class_with_$_in_a_rather_long_name" for i in range(number)]
    counts = {"train": list(range(1, number + 1)), "test": [2] * number}
    samples = np.full((number, 96, 96, 3), 80, np.uint8)
    return counts, Report("demo", labels, counts, {k: [] for k in FINDINGS}, samples).figure()


@pytest.mark.parametrize("number", [2, 10, 200])
def test_figure_shows_each_class_and_its_size(number):
    opened = plt.get_fignums()
    counts, figure = draw(number)
    assert isinstance(figure, Figure) and plt.get_fignums() == opened
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    grid, bars = figure.axes
    assert len(grid.texts) == number
    heights = {"train": [], "test": []}
    for container in bars.containers:
        heights[container.get_label()] = [patch.get_height() for patch in container]
    assert sorted(heights["train"]) == counts["train"]
    assert heights["test"] == counts["test"]
    boxes = [text.get_window_extent() for text in grid.texts]
    for box, next_box in zip(boxes, boxes[1:], strict=False):  # names do not run into each other
        assert next_box.x0 > box.x1 or next_box.y1 < box.y0


HOSTILE = ["<img src=x onerror=alert(1)>", "a|b `c` *d*", "$\\frac$", "\u202eleft", "x" * 120]


def test_names_of_classes_and_files_are_text_in_the_table_and_in_the_picture(tmp_path):
    names = [name for name in HOSTILE if "/" not in name]
    for number, name in enumerate(names):
        for split in ("train", "test"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            picture(number).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("no picture")
    report = check(f"folder:{tmp_path / 'set'}")
    page = markdown2html(report.table())
    assert "<img" not in page and "<em>" not in page and "<code>" not in page
    assert "$" not in report.table() and "\u202e" not in report.table()
    rows = page.split("<tbody>")[2].split("<tr>")[1:]
    assert {row.count("<td") for row in rows} == {4}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.figure().draw_without_rendering()

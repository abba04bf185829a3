"""The embedded data sets are complete, reproducible, not trivial and appear all at once."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.data.drawn import sets
from helpers.runs import files

PICTURE = "test/blue_fan_hookbill/0012.jpg"
SPECIES_COUNTS = {"train": 20, "test": 30}
SMALL = sets.SETS["tiny_species"]._replace(counts={"train": 3, "test": 3})
DRAW = f"""import sys
from pathlib import Path
from helpers.data.drawn import sets
sets.SETS["tiny_species"] = sets.SETS["tiny_species"]._replace(counts={SMALL.counts})
sets.draw("tiny_species", Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def species(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tiny_species"
    sets.draw("tiny_species", folder)
    return folder


@pytest.fixture(scope="module")
def nature():
    """Draw 30 training and 20 test images a class, in memory."""
    sizes = {"train": 30, "test": 20}
    return {
        split: [
            (kind, sets.draw_picture("tiny_nature", f"{split}/{kind}/{number:04}.jpg"))
            for kind in sets.NATURE
            for number in range(size)
        ]
        for split, size in sizes.items()
    }


def start_drawing(folder):
    return subprocess.Popen([sys.executable, "-c", DRAW, str(folder)], cwd=ROOT)


def wait_until_begun(process, folder):
    begun = f".{folder.name}.{process.pid}-*.unfinished/**/*.jpg"
    deadline = time.monotonic() + 60
    while not list(folder.parent.glob(begun)) and time.monotonic() < deadline:
        time.sleep(0.02)


def draw_alone(path):
    file = BytesIO()
    sets.draw_picture("tiny_species", path).save(file, "jpeg", quality=90)
    return file.getvalue()


def count_files(folder):
    return Counter(path.relative_to(folder).parts[:2] for path in folder.rglob("*.jpg"))


def test_species_folder_is_complete_and_nothing_else_is_left(species):
    left = {path.name for path in species.parent.iterdir()}
    assert left == {"tiny_species", ".tiny_species.lock"}
    assert count_files(species) == {
        (split, kind): count for split, count in SPECIES_COUNTS.items() for kind in sets.SPECIES
    }
    assert sum(path.is_file() for path in species.rglob("*")) == 6 * 50


def test_every_file_is_a_whole_rgb_jpeg_of_the_stated_size(species):
    for path in species.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_all_images_differ_so_training_and_test_are_disjoint(species):
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in species.rglob("*.jpg")]
    assert len(set(digests)) == len(digests)


def test_bytes_depend_on_the_name_alone(species):
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert draw_alone(PICTURE) == (species / PICTURE).read_bytes()


def test_a_drawn_folder_is_left_alone(species, monkeypatch):
    monkeypatch.setattr(sets, "draw_picture", None)
    sets.draw("tiny_species", species)


def test_nature_has_the_ten_kinds_at_its_size(nature):
    kinds = "bird butterfly cat flower frog mushroom snail spider starfish turtle"
    assert " ".join(sorted(sets.SETS["tiny_nature"].kinds)) == kinds
    assert {(image.mode, image.size) for _, image in nature["train"]} == {("RGB", (96, 96))}


def test_a_figure_stands_out_from_its_ground(nature):
    """No image is empty: each has edges and is neither black nor burnt out."""
    for kind, image in nature["train"] + nature["test"]:
        pixels = np.asarray(image, float)
        assert pixels.std() > 8, kind
        assert 15 < pixels.mean() < 245, kind


def test_a_linear_model_on_pixels_stays_low(nature):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = {}, {}
    for split, pictures in nature.items():
        y[split] = [kind for kind, _ in pictures]
        x[split] = np.stack([np.asarray(image.resize((32, 32))).ravel() for _, image in pictures])
    model = linear_model.LogisticRegression(C=0.01, max_iter=100).fit(x["train"] / 255, y["train"])
    assert model.score(x["test"] / 255, y["test"]) < 0.3  # chance is 0.1


def test_colour_alone_does_not_tell_the_species_apart(species):
    """A nearest mean colour of the whole picture does little better than chance (1 in 6)."""

    def means(split):
        paths = sorted((species / split).rglob("*.jpg"))
        colours = [np.asarray(Image.open(path), float).mean((0, 1)) for path in paths]
        return np.array(colours), np.array([path.parent.name for path in paths])

    (train, names), (test, truth) = means("train"), means("test")
    kinds = sorted(set(names))
    centres = np.stack([train[names == kind].mean(0) for kind in kinds])
    nearest = np.linalg.norm(test[:, None] - centres, axis=2).argmin(1)
    assert (np.array(kinds)[nearest] == truth).mean() < 0.35


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    draw_picture = sets.draw_picture

    def interrupted(dataset, name):
        if name.endswith("0001.jpg"):
            raise KeyboardInterrupt
        return draw_picture(dataset, name)

    monkeypatch.setattr(sets, "draw_picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sets.draw("tiny_species", tmp_path / "tiny_species")
    assert [path.name for path in tmp_path.iterdir()] == [".tiny_species.lock"]


def test_killed_drawing_leaves_no_half_folder_and_two_at_once_agree(tmp_path, monkeypatch):
    folder = tmp_path / "tiny_species"
    killed = start_drawing(folder)
    wait_until_begun(killed, folder)
    killed.kill()
    killed.wait()
    assert list(tmp_path.rglob("*.jpg"))  # it was in the middle
    assert not folder.exists()
    other, said = start_drawing(folder), []

    def say(text, **_):
        said.append(text)
        other.send_signal(signal.SIGCONT)

    monkeypatch.setattr(files, "print", say, raising=False)
    monkeypatch.setitem(sets.SETS, "tiny_species", SMALL)
    wait_until_begun(other, folder)
    other.send_signal(signal.SIGSTOP)  # until this process waits for it
    try:
        sets.draw("tiny_species", folder)
    finally:
        other.send_signal(signal.SIGCONT)
    assert said == ["waiting for another process, which is drawing tiny_species"]
    assert other.wait(120) == 0
    assert sum(count_files(folder).values()) == 36
    small = "test/blue_fan_hookbill/0002.jpg"
    assert (folder / small).read_bytes() == draw_alone(small)


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    sets.draw("tiny_species", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"

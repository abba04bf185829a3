import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import ROOT
from helpers.data import sources
from helpers.data.drawn import sets
from helpers.data.sources import find
from helpers.runs.config import DATASETS

REAL = ROOT / os.environ.get("DATA_ROOT", "absent") / "caltech101"


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data set is anywhere, and nothing is downloaded."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr(sources, "DATA", tmp_path / "data")
    monkeypatch.setattr(sources, "KAGGLE", tmp_path / "kaggle" / "input")
    monkeypatch.setattr(sources, "DOWNLOADS", {})
    monkeypatch.delenv("DATA_ROOT", raising=False)


def write(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (9, len(path), 7)).save(folder / path, "JPEG")
    return folder


def paths(entries):
    return [path for path, _ in entries]


def test_train_val_and_test_folders_are_taken_as_they_are(tmp_path):
    write(tmp_path / "set", "train/dog/1.jpg", "train/cat/2.png", "val/cat/3.jpg", "test/dog/4.JPG")
    source = find(f"folder:{tmp_path / 'set'}")
    assert source.name == "set" and source.folder == tmp_path / "set"
    assert source.classes == ["cat", "dog"]
    assert source.train == [("train/cat/2.png", 0), ("train/dog/1.jpg", 1)]
    assert source.val == [("val/cat/3.jpg", 0)]
    assert source.test == [("test/dog/4.JPG", 1)]
    assert source.skipped == []


def test_bare_classes_get_a_stratified_test_share_that_stays_the_same(tmp_path, capsys):
    names = [f"cat/{i}.jpg" for i in range(50)] + [f"dog/{i}.jpg" for i in range(10)]
    write(tmp_path / "set", *names)
    source = find(f"folder:{tmp_path / 'set'}")
    assert [label for _, label in source.test].count(0) == 10
    assert [label for _, label in source.test].count(1) == 2
    assert sorted(paths(source.train) + paths(source.test)) == sorted(names)
    assert source.val is None
    assert "12 images, 20% of each class" in capsys.readouterr().out
    assert find(f"folder:{tmp_path / 'set'}") == source
    assert paths(source.test)[:10] != sorted(names[:50])[:10]  # not simply the first ones


def test_train_without_test_gets_a_test_share_and_keeps_its_validation(tmp_path):
    names = [f"train/{c}/{i}.jpg" for c in "ab" for i in range(5)]
    source = find(f"folder:{write(tmp_path, *names, 'val/a/0.jpg')}")
    assert len(source.test) == 2 and len(source.train) == 8
    assert source.val == [("val/a/0.jpg", 0)]


def test_a_validation_folder_without_images_is_none(tmp_path):
    """As a Mac or a notebook leaves it behind; else nothing would validate."""
    names = [f"{split}/{c}/{i}.jpg" for split in ("train", "test") for c in "ab" for i in range(2)]
    write(tmp_path / "set", *names, "val/.ipynb_checkpoints/1.jpg")
    assert find(f"folder:{tmp_path / 'set'}").val is None


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(1, 40), min_size=1, max_size=5))
def test_a_division_loses_and_doubles_nothing_whatever_the_order(sizes):
    found = {name: [f"{name}/{i}" for i in range(size)] for name, size in sizes.items()}
    first, second = sources._divide(found, lambda count: count - 1)
    shuffled = {name: random.sample(images, len(images)) for name, images in found.items()}
    assert sources._divide(shuffled, lambda count: count - 1) == (first, second)
    for name, images in found.items():
        assert sorted(first[name] + second[name]) == sorted(images)
        assert len(first[name]) == max(1, len(images) - 1)


def test_everything_left_out_is_listed_and_everything_else_is_found(tmp_path):
    write(tmp_path, "a/deep/er/x.jpg", "a/grün 鳥.jpeg", "b/1.webp", "b/.hidden.jpg", "b/3.JFIF")
    write(tmp_path, ".ipynb_checkpoints/1.jpg", "b/.cache/2.jpg", "__MACOSX/a/3.jpg", "loose.jpg")
    for name in ("a/.DS_Store", "b/readme.txt", "b/noending"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "b/2.jpg")
    source = find(f"folder:{tmp_path}")
    found = paths(source.train + source.test)
    assert sorted(found) == [
        "a/deep/er/x.jpg", "a/grün 鳥.jpeg", "b/1.webp", "b/2.jpg", "b/3.JFIF",
    ]  # fmt: skip
    assert source.classes == ["a", "b"]
    assert sorted(source.skipped) == [
        ".ipynb_checkpoints: hidden",
        "__MACOSX: hidden",
        "a/.DS_Store: hidden",
        "b/.cache/: hidden",
        "b/.hidden.jpg: hidden",
        "b/noending: not an image",
        "b/readme.txt: not an image",
        "empty/: class without images",
        "loose.jpg: in no class folder",
    ]


def test_names_of_splits_may_have_capitals_and_be_longer(tmp_path):
    write(tmp_path / "set", "Train/a/1.jpg", "Train/b/2.jpg", "Validation/a/3.jpg", "TEST/b/4.jpg")
    source = find(f"folder:{tmp_path / 'set'}")
    assert source.classes == ["a", "b"]
    assert source.train == [("Train/a/1.jpg", 0), ("Train/b/2.jpg", 1)]
    assert (source.val, source.test) == ([("Validation/a/3.jpg", 0)], [("TEST/b/4.jpg", 1)])
    (tmp_path / "set" / "train").mkdir()
    with pytest.raises(ValueError, match="both Train and train"):
        find(f"folder:{tmp_path / 'set'}")


def test_a_class_that_training_lacks_is_named_with_its_folder(tmp_path):
    folder = write(tmp_path / "set", "Training/a/1.jpg", "Training/b/1.jpg", "Validation/c/1.jpg")
    with pytest.raises(ValueError, match=r"set/Validation has images of 'c', Training/ has none"):
        find(f"folder:{folder}")


def test_links_in_circles_and_to_nothing_and_names_that_are_no_text_are_left_out(tmp_path):
    folder = write(tmp_path / "set", *[f"{c}/{i}.jpg" for c in "ab" for i in range(5)])
    (folder / "a" / "all").symlink_to(folder)
    (folder / "b" / "parent").symlink_to("..")
    (folder / "a" / "itself").symlink_to("itself")
    (folder / "a" / "gone.jpg").symlink_to("nowhere")
    (folder / "c").symlink_to(folder)
    with open(os.fsencode(folder / "a") + b"/\xff.jpg", "wb") as file:
        file.write((folder / "a" / "0.jpg").read_bytes())
    source = find(f"folder:{folder}")
    listed = paths(source.train + source.test)
    assert sorted(listed) == [f"{c}/{i}.jpg" for c in "ab" for i in range(5)]
    assert sorted(source.skipped) == [
        "a/\\udcff.jpg: its name is not UTF-8",
        "a/all/: a link to a folder that was seen before",
        "a/gone.jpg: a link to nothing",
        "a/itself: not an image",
        "b/parent/: a link to a folder that was seen before",
        "c/: a link to a folder that was seen before",
        "c/: class without images",
    ]


def test_a_folder_without_a_name_is_not_the_working_directory():
    with pytest.raises(ValueError, match="names no folder: write folder:PATH"):
        find("folder:")


def test_linked_class_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere", "1.jpg", "2.jpg")
    write(tmp_path / "set", "a/1.jpg", "a/2.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    assert find(f"folder:{tmp_path / 'set'}").classes == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"], "'c'"),
        (["test/a/1.jpg", "test/b/1.jpg"], "no train folder"),
        (["train/a/1.jpg", "test/a/1.jpg"], "has 1 class folder"),
        (["1.jpg", "2.jpg"], "has 0 class folder"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/.a/1.jpg"], "no test image"),
    ],
)
def test_a_layout_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, files, words):
    with pytest.raises(ValueError, match=words) as error:
        find(f"folder:{write(tmp_path / 'set', *files)}")
    assert str(tmp_path / "set") in str(error.value)


def test_folder_is_relative_to_the_current_folder_or_the_repository(tmp_path, monkeypatch):
    write(tmp_path / "data" / "mine", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert find("folder:data/mine").folder == tmp_path / "data" / "mine"
    assert find("folder:../data/mine").folder == tmp_path / "data" / "mine"
    with pytest.raises(FileNotFoundError, match="no folder 'data/yours'"):
        find("folder:data/yours")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'tinynature'"):
        find("tinynature")
    with pytest.raises(ValueError, match="'tiny_birds': choose tiny_nature, tiny_species"):
        find("tiny_birds")
    assert set(sources.FOLDERS) == {name for name in DATASETS if not name.startswith("tiny_")}


def test_embedded_data_set_is_drawn_once(tmp_path, monkeypatch):
    drawn = []

    def fake(dataset, folder):
        drawn.append(dataset)
        write(folder, "train/frog/1.jpg", "train/cat/1.jpg", "test/frog/1.jpg", "test/cat/1.jpg")

    monkeypatch.setattr(sets, "draw", fake)
    assert find("tiny_nature") == find("tiny_nature")
    assert find("tiny_nature").folder == tmp_path / "data" / "tiny_nature"
    assert drawn == ["tiny_nature"]


NATURE = ["train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/2.jpg"]


def test_search_order(tmp_path, monkeypatch):
    places = [
        tmp_path / "kaggle" / "input" / "inaturalist12k" / "Data",
        tmp_path / "data" / "nature_12k",
        tmp_path / "variable",
        tmp_path / "parameter" / "sets",
    ]
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "variable"))
    (tmp_path / "variable").mkdir()
    (tmp_path / "parameter").mkdir()
    for place in places:  # each beats those before it
        write(place / "inaturalist_12K", *NATURE)
        assert find("nature_12k", "parameter").folder == place / "inaturalist_12K"
    assert find("nature_12k", str(places[0] / "inaturalist_12K")).folder.parent == places[0]


def test_hidden_and_unfinished_folders_are_not_found(tmp_path):
    write(tmp_path / "data" / ".nature_12k.partial" / "inaturalist_12K", *NATURE)
    write(tmp_path / "data" / "__MACOSX" / "inaturalist_12K", *NATURE)
    write(tmp_path / "kaggle" / "input" / "x" / "inaturalist_12K", *NATURE)
    assert tmp_path / "kaggle" in find("nature_12k").folder.parents


def test_a_root_that_does_not_exist_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="data_root names .*nowhere"):
        find("caltech101", "nowhere")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="DATA_ROOT names .*gone"):
        find("caltech101")


def test_nature_tests_on_its_val_folder(tmp_path):
    write(tmp_path / "inaturalist_12K", *NATURE)
    (tmp_path / "inaturalist_12K" / "train" / ".DS_Store").write_text("x")
    source = find("nature_12k", str(tmp_path))
    assert source.val is None
    assert source.train == [("train/a/1.jpg", 0), ("train/b/1.jpg", 1)]
    assert source.test == [("val/a/2.jpg", 0), ("val/b/2.jpg", 1)]


def caltech(root, lists=None):
    folder = root / "caltech101" / "101_ObjectCategories"
    write(folder, *[f"{name}/image_{i:04}.jpg" for name in ("ant", "emu") for i in range(1, 5)])
    write(folder, "BACKGROUND_Google/image_0001.jpg")
    (folder / "BACKGROUND_Google" / "tmp").write_text("no picture")
    (folder / "ant" / "notes.txt").write_text("no picture")
    for name, lines in (lists or {}).items():
        (folder.parent / name).write_text("\r\n".join(lines), encoding="utf-8-sig")
    return folder


def test_caltech_follows_its_lists_and_says_what_it_leaves_out(tmp_path):
    train = ["emu/image_0001.jpg", "ant/image_0002.jpg", "BACKGROUND_Google/tmp", "ant/notes.txt",
             "ant/image_0009.jpg", "ant/image_0003.jpg", "emu/image_0001.jpg", ""]  # fmt: skip
    test = ["BACKGROUND_Google/image_0001.jpg", "ant/image_0003.jpg", "emu/image_0002.jpg"]
    caltech(tmp_path, {"train.txt": train, "test.txt": test})
    source = find("caltech101", str(tmp_path))
    assert source.classes == ["ant", "emu"]
    assert source.train == [("emu/image_0001.jpg", 1), ("ant/image_0002.jpg", 0)]
    assert source.test == [("ant/image_0003.jpg", 0), ("emu/image_0002.jpg", 1)]
    assert sorted(source.skipped) == [
        "ant/image_0001.jpg: in neither list",
        "ant/image_0003.jpg: listed before (train.txt)",  # a test image is never trained on
        "ant/image_0004.jpg: in neither list",
        "ant/image_0009.jpg: listed but absent (train.txt)",
        "ant/notes.txt: not an image",
        "ant/notes.txt: not an image (train.txt)",
        "emu/image_0001.jpg: listed before (train.txt)",
        "emu/image_0003.jpg: in neither list",
        "emu/image_0004.jpg: in neither list",
    ]


def test_caltech_without_lists_trains_on_thirty_of_each_class(tmp_path, capsys):
    folder = caltech(tmp_path)
    write(folder, *[f"emu/image_{i:04}.jpg" for i in range(5, 41)])
    source = find("caltech101", str(tmp_path))
    labels = [label for _, label in source.train]
    assert (labels.count(0), labels.count(1)) == (3, 30)  # ant has four images: one is kept back
    assert (len(source.test), source.val) == (1 + 10, None)
    assert not set(paths(source.train)) & set(paths(source.test))
    assert "no train.txt and test.txt" in capsys.readouterr().out


@pytest.mark.skipif(not REAL.is_dir(), reason="Caltech-101 is not in DATA_ROOT")
def test_caltech_has_the_sizes_that_the_report_states():
    source = find("caltech101", str(REAL.parent))
    assert (len(source.train), len(source.test), len(source.classes)) == (5784, 2893, 101)
    assert not set(paths(source.train)) & set(paths(source.test))
    for path, label in source.train + source.test:
        assert path.split("/")[0] == source.classes[label]


def test_cub_follows_its_own_files(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    write(folder, "images/002.Tern/b.jpg", "images/001.Auk/a.jpg", "images/001.Auk/c.jpg")
    (folder / "images.txt").write_text(
        "1 002.Tern/b.jpg\n2 001.Auk/a.jpg\n3 001.Auk/c.jpg\n4 001.Auk/gone.jpg\n"
    )
    (folder / "classes.txt").write_text("1 001.Auk\n2 002.Tern\n")
    (folder / "image_class_labels.txt").write_text("1 2\n2 1\n3 1\n4 1\n")
    (folder / "train_test_split.txt").write_text("1 1\n2 1\n3 0\n4 0\n")
    source = find("cub200", str(tmp_path))
    assert source.classes == ["001.Auk", "002.Tern"]
    assert source.train == [("images/002.Tern/b.jpg", 1), ("images/001.Auk/a.jpg", 0)]
    assert source.test == [("images/001.Auk/c.jpg", 0)]
    assert source.skipped == ["images/001.Auk/gone.jpg: listed but absent"]


def test_scenes_must_be_put_in_place_by_hand(tmp_path):
    with pytest.raises(FileNotFoundError, match="no public download") as error:
        find("scenes15")
    place = tmp_path / "data" / "scenes15"
    assert str(place) in str(error.value)
    write(place, "train/house/1.jpg", "train/beach/1.jpg", "test/house/2.jpg", "test/beach/2.jpg")
    assert find("scenes15").classes == ["beach", "house"]

"""Where a data set's files are: find them, or download and unpack them, and list them.

Start here to add a data set: `find` searches, one `_read_...` function per layout lists the images.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from helpers import ROOT
from helpers.data.download import download, record, unpack
from helpers.runs.config import DATASETS
from helpers.runs.files import damaged, lock
from helpers.runs.text import for_terminal, reason

DATA = ROOT / "data"
KAGGLE = Path("/kaggle/input")
FOLDERS = {  # the folder that each data set is known by, wherever it lies
    "nature_12k": "inaturalist_12K",
    "caltech101": "101_ObjectCategories",
    "cub200": "CUB_200_2011",
    "scenes15": "scenes15",
}
DOWNLOADS = {  # checksum None: recorded at the first download; files: at least so many
    "nature_12k": {
        "url": "https://storage.googleapis.com/wandb_datasets/nature_12K.zip",
        "checksum": None,
        "files": 11_000,  # about 12,000
    },
    "caltech101": {
        "url": "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        "checksum": "3138e1922a9193bfa496528edbbc45d0",
        "files": 9_144,
        "inner": "caltech-101/101_ObjectCategories.tar.gz",
    },
    "cub200": {
        "url": "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "checksum": "97eceeb196236b17998738112f37df78",
        "files": 11_788,
    },
}
SPLITS = {  # how people call the folders of the three splits, capitals or not
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm",
            ".pgm"}  # fmt: skip
TEST_SHARE = 0.2  # of each class, where a folder of images brings no test set
UNPACK_ANEW = "put the file as it was published in its place"
PER_CLASS = 30  # training images of each class of Caltech-101 where the lists are absent

Images = list[tuple[str, int]]


@dataclass(frozen=True)
class Source:
    """List a data set's images; paths are relative to `folder`, labels index `classes`."""

    name: str  # fit to be part of a file name
    folder: Path
    classes: list[str]  # sorted
    train: Images
    val: Images | None  # only where the data set itself brings one
    test: Images
    skipped: list[str]  # "path: reason" of everything listed or found but left out


def find(dataset: str, data_root: str = "", fetch: bool = True) -> Source:
    """Find a data set's images, downloading or drawing them where they are absent.

    `dataset` is a name of `helpers.runs.config.DATASETS` or folder:PATH. Searched in this order:
    `data_root`, the variable DATA_ROOT (both relative to the repository), data/, Kaggle's inputs.
    Without `fetch`, nothing is downloaded or drawn.
    Raises FileNotFoundError or ConnectionError where nothing is found, ValueError where a layout
    cannot be read, each in one sentence.
    """
    name, folder = dataset, None
    if dataset.startswith("folder:"):
        folder = _resolve(dataset.removeprefix("folder:"))
        name = folder.name
    elif dataset not in DATASETS:
        raise ValueError(
            f"no data set is called '{dataset}': choose {', '.join(DATASETS)} or folder:PATH"
        )
    elif dataset in FOLDERS:
        folder = _search(dataset, data_root)
    elif (DATA / dataset).is_dir():
        folder = DATA / dataset
    if folder is None:
        if not fetch:
            raise FileNotFoundError(f"the images of {dataset} are not here")
        folder = _fetch(dataset)
    readers = {"caltech101": _read_caltech101, "cub200": _read_cub200}
    readers["nature_12k"] = partial(_read_folder, tests_on_val=True)
    source = readers.get(dataset, _read_folder)(name, folder)
    for split in ("train", "test"):
        if not getattr(source, split):
            raise ValueError(f"{source.folder} holds no {split} image of '{dataset}'")
    return source


# Finding


def _resolve(path: str) -> Path:
    """Return an existing folder given relative to the current folder or to the repository."""
    if not path.strip():
        raise ValueError("dataset 'folder:' names no folder: write folder:PATH")
    for base in (Path.cwd(), ROOT):
        folder = base / Path(path).expanduser()
        if folder.is_dir():
            return folder.resolve()
    raise FileNotFoundError(f"there is no folder '{path}', neither in {Path.cwd()} nor in {ROOT}")


def _search(dataset: str, data_root: str) -> Path | None:
    """Return the data set's folder where some root has it a few levels down."""
    roots = []
    for name, value in (("data_root", data_root), ("DATA_ROOT", os.environ.get("DATA_ROOT"))):
        if value:
            root = ROOT / Path(value).expanduser()
            if not root.is_dir():
                raise FileNotFoundError(f"{name} names '{root}', and there is no such folder")
            roots.append((root.resolve(), 2))
    for root, depth in [*roots, (DATA, 2), (KAGGLE, 4)]:
        if root.name == FOLDERS[dataset] and root.is_dir():
            return root
        for level in range(depth + 1):
            for folder in sorted(root.glob("*/" * level + FOLDERS[dataset])):
                if folder.is_dir() and not any(map(_is_hidden, folder.relative_to(root).parts)):
                    return folder
    return None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


# Listing


def _read_folder(dataset: str, folder: Path, tests_on_val: bool = False) -> Source:
    """Read train/CLASS, val/CLASS, test/CLASS, or just CLASS, which then gets a test share."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    skipped: list[str] = []
    found: dict[str, str] = {}
    for name in names:
        split = SPLITS.get(name.lower())
        if split in found:
            raise ValueError(
                f"{folder} has both {found[split]} and {name}: only one folder can be for {split}"
            )
        if split:
            found[split] = name
    if "train" in found:
        splits = {
            split: _list_classes(folder, folder / found[split], skipped)
            for split in ("train", "val", "test")
            if split in found
        }
        others = [name for name in names if name not in found.values()]
        skipped += [f"{for_terminal(name)}/: neither train, val nor test" for name in others]
    elif found:
        raise ValueError(f"{folder} has a val or test folder but no train folder")
    else:
        splits = {"train": _list_classes(folder, folder, skipped)}
    if tests_on_val and "test" not in splits:  # by custom
        splits["test"] = splits.pop("val", {})
    classes = sorted(splits["train"])
    if len(classes) < 2:
        raise ValueError(
            f"{folder} has {len(classes)} class folder(s) with images: it needs at least two, "
            f"by themselves or in train/"
        )
    for split, images in splits.items():
        if unknown := sorted(set(images) - set(classes)):
            place = folder / (found.get(split) or found["val"])  # nature_12k tests on its val
            raise ValueError(f"{place} has images of '{unknown[0]}', {found['train']}/ has none")
    if "test" not in splits:
        splits["train"], splits["test"] = _divide(
            splits["train"], lambda count: count - max(1, round(TEST_SHARE * count))
        )
        count = sum(map(len, splits["test"].values()))
        print(
            f"{folder} brings no test set: {count} images, {TEST_SHARE:.0%} of each class, "
            f"are kept for testing"
        )
    listed = {split: _label(images, classes) for split, images in splits.items()}
    val = listed.get("val") or None  # an empty folder is none
    return Source(dataset, folder, classes, listed["train"], val, listed["test"], skipped)


def _read_caltech101(dataset: str, folder: Path) -> Source:
    """Read 101_ObjectCategories without its background class.

    The split is that of train.txt and test.txt where both lie beside the folder or one level up,
    else 30 training images a class and the rest for testing.
    """
    skipped: list[str] = []
    found = _list_classes(folder, folder, skipped)
    found.pop("BACKGROUND_Google", None)
    skipped = [entry for entry in skipped if not entry.startswith("BACKGROUND_Google/")]
    classes = sorted(found)
    lists = [
        place
        for place in (folder.parent, folder.parent.parent)
        if (place / "train.txt").is_file() and (place / "test.txt").is_file()
    ]
    if not lists:
        parts = _divide(found, lambda count: min(PER_CLASS, count - 1))
        train, test = (_label(part, classes) for part in parts)
        print(
            f"no train.txt and test.txt beside {folder}: {PER_CLASS} images of each class are "
            f"for training, the others for testing"
        )
        return Source(dataset, folder, classes, train, None, test, skipped)
    labels = dict(_label(found, classes))
    splits: dict[str, Images] = {"test": [], "train": []}
    seen: set[str] = set()
    for split, images in splits.items():  # test first: what both lists name stays a test image
        for line in _read_lines(lists[0] / f"{split}.txt"):
            path = line.strip()
            if not path or path.startswith("BACKGROUND_Google/"):
                continue
            if path not in labels:
                why = "not an image" if (folder / path).is_file() else "listed but absent"
                skipped.append(f"{path}: {why} ({split}.txt)")
            elif path in seen:
                skipped.append(f"{path}: listed before ({split}.txt)")
            else:
                seen.add(path)
                images.append((path, labels[path]))
    skipped += [f"{path}: in neither list" for path in sorted(labels.keys() - seen)]
    return Source(dataset, folder, classes, splits["train"], None, splits["test"], skipped)


def _read_cub200(dataset: str, folder: Path) -> Source:
    """Read CUB-200-2011 by its own images.txt, image_class_labels.txt, train_test_split.txt."""

    def table(name: str) -> dict[str, str]:
        pairs = [line.split(maxsplit=1) for line in _read_lines(folder / name) if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise damaged(folder / name, "a line has one word", UNPACK_ANEW)
        return dict(pairs)

    names = table("classes.txt")
    labels, is_train = table("image_class_labels.txt"), table("train_test_split.txt")
    classes = sorted(names.values())
    train: Images = []
    test: Images = []
    skipped: list[str] = []
    for image, path in table("images.txt").items():
        path = f"images/{path.strip()}"
        if not (folder / path).is_file():
            skipped.append(f"{path}: listed but absent")
            continue
        try:
            label = classes.index(names[labels[image].strip()])
            (train if is_train[image].strip() == "1" else test).append((path, label))
        except KeyError:
            raise damaged(folder / "images.txt", f"no class for {path}", UNPACK_ANEW) from None
    return Source(dataset, folder, classes, train, None, test, skipped)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, reason(error), UNPACK_ANEW) from None


def _list_classes(folder: Path, parent: Path, skipped: list[str]) -> dict[str, list[str]]:
    """Return the images below each class folder of `parent`; what is left out joins `skipped`."""
    found: dict[str, list[str]] = {}
    above = {str(place) for place in Path(os.path.realpath(parent), "x").parents}
    for entry in sorted(parent.iterdir()):
        path = for_terminal(entry.relative_to(folder).as_posix())
        if _is_hidden(entry.name):
            skipped.append(f"{path}: hidden")
        elif not entry.is_dir():
            skipped.append(f"{path}: in no class folder")
        else:
            images = sorted(_walk(folder, entry, skipped, set(above)))
            if images:
                found[entry.name] = images
            else:
                skipped.append(f"{path}/: class without images")
    return found


def _walk(folder: Path, top: Path, skipped: list[str], seen: set[str]) -> Iterator[str]:
    """Yield the images at any depth below `top`, linked folders included, each folder once."""
    shown = for_terminal(top.relative_to(folder).as_posix())
    real = os.path.realpath(top)
    if real in seen:
        skipped.append(f"{shown}/: a link to a folder that was seen before")
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(f"{shown}/: cannot be read ({error.strerror})")
        return
    for entry in entries:
        path = f"{shown}/{for_terminal(entry.name)}"
        linked = entry.is_symlink()  # os.path says of a broken link that it is neither
        is_folder = os.path.isdir(entry) if linked else entry.is_dir()
        if _is_hidden(entry.name):
            skipped.append(f"{path}{'/' if is_folder else ''}: hidden")
        elif is_folder:
            yield from _walk(folder, top / entry.name, skipped, seen)
        elif Path(entry.name).suffix.lower() not in SUFFIXES:
            skipped.append(f"{path}: not an image")
        elif not (os.path.isfile(entry) if linked else entry.is_file()):
            skipped.append(f"{path}: a link to nothing")
        elif not _is_text(f"{top.relative_to(folder)}/{entry.name}"):
            skipped.append(f"{path}: its name is not UTF-8")
        else:
            yield (top / entry.name).relative_to(folder).as_posix()


def _is_text(name: str) -> bool:
    """Say whether a name of the system's is UTF-8; Python has surrogates for what is not."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _divide(found: dict[str, list[str]], keep: Callable[[int], int]) -> tuple[dict, dict]:
    """Split each class in two, keep(count) images in the first part.

    The order is that of a hash of the path: random, yet the same everywhere and for ever.
    """
    first, second = {}, {}
    for name, paths in found.items():
        mixed = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())
        count = max(1, keep(len(paths)))
        first[name], second[name] = sorted(mixed[:count]), sorted(mixed[count:])
    return first, second


def _label(found: dict[str, list[str]], classes: list[str]) -> Images:
    return [(path, classes.index(name)) for name, paths in found.items() for path in paths]


# Fetching


def _fetch(dataset: str) -> Path:
    """Draw a data set, or download and unpack it, into data/ and return its folder."""
    if dataset not in FOLDERS:
        from helpers.data.drawn.sets import draw

        draw(dataset, DATA / dataset)
        return DATA / dataset
    name = FOLDERS[dataset]
    if dataset not in DOWNLOADS:
        raise FileNotFoundError(
            f"'{dataset}' has no public download: put its folder, with "
            f"train/CLASS and test/CLASS in it, at {DATA / name}"
        )
    entry = DOWNLOADS[dataset]
    archive = DATA / entry["url"].rsplit("/", 1)[1]
    with lock(DATA / dataset, f"fetching {dataset}"):
        if folder := _search(dataset, str(DATA)):  # by another process, while this one waited
            return folder
        download(entry["url"], archive, entry["checksum"])
        unpack(archive, DATA / dataset, entry["files"], entry.get("inner"), holds=name)
        record(archive)
        return _search(dataset, str(DATA))

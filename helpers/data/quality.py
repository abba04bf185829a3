"""Look at a data set before training on it: every file is decoded, and what is odd is listed.

Start here with your own images: `check("folder:PATH")` returns a `Report`, as table and picture.
"""

import hashlib
import io
import os
import textwrap
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.data import sources
from helpers.data.images import to_rgb
from helpers.runs.progress import tqdm
from helpers.runs.text import (
    abridge,
    for_figure,
    for_markdown,
    for_terminal,
    markdown_table,
    reason,
)

FINDINGS = {  # what a report looks for
    "unreadable": "cannot be decoded; left out",
    "truncated": "ends too early; left out",
    "not an image": "by name or by content; left out",
    "otherwise left out": "hidden, absent, listed twice, in no class folder",
    "empty class": "no readable image in a class or in one split of it",
    "grayscale": "one channel, or three equal ones",
    "EXIF-rotated": "stored sideways or mirrored; turned upright when read",
    "unusual format": "CMYK, palette, alpha, 16 bits, animated; converted when read",
    "tiny": "a side below 32 pixels",
    "huge": "above 25 million pixels or 25 MB",
    "identical across splits": "the same bytes in training and testing: a leak",
    "identical within a split": "the same bytes",
    "near-identical across splits": "the same picture re-encoded, resized or retouched: a leak",
    "near-identical within a split": "the same picture re-encoded, resized or retouched",
    "labels disagree": "the same or nearly the same picture in two classes",
}
TINY, HUGE_PIXELS, HUGE_BYTES = 32, 25e6, 25e6
SIDE = 16  # pixels of the small gray pictures that are compared
NEAR = 0.997  # correlation of two of them; unlike pictures of one kind reach .99
FLAT = 2  # gray levels; pictures with a lower deviation are all alike
THUMBNAIL = 96


@dataclass(frozen=True)
class Report:
    """What `check` found, as plain data."""

    dataset: str
    classes: list[str]
    counts: dict[str, list[int]]  # split: readable images of each class
    findings: dict[str, list[str]]  # a key of FINDINGS: one line for each file or group of files
    samples: np.ndarray  # uint8 (classes, 96, 96, 3), the first readable image of each class

    def table(self) -> str:
        """Write the split sizes and the findings as two Markdown tables."""
        splits, findings = [], []
        for split, counts in self.counts.items():
            extremes = (f"{counts[label]:,} {for_markdown(self.classes[label])}"
                        for label in (np.argmin(counts), np.argmax(counts)))  # fmt: skip
            splits.append((split, sum(counts), *extremes))
        for kind, meaning in FINDINGS.items():
            found = self.findings[kind]
            first = "; ".join(for_markdown(abridge(entry, 160)) for entry in found[:2])
            findings.append((kind, len(found), meaning, first))
        return "\n\n".join([
            markdown_table(("split", "images", "smallest class", "largest class"), splits),
            markdown_table(("finding", "number", "meaning", "first"), findings),
        ])  # fmt: skip

    def figure(self) -> Figure:
        """Draw one image of each class and the number of images in each class."""
        number = len(self.classes)
        columns = min(number, int(np.ceil(np.sqrt(2.2 * number))))
        rows = -(-number // columns)
        tile = float(np.clip(12 / columns, 0.78, 1.4))  # inches
        heights = [rows * tile * 1.35, 2.6]
        size = max(6, columns * tile), sum(heights) + 1.6
        figure = Figure(figsize=size, layout="constrained")
        grid, bars = figure.subplots(2, height_ratios=heights)
        _draw_samples(grid, self.samples, self.classes, columns, tile)
        _draw_counts(bars, self.counts, self.classes)
        total = sum(map(sum, self.counts.values()))
        name = for_figure(self.dataset)
        figure.suptitle(f"{name}: {total:,} images, {number} classes", fontsize=11)
        return figure


def check(dataset: str, data_root: str = "") -> Report:
    """Decode every file of a data set and report what could spoil a training run.

    `dataset` and `data_root` as in `helpers.data.sources.find`. Bad files are listed, never raised.
    Near-identical: the correlation of two pictures, reduced to 16 x 16 gray levels, is above .997.
    """
    source = sources.find(dataset, data_root)
    splits = {"train": source.train, "val": source.val, "test": source.test}
    files = [(split, *entry) for split, entries in splits.items() for entry in entries or []]
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow's, on odd files: they are reported below
        looks = list(
            tqdm(
                pool.map(lambda file: _look(source.folder / file[1]), files),
                f"Checking {source.name}",
                len(files),
                unit=" files",
                disable=None,
            )
        )
    findings: dict[str, list[str]] = {kind: [] for kind in FINDINGS}
    for entry in source.skipped:
        why = entry.rpartition(": ")[2].partition(" (")[0]
        kinds = {"not an image": "not an image", "class without images": "empty class"}
        findings[kinds.get(why, "otherwise left out")].append(entry)
    for (_, path, _), look in zip(files, looks, strict=True):
        for kind, detail in look.notes.items():
            findings[kind].append(f"{path}: {detail}")
    good = [(file, look) for file, look in zip(files, looks, strict=True) if look.digest]
    counts = {}
    for split, entries in splits.items():
        if entries:
            of_class = Counter(label for (where, _, label), _ in good if where == split)
            counts[split] = [of_class[label] for label in range(len(source.classes))]
            findings["empty class"] += [f"{name}: no image in {split}" for name, count
                                        in zip(source.classes, counts[split], strict=True)
                                        if count == 0]  # fmt: skip
    for kind, group in _find_duplicates([look for _, look in good]):
        members = [good[index][0] for index in group]
        line = " = ".join(f"{split} {path}" for split, path, _ in members)
        across = len({split for split, _, _ in members}) > 1
        findings[f"{kind} {'across splits' if across else 'within a split'}"].append(line)
        if len({label for _, _, label in members}) > 1 and line not in findings["labels disagree"]:
            findings["labels disagree"].append(line)
    first = {label: path for (_, path, label), _ in reversed(good)}
    samples = np.full((len(source.classes), THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)
    for label, path in first.items():
        with Image.open(source.folder / path) as image:
            samples[label] = ImageOps.fit(to_rgb(image), (THUMBNAIL, THUMBNAIL))
    return Report(dataset, source.classes, counts, findings, samples)


@dataclass
class _Look:
    """What one file showed; a file that cannot be used has no digest."""

    notes: dict[str, str] = field(default_factory=dict)  # a key of FINDINGS: detail
    digest: bytes = b""  # of the file
    gray: np.ndarray | None = None  # (SIDE, SIDE)


def _look(path: Path) -> _Look:
    """Decode one file completely (Image.verify would pass a truncated JPEG)."""
    look = _Look()
    try:
        data = path.read_bytes()
        if not data:
            return _Look({"unreadable": "empty file"})
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            orientation = image.getexif().get(0x0112, 1)
            mode, frames = image.mode, getattr(image, "n_frames", 1)
            small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        return _Look({"not an image": "not an image by its content"})
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        return _Look({kind: reason(error)})
    small = np.asarray(small)
    if mode in ("1", "L", "LA", "F") or mode.startswith("I") or np.ptp(small, axis=2).max() <= 2:
        look.notes["grayscale"] = f"mode {mode}"
    if orientation not in (0, 1):
        look.notes["EXIF-rotated"] = f"orientation {orientation}"
    if mode not in ("RGB", "L") or frames > 1:
        look.notes["unusual format"] = f"mode {mode}" + f", {frames} frames" * (frames > 1)
    if min(width, height) < TINY:
        look.notes["tiny"] = f"{width} x {height} pixels"
    if width * height > HUGE_PIXELS or len(data) > HUGE_BYTES:
        look.notes["huge"] = f"{width} x {height} pixels, {len(data) / 1e6:.0f} MB"
    look.digest = hashlib.sha256(data).digest()
    look.gray = small @ np.array([0.299, 0.587, 0.114], np.float32)
    return look


def _find_duplicates(looks: list[_Look]) -> list[tuple[str, list[int]]]:
    """Return groups of indices with the same bytes and of nearly the same pictures."""
    same = defaultdict(list)
    for index, look in enumerate(looks):
        same[look.digest].append(index)
    groups = [("identical", group) for group in same.values() if len(group) > 1]
    if not looks:
        return groups
    gray = np.stack([look.gray for look in looks]).reshape(len(looks), -1)
    gray -= gray.mean(1, keepdims=True)
    length = np.linalg.norm(gray, axis=1, keepdims=True)
    gray = np.where(length > FLAT * SIDE, gray / np.maximum(length, 1e-9), 0)
    rows, columns = [], []
    for start in range(0, len(gray), 1024):
        row, column = np.nonzero(gray[start : start + 1024] @ gray[start:].T > NEAR)
        rows.append(row + start)
        columns.append(column + start)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    graph = coo_array((np.ones(len(pairs[0]), bool), pairs), shape=(len(looks), len(looks)))
    alike = defaultdict(list)
    for index, component in enumerate(connected_components(graph, directed=False)[1]):
        alike[component].append(index)
    return groups + [
        ("near-identical", group)
        for group in alike.values()
        if len({looks[index].digest for index in group}) > 1
    ]


def _draw_samples(axes, samples: np.ndarray, names: list[str], columns: int, tile: float) -> None:
    """Draw the samples in rows, each with its class name below."""
    pitch = int(THUMBNAIL * 1.06), int(THUMBNAIL * 1.4)  # horizontal, vertical
    rows = -(-len(names) // columns)
    canvas = np.full((rows * pitch[1], columns * pitch[0], 3), 255, np.uint8)
    size = float(np.clip(6.5 * tile, 4.5, 8))
    longest = int(tile * 72 / (0.68 * size))  # characters in a line
    for index, name in enumerate(names):
        top, left = index // columns * pitch[1], index % columns * pitch[0]
        canvas[top : top + THUMBNAIL, left : left + THUMBNAIL] = samples[index]
        lines = textwrap.wrap(for_terminal(name).replace("_", " "), longest)
        short = "\n".join(lines[:2]) + "…" * (len(lines) > 2)
        axes.text(left + THUMBNAIL / 2, top + THUMBNAIL + 3, short, fontsize=size, ha="center",
                  va="top", parse_math=False)  # fmt: skip
    axes.imshow(canvas, interpolation="antialiased")
    axes.axis("off")


def _draw_counts(axes, counts: dict[str, list[int]], names: list[str]) -> None:
    """Draw stacked bars of the class sizes, the largest class first where there are many."""
    table = np.array(list(counts.values()))
    many = len(names) > 30
    order = np.argsort(-table.sum(0), kind="stable") if many else np.arange(len(names))
    base = np.zeros(len(names), int)
    for split, row in zip(counts, table, strict=True):
        axes.bar(np.arange(len(names)), row[order], bottom=base, label=split, width=0.85)
        base += row[order]
    axes.set_xticks(
        np.arange(len(names)),
        [for_figure(names[index], 30) for index in order],
        rotation=90 if many else 45,
        ha="center" if many else "right",
        rotation_mode=None if many else "anchor",
        fontsize=float(np.clip(700 / len(names), 4, 8)),
    )
    axes.margins(x=0.01)
    axes.set_ylabel("images")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(counts), loc="lower right", bbox_to_anchor=(1, 0.97))

"""Images as arrays: every file is decoded once, all later runs read the decoded pixels.

files -> one uint8 array on disk, shared by all runs -> training, validation and test sets.
"""

import hashlib
import json
import os
import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch.nn.functional import interpolate
from tqdm.auto import tqdm

from helpers import ROOT
from helpers.config import Config
from helpers.data import sources

ORIENTATION = 0x0112  # the EXIF tag
DECODED = ROOT / "data" / "decoded"
MEMORY = 0.8  # share of the machine's memory that may hold pixels
FORMAT = 2  # raised when decoding changes, so that older arrays are not reused


@dataclass
class ImageSet:
    """Hold one split: row `rows[i]` of the decoded array is image i, with `labels[i]`.

    `decoded` is uint8 (M, S, S, 3), memory-mapped and shared by all splits of a data set;
    `labels` is int64 (N,) in the order of `classes`; `paths` are relative to `folder`.
    """

    decoded: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    paths: list[str]
    classes: list[str]
    folder: Path
    on_gpu: torch.Tensor | None = None  # a copy of this split's pixels, made by `place`

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fits_in_memory(self) -> bool:
        """Whether the system can keep all of the file's pixels in its cache."""
        return self.decoded.nbytes < MEMORY * psutil.virtual_memory().total

    def place(self, device: torch.device) -> None:
        """Keep a copy on the GPU when it takes less than 40 % of the free memory there."""
        if device.type == "cuda" and self.on_gpu is None:
            size = len(self) * self.decoded[0].nbytes
            if size < 0.4 * torch.cuda.mem_get_info(device)[0]:
                self.on_gpu = torch.from_numpy(self.decoded[self.rows]).to(device)

    def take(self, indices) -> torch.Tensor:
        """Copy some images: uint8 (n, 3, S, S), channels last in memory, on the GPU if placed."""
        if self.on_gpu is not None:
            pixels = self.on_gpu[torch.as_tensor(indices, device=self.on_gpu.device)]
        else:
            pixels = torch.from_numpy(self.decoded[self.rows[indices]])
        return pixels.permute(0, 3, 1, 2)

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """Select some images as a set of their own, without copying pixels."""
        return ImageSet(
            self.decoded,
            self.rows[indices],
            self.labels[indices],
            [self.paths[i] for i in indices],
            self.classes,
            self.folder,
        )


@dataclass(frozen=True)
class Splits:
    """Hold the three disjoint sets, the class names and the files that were left out."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    skipped: list[str] = field(default_factory=list)  # "path: reason"

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    def without_test(self) -> "Splits":
        """Return the same splits with an empty test set, for whatever makes choices."""
        return Splits(self.train, self.val, self.test.subset(np.arange(0)), self.skipped)


def load(config: Config) -> Splits:
    """Load `config.dataset`, decoded to `config.image_size`, as training, validation and test.

    The first call draws or downloads and decodes; later calls read no image. Validation is
    `config.val_fraction` of the training images, the same share of every class, chosen by
    `config.seed`, unless the data set brings its own. The test set is always the official one.
    """
    source = sources.find(config.dataset, config.data_root)
    files = {"train": source.train, "val": source.val or [], "test": source.test}
    everything = [entry for entries in files.values() for entry in entries]
    decoded, readable, bad = _decoded(source, [path for path, _ in everything], config)
    row_of = {path: row for row, path in enumerate(readable)}
    sets = {}
    for split, entries in files.items():
        kept = [(path, label) for path, label in entries if path in row_of]
        sets[split] = ImageSet(
            decoded,
            np.array([row_of[path] for path, _ in kept], np.int64),
            np.array([label for _, label in kept], np.int64),
            [path for path, _ in kept],
            source.classes,
            source.folder,
        )
    if len(sets["train"]) == 0:
        raise ValueError(f"{config.dataset} has no readable training image in {source.folder}")
    train, val = sets["train"], sets["val"]
    if source.val is None:
        train, val = _carve_validation(train, config.val_fraction, config.seed)
    elif config.val_fraction == 0:  # train once more on training and validation together
        train = train_and_val = _join(train, val)
        val = train_and_val.subset(np.arange(0))
    skipped = source.skipped + bad
    if skipped:
        print(f"{config.dataset}: left out {len(skipped)} files: {', '.join(skipped[:3])}"
              + (" ..." if len(skipped) > 3 else ""))  # fmt: skip
    return Splits(train, val, sets["test"], skipped)


def _join(first: ImageSet, second: ImageSet) -> ImageSet:
    return ImageSet(
        first.decoded,
        np.concatenate([first.rows, second.rows]),
        np.concatenate([first.labels, second.labels]),
        first.paths + second.paths,
        first.classes,
        first.folder,
    )


def _carve_validation(train: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    if fraction == 0:
        return train, train.subset(np.arange(0))
    try:
        kept, held_out = train_test_split(
            np.arange(len(train)), test_size=fraction, stratify=train.labels, random_state=seed
        )
    except ValueError as error:
        raise ValueError(
            f"val_fraction {fraction} of {len(train)} training images cannot hold every class: "
            f"{error}"
        ) from None
    return train.subset(np.sort(kept)), train.subset(np.sort(held_out))


def decode(path: Path | str | BinaryIO, size: int, resize: str = "squash") -> np.ndarray:
    """Decode one image file to RGB, turned upright by its EXIF tag, as uint8 (size, size, 3).

    `resize` makes oblong images square: "squash" changes the aspect ratio, "crop" cuts the longer
    side, "pad" adds black bars. Raises OSError for what cannot be decoded completely.
    """
    with Image.open(path) as file:
        file.draft("RGB", (size, size))  # a large JPEG is decoded at a half, quarter or eighth
        image = ImageOps.exif_transpose(file) if file.getexif().get(ORIENTATION, 1) > 1 else file
        pixels = np.array(to_rgb(image))
    height, width = pixels.shape[:2]
    if resize == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pixels = pixels[top : top + side, left : left + side]
    if resize != "pad":
        return _interpolate(pixels, size, size)
    scale = size / max(height, width)
    pixels = _interpolate(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    square = np.zeros((size, size, 3), np.uint8)
    height, width = pixels.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB; convert() alone would clip 16 and 32 bits a pixel to white.

    Black is 0 and white the largest value of a 16-bit file, of other wide ones the first of 1
    (floats only), 255 and 65535 that no pixel exceeds. Beyond that, and with negative values, the
    picture's own range is stretched.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = min(0.0, pixels.min()), pixels.max()
        white = high
        if ";16" in image.mode:
            white = 65535
        elif low == 0:
            ends = (1, 255, 65535) if image.mode == "F" else (255, 65535)
            white = next((end for end in ends if high <= end), high)
        pixels = (pixels - low) * 255 / ((white - low) or 1)
        image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _interpolate(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) with antialiasing; PyTorch's kernel is faster than Pillow's."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    images = interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images[0].permute(1, 2, 0).numpy()


def _decoded(source, paths: list[str], config: Config) -> tuple[np.ndarray, list[str], list[str]]:
    """Open or make the decoded array; returns it, the paths of its rows and the bad files."""
    folder = DECODED / f"{source.name}-{config.image_size}-{_fingerprint(source, paths, config)}"
    if not (folder / "index.json").exists():
        _decode_all(source, paths, config, folder)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return np.load(folder / "images.npy", mmap_mode="r"), index["paths"], index["bad"]


def _fingerprint(source, paths: list[str], config: Config) -> str:
    """Hash what decides the decoded pixels: every file's name, size and time of change."""
    digest = hashlib.sha256(f"{FORMAT} {config.image_size} {config.resize}".encode())
    for path in paths:
        stat = os.stat(source.folder / path)
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _decode_all(source, paths: list[str], config: Config, folder: Path) -> None:
    """Decode in parallel into a temporary folder, then rename it: never half an array.

    The rows are in a random order, so that neighbours in the file are not of one class.
    """
    paths = random.Random(0).sample(paths, len(paths))
    DECODED.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=DECODED))
    size = config.image_size
    try:
        images = np.lib.format.open_memmap(
            temporary / "images.npy", "w+", np.uint8, (len(paths), size, size, 3)
        )
        pixels = torch.from_numpy(images)  # the same memory; copies without holding Python's lock

        def decode_row(row: int) -> str | None:
            try:
                image = decode(source.folder / paths[row], size, config.resize)
                pixels[row] = torch.from_numpy(image)
            except Exception as error:  # whatever a broken file raises, it is reported
                return f"{paths[row]}: {str(error).splitlines()[0] if str(error) else error!r}"

        def decode_rows(rows: range) -> list[str | None]:
            return [decode_row(row) for row in rows]

        chunks = [range(len(paths))[start : start + 32] for start in range(0, len(paths), 32)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the images are the parallel part
        try:
            with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
                bar = tqdm(total=len(paths), unit="image", disable=None,
                           desc=f"Decoding {source.name} at {size} px")  # fmt: skip
                with bar:
                    results = []
                    for part in pool.map(decode_rows, chunks):
                        results += part
                        bar.update(len(part))
        finally:
            torch.set_num_threads(threads)
        images.flush()
        index = {"paths": paths, "bad": [reason for reason in results if reason]}
        if index["bad"]:
            kept = [row for row, reason in enumerate(results) if not reason]
            index["paths"] = [paths[row] for row in kept]
            for position, row in enumerate(kept):
                images[position] = images[row]
        (temporary / "index.json").write_text(json.dumps(index), encoding="utf-8")
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster with the same array
            if not (folder / "index.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

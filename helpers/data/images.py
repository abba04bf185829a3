"""Images as arrays: every file is decoded once, all later runs read the decoded pixels.

files -> one uint8 array on disk, shared by all runs -> training, validation and test sets.
"""

import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torch.nn.functional import interpolate
from typing_extensions import TypedDict

from helpers import ROOT
from helpers.data import sources
from helpers.runs.config import Config
from helpers.runs.files import (
    DamagedFile,
    damaged,
    lock,
    making,
    naming_the_disk,
    read_json,
    reserve,
    write_json,
)
from helpers.runs.progress import tqdm
from helpers.runs.text import reason

DECODED = ROOT / "data" / "decoded"
DECODED_ANEW = "the files are decoded again"
MEMORY = 0.8  # share of the machine's memory that may hold pixels
FORMAT = 3  # raised when decoding changes, so that older arrays are not reused


@dataclass
class ImageSet:
    """One split: row `rows[i]` of the decoded array is image i, with `labels[i]`.

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
                shape = (len(self), *self.decoded.shape[1:])
                self.on_gpu = torch.empty(shape, dtype=torch.uint8, device=device)
                for start in range(0, len(self), 4096):  # the CPU's memory may be the smaller one
                    rows = self.rows[start : start + 4096]
                    self.on_gpu[start : start + len(rows)] = torch.from_numpy(self.decoded[rows])

    def take(self, indices) -> torch.Tensor:
        """Copy some images: uint8 (n, 3, S, S), channels last in memory, on the GPU if placed."""
        if self.on_gpu is not None:
            pixels = self.on_gpu[send(torch.as_tensor(indices), self.on_gpu.device)]
        else:
            pixels = torch.from_numpy(self.decoded[self.rows[indices]])
        return pixels.permute(0, 3, 1, 2)

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """Select some images as a set of their own, without copying pixels."""
        return replace(
            self,
            rows=self.rows[indices],
            labels=self.labels[indices],
            paths=[self.paths[i] for i in indices],
            on_gpu=None,
        )


@dataclass(frozen=True)
class Splits:
    """The three disjoint sets, the class names and the files that were left out."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    skipped: list[str] = field(default_factory=list)  # "path: reason"
    fingerprint: str = ""  # of all files' names, classes and contents, the test set's, too

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    def without_test(self) -> "Splits":
        """Return the same splits with an empty test set, for whatever makes choices."""
        return replace(self, test=self.test.subset(np.arange(0)))


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on the device; the program does not wait for the copy to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def load(config: Config, fetch: bool = True) -> Splits:
    """Load `config.dataset`, decoded to `config.image_size`, as training, validation and test.

    The first call draws or downloads and decodes; later calls read no image. Validation is
    `config.val_fraction` of the training images, the same share of every class, chosen by
    `config.seed`, unless the data set brings its own. The test set is always the official one.
    Without `fetch`, a data set that is not here raises FileNotFoundError.
    """
    source = sources.find(config.dataset, config.data_root, fetch)
    files = {"train": source.train, "val": source.val or [], "test": source.test}
    everything = [path for entries in files.values() for path, _ in entries]
    decoded, index = _decoded(source, everything, config)
    row_of = {path: row for row, path in enumerate(index["paths"])}
    digest = hashlib.sha256()
    sets = {}
    for split, entries in files.items():
        kept = [(path, label) for path, label in entries if path not in index["bad"]]
        if split != "test" and entries and not kept:
            raise ValueError(
                f"{config.dataset} has no readable {split} image in {source.folder}: "
                f"{entries[0][0]}: {index['bad'][entries[0][0]]}"
            )
        for path, label in kept:
            content = index["digests"][row_of[path]]
            digest.update(f"{split}\0{path}\0{source.classes[label]}\0{content}\n".encode())
        sets[split] = ImageSet(
            decoded,
            np.array([row_of[path] for path, _ in kept], np.int64),
            np.array([label for _, label in kept], np.int64),
            [path for path, _ in kept],
            source.classes,
            source.folder,
        )
    train, val = sets["train"], sets["val"]
    if source.val is None:
        train, val = _carve_validation(train, config.val_fraction, config.seed)
    elif config.val_fraction == 0:  # train once more on training and validation together
        train = replace(
            train,
            rows=np.concatenate([train.rows, val.rows]),
            labels=np.concatenate([train.labels, val.labels]),
            paths=train.paths + val.paths,
        )
        val = val.subset(np.arange(0))
    skipped = source.skipped + [f"{path}: {why}" for path, why in index["bad"].items()]
    if skipped:
        print(f"{config.dataset}: left out {len(skipped)} files: {', '.join(skipped[:3])}"
              + (" ..." if len(skipped) > 3 else ""))  # fmt: skip
    return Splits(train, val, sets["test"], skipped, digest.hexdigest()[:16])


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
        pixels = np.array(to_rgb(file))
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
    """Turn upright by the EXIF tag, in place, and convert to 8-bit RGB.

    convert() alone would clip 16 and 32 bits a pixel to white. Black is 0 and white the largest
    value of a 16-bit file, of other wide ones the first of 1 (floats only), 255 and 65535 that no
    pixel exceeds. Beyond that, and with negative values, the picture's own range is stretched.
    """
    ImageOps.exif_transpose(image, in_place=True)
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


class _Index(TypedDict):
    """Say what the rows of a decoded array are."""

    paths: list[str]  # in the order of the rows
    digests: list[str]  # of the files' contents
    bad: dict[str, str]  # path: why it could not be decoded


def _decoded(source: sources.Source, paths: list[str], config: Config) -> tuple:
    """Open or make the decoded array; returns it and its index.

    One process makes it while others wait; one that is damaged is made again.
    """
    key = _key(source, paths, config)
    folder = DECODED / f"{source.name[:80]}-{config.image_size}-{key}"
    try:
        return _open(folder, paths, config.image_size)
    except FileNotFoundError:
        pass
    except DamagedFile as error:
        print(error)
    with lock(folder, f"decoding {source.name}"):
        with suppress(FileNotFoundError, DamagedFile):
            return _open(folder, paths, config.image_size)  # another process made it
        with making(folder) as temporary:
            _decode_all(source, paths, config, temporary)
    return _open(folder, paths, config.image_size)


def _key(source: sources.Source, paths: list[str], config: Config) -> str:
    """Hash what decides the decoded pixels: each file's place, size and times of change."""
    digest = hashlib.sha256(f"{FORMAT} {config.image_size} {config.resize}".encode())
    digest.update(str(source.folder.resolve()).encode(errors="surrogateescape"))
    for path in paths:
        try:
            stat = os.stat(source.folder / path)
            state = f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        except OSError:  # removed since it was listed
            state = ""
        digest.update(f"{path}\0{state}\n".encode())
    return digest.hexdigest()[:12]


def _open(folder: Path, paths: list[str], size: int) -> tuple[np.ndarray, _Index]:
    """Open a decoded array; raises FileNotFoundError, or DamagedFile where it is not whole."""
    index = read_json(folder / "index.json", _Index, DECODED_ANEW)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
    except Exception as error:  # whatever a damaged header leads to
        raise damaged(folder / "images.npy", reason(error), DECODED_ANEW) from None
    if images.shape != (len(paths), size, size, 3) or images.dtype != np.uint8:
        raise damaged(folder / "images.npy", f"{images.shape} {images.dtype}", DECODED_ANEW)
    if {*index["paths"], *index["bad"]} != set(paths):
        raise damaged(folder / "index.json", "other files", DECODED_ANEW)
    return images, index


def _decode_all(source: sources.Source, paths: list[str], config: Config, folder: Path) -> None:
    """Decode in parallel into images.npy and index.json in a folder.

    The rows are in a random order, so that neighbours in the file are not of one class.
    """
    paths = random.Random(0).sample(paths, len(paths))
    size = config.image_size
    shape = (len(paths), size, size, 3)
    with naming_the_disk(folder):
        images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    reserve(folder / "images.npy", (folder / "images.npy").stat().st_size)
    pixels = torch.from_numpy(images)  # the same memory; copies without holding Python's lock

    def decode_row(row: int) -> tuple[str, str]:
        """Return the digest of a file, or else the reason why it could not be decoded."""
        try:
            content = (source.folder / paths[row]).read_bytes()
            pixels[row] = torch.from_numpy(decode(BytesIO(content), size, config.resize))
        except Exception as error:  # whatever a broken file raises, it is reported
            return "", reason(error)
        return hashlib.blake2b(content, digest_size=8).hexdigest(), ""

    def decode_rows(rows: range) -> list[tuple[str, str]]:
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
    digests, reasons = zip(*results, strict=True)
    bad = {path: why for path, why in zip(paths, reasons, strict=True) if why}
    write_json(folder / "index.json", dict(_Index(paths=paths, digests=digests, bad=bad)))

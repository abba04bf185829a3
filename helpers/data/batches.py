"""Batches: which images an epoch looks at, in which order, and how they reach the device."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from helpers.data.images import ImageSet, send
from helpers.runs.config import Config

BLOCK, WINDOW = 128, 64  # 6 MB and 400 MB of pixels at 128 px


def mix_seeds(*numbers: int) -> int:
    """Mix numbers into one seed; zeros at their end do not count: (0, 3) is (0, 3, 0)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def shuffle(
    images: ImageSet, steps: int, batch_size: int, seed: int, epoch: int
) -> list[np.ndarray]:
    """Cut a new random order into batches of nearly equal size, as many as `steps`.

    Where the pixels do not fit in memory, `BLOCK` images that are neighbours in the file stay near
    each other: the blocks come in a random order, and the images of each `WINDOW` blocks are mixed.
    The file's rows are in a random order themselves, and the disk reads a few large pieces.
    """
    rng = np.random.default_rng(mix_seeds(seed, epoch))
    count = len(images)
    by_row = None if images.fits_in_memory else np.argsort(images.rows)
    chunks: list[np.ndarray] = []
    while len(chunks) < steps:
        order = rng.permutation(count) if by_row is None else by_row[_mix_blocks(count, rng)]
        chunks += np.array_split(order, math.ceil(count / batch_size))
    return chunks[:steps]


def _mix_blocks(count: int, rng: np.random.Generator) -> np.ndarray:
    blocks = np.array_split(np.arange(count), math.ceil(count / BLOCK))
    rng.shuffle(blocks)
    windows = [np.concatenate(blocks[at : at + WINDOW]) for at in range(0, len(blocks), WINDOW)]
    return np.concatenate([rng.permutation(window) for window in windows])


def limit_validation(val: ImageSet, config: Config) -> ImageSet:
    """Keep a seeded choice of `val_steps` batches of validation images, if that is set."""
    if config.val_steps is None or config.val_steps * config.batch_size >= len(val):
        return val
    rng = np.random.default_rng(mix_seeds(config.seed, 0))
    return val.subset(np.sort(rng.permutation(len(val))[: config.val_steps * config.batch_size]))


def batches(images: ImageSet, chunks: list[np.ndarray], device: torch.device, prepare):
    """Yield (images, labels) on the device for each chunk of indices.

    `prepare(images uint8 (n, 3, S, S), step)` augments and normalises, in its own number format
    whatever the caller computes in. Where a batch has to be waited for, from a GPU or a disk, a
    thread makes it while the one before is in use. Where a CPU has all pixels in memory there is
    nothing to wait for, and a thread would only take the cores from the network: a step of
    EfficientNet-Lite0 would take 1.4 times as long.
    """
    images.place(device)
    labels = torch.from_numpy(images.labels)

    def make(step: int):
        with torch.autocast(device.type, enabled=False):
            pixels = send(images.take(chunks[step]), device)
            return prepare(pixels, step), send(labels[chunks[step]], device)

    if device.type == "cpu" and images.fits_in_memory:
        yield from map(make, range(len(chunks)))
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, 0) if chunks else None
        for step in range(1, len(chunks) + 1):
            batch = ahead.result()
            ahead = pool.submit(make, step) if step < len(chunks) else None
            yield batch

"""What an epoch of training looks at: in which stage and order, how large, under which seeds."""

import math

import numpy as np

from helpers.config import Config
from helpers.data import ImageSet

BLOCK, WINDOW = 128, 64  # 6 MB and 400 MB of pixels at 128 px


def stages(config: Config) -> list[Config]:
    """Return a configuration for each stage, with its own epochs, lr and freezing."""
    return [
        config.replace(
            stages=[],
            epochs=stage.epochs,
            lr=stage.lr or config.lr,
            freeze=stage.freeze or config.freeze,
        )
        for stage in config.stages
    ] or [config]


def image_size_of_epoch(config: Config, epoch: int) -> int:
    """Return the side of the training images of an epoch, counted from 1, in pixels.

    With `start_image_size` it grows in multiples of 16, linearly over the first 70 % of the
    epochs: small images are quick to look at while the network still learns the coarse things
    (Howard 2018, fast.ai's DAWNBench entry). Validation and test images are always full size.
    """
    start, final = config.start_image_size or config.image_size, config.image_size
    epochs = sum(stage.epochs for stage in stages(config))
    progress = min(1.0, (epoch - 1) / (0.7 * epochs))
    return min(final, max(start, round((start + (final - start) * progress) / 16) * 16))


def mix_seeds(*numbers: int) -> int:
    """Mix numbers into one seed."""
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

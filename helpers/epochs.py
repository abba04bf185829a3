"""What an epoch of training looks at: in which stage and order, how large, under which seeds."""

import math

import numpy as np

from helpers.config import Config
from helpers.data import ImageSet


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


def shuffle(count: int, steps: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut a new random order into batches of nearly equal size, as many as `steps`."""
    rng = np.random.default_rng(mix_seeds(seed, epoch))
    chunks: list[np.ndarray] = []
    while len(chunks) < steps:
        chunks += np.array_split(rng.permutation(count), math.ceil(count / batch_size))
    return chunks[:steps]


def limit_validation(val: ImageSet, config: Config) -> ImageSet:
    """Keep a seeded choice of `val_steps` batches of validation images, if that is set."""
    if config.val_steps is None or config.val_steps * config.batch_size >= len(val):
        return val
    rng = np.random.default_rng(mix_seeds(config.seed, 0))
    return val.subset(np.sort(rng.permutation(len(val))[: config.val_steps * config.batch_size]))

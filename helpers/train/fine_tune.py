"""Fine-tuning compared: the same network on the same images, from scratch and with parts frozen.

Start with `compare`; each way is an ordinary run.
"""

import torch
from tqdm.auto import tqdm

from helpers import models
from helpers.config import Config, ConfigError
from helpers.data.images import ImageSet
from helpers.evaluate.evaluation import Evaluation, measure, predict
from helpers.models.device import choose_device
from helpers.runs import Run
from helpers.train.loop import train

SCRATCH = "scratch"
NETWORK = (
    "image_size", "resize", "normalization", "model", "filters", "filter_organization",
    "kernel_size", "padding", "conv_bias", "activation", "batch_norm", "norm_after_pool",
    "pooling", "dense", "dense_norm", "dropout", "dropout_after", "init", "head", "head_norm",
    "head_activation", "logits_activation", "logits_dropout", "max_parameters", "precision", "seed",
    "data_root", "tracking",
)  # fmt: skip


def pretrain(config: Config, dataset: str, epochs: int = 20) -> Run:
    """Train `config`'s network from scratch on another data set, so that a run has its weights.

    Everything but the network and its images is as in the default recipe of `Config`.
    """
    network = {name: getattr(config, name) for name in NETWORK}
    runs_root = f"{config.runs_root}/pretraining"  # not among the runs that one chooses from
    return train(Config(dataset=dataset, epochs=epochs, runs_root=runs_root, **network))


def compare(config: Config, ways: list[str], seeds: int = 1) -> dict[str, list[Run]]:
    """Train on the same images and budget in several ways, each with the seeds from `config.seed`.

    A way is a freezing strategy of `helpers.config.FREEZING`, or "scratch": the same network
    without the weights, and everything trained. A seed also draws the validation images, alike for
    all ways, so that runs of one seed are comparable image by image. Each run's name is made of its
    way and seed where `config.name` is given.
    """
    if isinstance(ways, str):
        raise ConfigError(f"compare = '{ways}' is text: papermill takes lists by -y 'compare: []'")
    configs = {way: [_of_way(config, way, config.seed + n) for n in range(seeds)] for way in ways}
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    with tqdm(total=len(ways) * seeds, unit="run", disable=None) as bar:
        for way, chosen in configs.items():
            bar.set_description(way)
            for one in chosen:
                runs[way].append(train(one))
                bar.update()
    return runs


def _of_way(config: Config, way: str, seed: int) -> Config:
    name = f"{config.name}-{way}-{seed}" if config.name else ""
    if way == SCRATCH:
        return config.replace(weights="none", freeze="nothing", stages=[], seed=seed, name=name)
    return config.replace(freeze=way, seed=seed, name=name)


def retrain(run: Run) -> Run:
    """Train a chosen run once more, on its training and validation images together.

    As many epochs as before; where early stopping ended the run, as many as its best one took.
    Nothing is left to choose an epoch by, so the last one's weights are kept.
    """
    config = run.config
    epochs = run.metrics["best_epoch"] if config.early_stopping else config.epochs
    schedule = "none" if config.schedule == "plateau" else config.schedule
    name = f"{config.name}-final" if config.name else ""
    return train(config.replace(
        val_fraction=0.0, early_stopping=0, epochs=epochs, schedule=schedule, name=name
    ))  # fmt: skip


def vote(runs: list[Run], images: ImageSet) -> Evaluation:
    """Measure an ensemble by soft voting: the mean of the runs' probabilities decides.

    To be fair on validation images, all runs must have left out the same ones: same data, same
    seed. Raises ValueError where their classes differ.
    """
    votes = []
    for run in runs:
        classes = run.read_checkpoint("best.pt")["classes"]
        if classes != images.classes:
            raise ValueError(f"{run.name} knows other classes than these images have")
        model = models.rebuild(run).to(choose_device())
        votes.append(predict(model, images, run.config).softmax(1))
    return measure(torch.stack(votes).mean(0).log(), images)

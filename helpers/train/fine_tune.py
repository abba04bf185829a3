"""Ways of training compared on the same images: parts frozen, from scratch, any parameter changed.

Start with `compare`; each way is an ordinary run.
"""

import re
from collections import Counter

from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run
from helpers.runs.progress import tqdm
from helpers.runs.search import shorten
from helpers.runs.text import say_once
from helpers.train.loop import train

SCRATCH = "scratch"
SAME = {  # in all ways, so that they are measured on the same images
    "dataset", "data_root", "val_fraction", "image_size", "resize", "seed", "name", "runs_root",
}  # fmt: skip
NETWORK = (
    "image_size", "resize", "normalization", "model", "filters", "filter_organization",
    "kernel_size", "padding", "conv_bias", "activation", "batch_norm", "norm_after_pool",
    "pooling", "dense", "dense_norm", "dropout", "dropout_after", "init", "head", "head_sqrt",
    "head_norm", "head_activation", "logits_activation", "logits_dropout", "max_parameters",
    "precision", "seed", "data_root", "tracking",
)  # fmt: skip


def pretrain(config: Config, dataset: str, epochs: int = 20) -> Run:
    """Train `config`'s network from scratch on another data set, so that a run has its weights.

    Everything but the network and its images is as in the default recipe of `Config`.
    """
    network = {name: getattr(config, name) for name in NETWORK}
    runs_root = f"{config.runs_root}/pretraining"  # not among the runs that one chooses from
    return train(Config(dataset=dataset, epochs=epochs, runs_root=runs_root, **network))


def ways_of(config: Config, ways: list[str | dict]) -> dict[str, Config]:
    """Return the configuration of each way to train, by its name.

    A way is a freezing strategy of `helpers.runs.config.FREEZING`; or "scratch": the same network
    without the weights, and everything trained; or the parameters that differ, such as
    {"optimizer": "sgd", "lr": 0.01} or {"model": "resnet18"}. Raises ConfigError where a way cannot
    work, or would not be compared on the same images.
    """
    if not isinstance(ways, list):
        raise ConfigError(f"compare = {ways!r} is no list: papermill takes it by -y 'compare: []'")
    if ways and config.val_fraction == 0:
        raise ConfigError("ways are compared on validation images: set val_fraction above 0")
    found: dict[str, Config] = {}
    for way in ways:
        if isinstance(way, dict):
            for field in sorted(SAME.intersection(way)):
                raise ConfigError(f"compare: {field} is the same in all ways, set it for all")
            changes, name = way, ", ".join(f"{n} {shorten(v)}" for n, v in way.items())
        elif way == SCRATCH:
            changes = {"weights": "none", "freeze": "nothing", "stages": []}
            changes, name = changes | {"epochs": config.all_epochs}, way
        else:
            if way != config.freeze and any(stage.freeze for stage in config.stages):
                raise ConfigError(f"compare: stages with their own freeze would leave '{way}' out")
            changes, name = {"freeze": way}, str(way)
        short = re.sub(r"[^0-9A-Za-z_.-]+", "-", name)[:60].strip("-.")
        own = f"{config.name}-{short}" if config.name else ""
        one = config.replace(**changes, name=own)
        if twin := next((other for other, known in found.items() if known.id == one.id), None):
            say_once(f"compare: '{name}' is the same training as '{twin}', and left out")
            continue
        found[name] = one
    return found


def compare(config: Config, ways: list[str | dict], seeds: int = 1) -> dict[str, list[Run]]:
    """Train on the same images in several ways of `ways_of`, with the seeds from `config.seed` on.

    A seed also draws the validation images, alike for all ways, so that runs of one seed are
    comparable image by image. Each run's name is made of its way and seed where `config.name` is
    given.
    """
    configs = {
        way: [
            one.replace(seed=one.seed + n, name=f"{one.name}-{one.seed + n}" if one.name else "")
            for n in range(seeds)
        ]
        for way, one in ways_of(config, ways).items()
    }
    runs: dict[str, list[Run]] = {way: [] for way in configs}
    with tqdm(total=len(configs) * seeds, unit="run", disable=None) as bar:
        for way, chosen in configs.items():
            bar.set_description(way)
            for one in chosen:
                runs[way].append(train(one))
                bar.update()
    return runs


def retrain(run: Run) -> Run:
    """Train a chosen run once more, on its training and validation images together.

    As many epochs as before; where early stopping watched over the run, as many as its best one
    took, in each of its stages. Nothing is left to choose an epoch by, so the last one's weights
    are kept.
    """
    config = run.config
    epochs, stages = config.epochs, [stage.model_dump() for stage in config.stages]
    if config.early_stopping:
        epochs = run.metrics["best_epoch"]
        taken = Counter(row["stage"] for row in run.history[:epochs])
        stages = [stage | {"epochs": taken[number]}
                  for number, stage in enumerate(stages, start=1) if taken[number]]  # fmt: skip
    schedule = "none" if config.schedule == "plateau" else config.schedule
    name = f"{config.name}-final" if config.name else ""
    return train(config.replace(
        val_fraction=0.0, early_stopping=0, epochs=epochs, stages=stages, schedule=schedule,
        name=name,
    ))  # fmt: skip

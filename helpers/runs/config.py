"""One run's complete description: every choice that a report makes, checked before any work.

Start here to see what can be changed. Everything downstream (data, model, training) takes a
`Config`.
"""

import ast
import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from helpers import ROOT
from helpers.runs.files import read_json
from helpers.runs.text import LONGEST, abridge, for_terminal

DATASETS = ("tiny_nature", "tiny_species", "nature_12k", "caltech101", "cub200", "scenes15")
AUGMENTATIONS = {  # name: (default strength, smallest, largest, what the strength is)
    "horizontal_flip": (0.5, 0, 1, "probability"),
    "random_crop": (8, 1, 64, "padding in pixels"),
    "random_resized_crop": (0.35, 0.01, 1, "smallest share of the area kept"),
    "rotation": (15, 0, 180, "largest angle in degrees"),
    "color_jitter": (0.3, 0, 1, "largest change of brightness, contrast, saturation"),
    "shift": (0.1, 0, 1, "largest shift as a share of the side"),
    "zoom": (0.1, 0, 0.9, "largest change of scale"),
    "random_erasing": (0.25, 0, 1, "probability"),
}

FREEZING = {  # strategy: what it means; a new head is always trained
    "nothing": "everything is trained",
    "all_but_head": "the head is trained",
    "all_but_last_K_layers": "the last K layers with weights and the head are trained",
    "all_but_last_K_blocks": "the last K blocks and the head are trained",
    "all_but_last_K_stages": "the last K stages and the head are trained",
    "all_but_last_block_and_norms": "the last block, every batch norm and the head are trained",
    "convolutional": "the convolutions stay as they were",
    "fully_connected": "the dense layers stay as they were",
}

NO_EFFECT = {"name", "runs_root", "tracking", "data_root"}  # parameters that change no result
MOST = 1_000_000  # epochs, steps, images a step, filters, units: more is a slip of the hand
MAGIC = re.compile(r"^[%!].*", re.MULTILINE)  # IPython's lines, such as %%time or !pip
NAME = re.compile(r"[^\W](?:[\w .,+=@()-]{0,98}[\w)])?")  # fit for a folder, and for wandb


class ConfigError(ValueError):
    """A parameter that cannot work; the message is one sentence that names it and the way out."""


class Stage(BaseModel):
    """One stage of a training in several: what differs from the run's own parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    epochs: int = Field(ge=1, le=MOST)
    lr: float | None = Field(None, gt=0, le=100)  # None: the run's own
    freeze: str | None = None  # None: the run's own


class Config(BaseModel):
    """One run's parameters; invalid ones raise `ConfigError` with one clear sentence.

    The defaults train a small network on the drawn images in well under a minute on two cores.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Data
    dataset: str = "tiny_nature"  # a known name, or folder:PATH
    data_root: str = ""  # a folder searched for data sets before all others
    image_size: int = Field(64, ge=8, le=1024)  # pixels, square
    start_image_size: int | None = Field(None, ge=8)  # training images grow from this size
    resize: Literal["squash", "crop", "pad"] = "squash"  # how an oblong image becomes square
    val_fraction: float = Field(0.2, ge=0, le=0.9)  # of the training images, stratified; 0: none
    normalization: Literal["auto", "half", "imagenet", "none"] = "auto"  # auto: the weights' own
    augment: list[str] = ["horizontal_flip", "random_crop"]  # in training: name or name=strength

    # Model
    model: str = "five_blocks"
    filters: int | list[int] = [16, 32, 64, 128, 256]  # of the first convolution, or of all five
    filter_organization: Literal["same", "double", "half"] = "same"  # from block to block
    kernel_size: int | list[int] = 3  # one, or one a block
    padding: Literal["same", "valid"] = "same"
    conv_bias: bool = True
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "mish", "elu", "tanh"] = "relu"
    batch_norm: bool = True
    norm_after_pool: bool = False  # batch norm sees the pooled map: faster, another network
    # What the dense layers see of a map: all of it, its average, or the average of each quarter
    pooling: Literal["flatten", "average", "quarters"] = "flatten"
    dense: int | list[int] = 128  # widths of the hidden dense layers; [] for none
    dense_norm: bool = False  # batch norm behind each hidden dense layer
    dropout: float = Field(0.2, ge=0, lt=1)
    dropout_after: Literal["dense", "blocks", "both"] = "dense"
    init: Literal["default", "kaiming", "glorot"] = "default"

    # Pretrained networks
    weights: str = "none"  # none, imagenet, a run's name, or the path of a run's best.pt
    head: Literal["linear", "dense"] = "linear"  # a new last layer; or pooling and dense, as above
    head_sqrt: bool = False  # square root of the features, so that few large ones weigh less
    head_norm: bool = False  # batch norm on the features in front of the dense layers
    head_activation: Literal["none", "relu", "leaky_relu"] = "none"  # in front of the last layer
    logits_activation: Literal["none", "relu", "leaky_relu"] = "none"  # behind the last layer
    logits_dropout: float = Field(0.0, ge=0, lt=1)  # behind the last layer and its activation
    freeze: str = "nothing"  # FREEZING lists the strategies
    stages: list[Stage] = []  # one after another, each with epochs, lr, freeze; []: a single one
    layer_decay: float = Field(1.0, gt=0, le=1)  # factor of lr from each stage to the one before it
    feature_views: int = Field(0, ge=0)  # augmented copies of each image for a frozen part
    max_parameters: int | None = Field(None, ge=1)  # refuse larger networks

    # Training
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = "adamw"
    lr: float = Field(3e-3, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd and rmsprop; one_cycle sets its own
    nesterov: bool = False
    weight_decay: float = Field(0.05, ge=0, le=1)
    schedule: Literal["none", "step", "cosine", "one_cycle", "plateau"] = "one_cycle"
    step_size: int = Field(1, ge=1)  # epochs between two drops of the step schedule
    gamma: float = Field(0.1, gt=0, le=1)  # factor of the step and plateau schedules
    plateau_patience: int = Field(2, ge=0)  # epochs without improvement before a drop
    batch_size: int = Field(32, ge=1, le=MOST)
    epochs: int = Field(20, ge=1, le=MOST)
    steps_per_epoch: int | None = Field(None, ge=1, le=MOST)  # None: every image once
    val_steps: int | None = Field(None, ge=1, le=MOST)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    early_stopping: int = Field(0, ge=0)  # epochs without improvement before stopping; 0: never
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"  # chooses the best epoch
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)

    # Keeping
    name: str = ""  # of the run's folder; empty: made from the parameters
    runs_root: str = "runs"  # relative to the repository
    tracking: Literal["none", "offline", "online"] = "none"  # wandb

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except ValidationError as error:
            sentence = _sentence(error.errors()[0], values)
            raise ConfigError(abridge(for_terminal(sentence), LONGEST)) from None
        except UnicodeEncodeError as error:  # on the way through pydantic
            shown = abridge(for_terminal(error.object), 60)
            raise ConfigError(f"'{shown}' is no text: a character of it is not in UTF-8") from None

    @classmethod
    def from_parameters(cls, namespace: dict, also: Iterable[str] = ()) -> "Config":
        """Read a notebook's parameters from its `globals()`.

        Every name assigned in an annotated parameters cell, or in the cell that papermill
        injects after it, must be a field of `Config` or be listed in `also` (the notebook's own).
        Those must have the type that they are annotated with, and where `also` is a dict, lie
        between the two ends that it gives for a name.
        """
        types = _parameter_types(namespace)
        ends = also if isinstance(also, dict) else dict.fromkeys(also)
        for name in types.keys() & ends.keys():
            _check_own(name, namespace[name], types[name], ends[name])
        return cls(**{name: namespace[name] for name in types if name not in ends})

    @classmethod
    def load(cls, path: Path | str) -> "Config":
        """Read a configuration from a JSON file."""
        return cls(**read_json(Path(path), dict, "it should hold parameters by name"))

    def replace(self, **changes) -> "Config":
        """Return a copy with some parameters changed, checked again."""
        return type(self)(**{**self.model_dump(), **changes})

    @property
    def id(self) -> str:
        """Eight hexadecimal digits of all parameters that can change a result."""
        chosen = self.model_dump(exclude=NO_EFFECT)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def filter_list(self) -> list[int]:
        """The number of filters of each of the five convolutions."""
        if isinstance(self.filters, list):
            return self.filters
        factor = {"same": 1.0, "double": 2.0, "half": 0.5}[self.filter_organization]
        return [max(1, int(self.filters * factor**block)) for block in range(5)]

    @property
    def kernel_list(self) -> list[int]:
        """The kernel size of each of the five convolutions."""
        return self.kernel_size if isinstance(self.kernel_size, list) else [self.kernel_size] * 5

    @property
    def dense_list(self) -> list[int]:
        """The widths of the hidden dense layers."""
        return self.dense if isinstance(self.dense, list) else [self.dense]

    @property
    def all_epochs(self) -> int:
        """The epochs of all stages, or of the only one."""
        return sum(stage.epochs for stage in self.stages) or self.epochs

    @property
    def feature_sizes(self) -> list[tuple[int, int]]:
        """Side in pixels after each block's convolution and after its 2x2 pooling."""
        size, sizes = self.image_size, []
        for kernel in self.kernel_list:
            convolved = size if self.padding == "same" else size - kernel + 1
            sizes.append((convolved, convolved // 2))
            size = convolved // 2
        return sizes

    @property
    def pooled_size(self) -> int:
        """The side, in values, of what the five blocks' dense layers see of a map."""
        return {"flatten": self.feature_sizes[-1][1], "average": 1, "quarters": 2}[self.pooling]

    @property
    def augmentations(self) -> list[tuple[str, float]]:
        """The augmentation list as (name, strength)."""
        return [parse_augmentation(entry) for entry in self.augment]

    @model_validator(mode="before")
    @classmethod
    def _name_weights(cls, values: dict) -> dict:
        """Name a run by its place below `runs_root`, so that its path gives the same `id`."""
        weights, runs_root = values.get("weights"), ROOT / str(values.get("runs_root", "runs"))
        if isinstance(weights, str) and (ROOT / weights).is_relative_to(runs_root):
            run = (ROOT / weights).relative_to(runs_root)
            run = run.parent if run.name == "best.pt" else run
            values = {**values, "weights": run.as_posix()}
        return values

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        if not self.dataset.startswith("folder:") and self.dataset not in DATASETS:
            raise ValueError(
                f"dataset '{self.dataset}' is not known{did_you_mean(self.dataset, DATASETS)}; "
                f"choose one of {', '.join(DATASETS)}, or folder:PATH for your own images"
            )
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(
                f"name '{abridge(self.name, 60)}' cannot be a run's: it should be up to 100 "
                f"letters, digits, spaces and .,+=@()-_, no path (runs_root is for that)"
            )
        for entry in self.augment:
            parse_augmentation(entry)
        for strategy in [self.freeze, *(stage.freeze for stage in self.stages if stage.freeze)]:
            parse_freeze(strategy)
        if self.val_fraction == 0 and self.early_stopping:
            raise ValueError("early_stopping needs validation images: set val_fraction above 0")
        if self.val_fraction == 0 and self.schedule == "plateau":
            raise ValueError("schedule 'plateau' needs validation images: set val_fraction above 0")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimizer 'sgd' with momentum above 0")
        if self.start_image_size and self.start_image_size > self.image_size:
            raise ValueError(
                f"start_image_size {self.start_image_size} is larger than image_size "
                f"{self.image_size}: images grow during training"
            )
        if self.norm_after_pool and not self.batch_norm:
            raise ValueError("norm_after_pool needs batch_norm")
        for name in ("filters", "kernel_size", "dense"):
            value = getattr(self, name)
            values = value if isinstance(value, list) else [value]
            if min(values, default=1) < 1 or max(values, default=1) > MOST:
                raise ValueError(f"{name} must be at least 1 and at most {MOST:,}, not {value}")
        if self.model == "five_blocks":
            self._check_five_blocks()
            if self.start_image_size:
                self.replace(image_size=self.start_image_size, start_image_size=None)
        return self

    def _check_five_blocks(self) -> None:
        for name, values in ("filters", self.filter_list), ("kernel_size", self.kernel_list):
            if len(values) != 5:
                raise ValueError(f"{name} lists {len(values)} values: give one or five")
        before = self.image_size
        for block, (kernel, (convolved, pooled)) in enumerate(
            zip(self.kernel_list, self.feature_sizes, strict=True), start=1
        ):
            if self.padding == "valid" and kernel > before:
                raise ValueError(
                    f"kernel_size {kernel} of block {block} is larger than its {before}x{before} "
                    f"feature map: use a larger image_size, a smaller kernel or padding 'same'"
                )
            if pooled < 1:
                raise ValueError(
                    f"image_size {self.image_size} is too small for five poolings: block {block} "
                    f"has nothing left to pool ({convolved}x{convolved}); "
                    f"{self._smallest_image_size()} is the smallest that works"
                )
            before = pooled

    def _smallest_image_size(self) -> int:
        size = 1
        for kernel in reversed(self.kernel_list):
            size = 2 * size + (0 if self.padding == "same" else kernel - 1)
        return size


def parse_augmentation(entry: str) -> tuple[str, float]:
    """Split "name" or "name=strength" and check it; raises ValueError in one sentence."""
    name, _, text = entry.partition("=")
    if name not in AUGMENTATIONS:
        raise ValueError(
            f"augment '{name}' is not known{did_you_mean(name, AUGMENTATIONS)}; "
            f"choose from {', '.join(AUGMENTATIONS)}"
        )
    default, low, high, meaning = AUGMENTATIONS[name]
    try:
        strength = float(text) if text else float(default)
    except ValueError:
        raise ValueError(f"augment '{entry}': '{text}' is not a number ({meaning})") from None
    if not low <= strength <= high:
        raise ValueError(f"augment '{entry}': the strength ({meaning}) goes from {low} to {high}")
    return name, strength


def parse_freeze(strategy: str) -> tuple[str, int]:
    """Split a strategy of `FREEZING` into its form and K (0 where it has none), and check it."""
    form = re.sub(r"_[1-9]\d*_", "_K_", strategy)
    if form not in FREEZING or "_K_" in strategy:
        hint = did_you_mean(form, FREEZING)
        raise ValueError(
            f"freeze '{strategy}' is not known{hint}; choose one of {', '.join(FREEZING)}, "
            f"with a number for K"
        )
    return form, int(re.search(r"\d+", strategy).group()) if "_K_" in form else 0


def read_values(pairs: Iterable[str]) -> dict:
    """Read a command line's NAME=VALUE, values as in YAML; raises ConfigError for another form."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair} should be NAME=VALUE, such as epochs=1")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{pair} is no value in YAML, such as filters=[8, 16, 32, 64, 128]"
                              ) from None  # fmt: skip
    return values


def yaml_hint(value: object) -> str:
    """Explain YAML's best-known trap: 1e-3 is text, 1.0e-3 is a number."""
    try:
        number = isinstance(value, str) and float(value)
    except ValueError:
        return ""
    return f" (YAML takes {value} for text: write {number:.1e})" if number else ""


def did_you_mean(name: str, known) -> str:
    """Return ", did you mean 'x'?" for the nearest of the known names, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def _parameter_types(namespace: dict) -> dict[str, str]:
    """Names assigned in the annotated cells and in papermill's after them, with annotations.

    Of a cell that was changed and run again, only the last version counts: an older one shares
    half of its names or more with what came later.
    """
    names: list[str] = []
    types: dict[str, str] = {}
    cells: set[str] = set()  # names from the annotated cells
    for source in reversed(namespace["In"]):
        try:
            statements = ast.parse(MAGIC.sub("", source)).body
        except SyntaxError:  # magic inside a line, or another language
            continue
        annotated = [node for node in statements if isinstance(node, ast.AnnAssign)]
        found = dict.fromkeys(name for node in statements for name in _assigned(node))
        if annotated and len(cells & found.keys()) >= len(found) / 2:
            break
        if annotated or source.startswith("# Parameters"):
            names += found
        if annotated:
            cells |= found.keys()
            here = {ast.unparse(n.target): ast.unparse(n.annotation) for n in annotated}
            types = here | types
    return {name: types.get(name, "") for name in dict.fromkeys(names) if name in namespace}


def _assigned(node: ast.stmt) -> list[str]:
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _check_own(name: str, value: object, kind: str, ends: tuple[float, float] | None) -> None:
    """Compare a notebook's own parameter with its annotation and its smallest and largest value."""
    shown = f"{name} = {abridge(for_terminal(repr(value)), 60)} is not possible"
    given = type(value).__name__
    if kind and given != kind and (given, kind) != ("int", "float"):
        words = {"int": "a whole number", "float": "a number", "str": "text", "list": "a list",
                 "bool": "True or False"}  # fmt: skip
        raise ConfigError(f"{shown}: it should be {words.get(kind, kind)}")
    if ends and not ends[0] <= value <= ends[1]:
        raise ConfigError(f"{shown}: it should be from {ends[0]:,} to {ends[1]:,}")


def _sentence(error: dict, values: dict) -> str:
    """Turn pydantic's first error into one sentence."""
    name = str(error["loc"][0]) if error["loc"] else ""
    value = values.get(name)
    if len(error["loc"]) > 1 and isinstance(error["loc"][1], int):  # in a list
        field = ".".join(map(str, error["loc"][2:]))
        if error["type"] == "extra_forbidden":
            hint = did_you_mean(field, Stage.model_fields)
            return f"unknown field '{field}' in {name}{hint or ': possible are epochs, lr, freeze'}"
        name, value = " ".join(filter(None, (field, "in", name))), error["input"]
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(name, Config.model_fields)
        return f"unknown parameter '{name}'{hint or '; helpers/runs/config.py lists all of them'}"
    if not name:
        return error["msg"].removeprefix("Value error, ")
    if isinstance(value, str) and value.lstrip().startswith("["):
        return f"{name} = '{abridge(value, 60)}' is text: papermill takes lists by -y '{name}: ...'"
    if error["type"] == "literal_error" and isinstance(value, str):
        known = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = did_you_mean(value, known)
        return f"{name} = '{value}' is not possible{hint}; choose one of {', '.join(known)}"
    wanted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    hint = yaml_hint(value) if error["type"] == "float_type" else ""
    return f"{name} = {abridge(repr(value), 80)} is not possible: it should be {wanted}{hint}"

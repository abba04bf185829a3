"""What a run's files hold, as the types against which they are checked when they are read.

More keys than these may be there; those that are `NotRequired` may be missing.
"""

from typing import Any, Literal

import torch
from pydantic import ConfigDict
from typing_extensions import NotRequired, TypedDict

OPEN = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class Status(TypedDict):
    """status.json."""

    __pydantic_config__ = OPEN
    state: Literal["running", "finished", "interrupted", "failed"]
    time: str
    reason: NotRequired[str]
    epoch: NotRequired[int]
    stopped_at: NotRequired[int]
    history: NotRequired[str]  # history.csv's checksum, of a finished run


class Figures(TypedDict):
    """What was measured on one split."""

    __pydantic_config__ = OPEN
    loss: NotRequired[float]
    accuracy: float


class Opened(TypedDict):
    """How often and when the test set was opened."""

    count: int
    first: str
    last: str


class Metrics(TypedDict):
    """metrics.json."""

    __pydantic_config__ = OPEN
    train_seconds: NotRequired[float]
    epochs: NotRequired[int]
    params: NotRequired[int]
    trainable: NotRequired[int]
    best_epoch: NotRequired[int]
    dtype: NotRequired[str]
    train: NotRequired[Figures]
    val: NotRequired[Figures]
    test: NotRequired[Figures]
    test_opened: NotRequired[Opened]


class Environment(TypedDict):
    """environment.json."""

    __pydantic_config__ = OPEN
    commit: str
    device: str
    packages: dict[str, str]


class Data(TypedDict):
    """data.json: the images that a run was trained on, whatever their folder holds later."""

    fingerprint: str
    classes: list[str]


class Checkpoint(TypedDict):
    """What best.pt and last.pt share."""

    __pydantic_config__ = OPEN
    model: dict[str, torch.Tensor]
    config: NotRequired[dict[str, Any]]  # these four are not in files of older versions
    mean: NotRequired[tuple[float, ...] | list[float]]
    std: NotRequired[tuple[float, ...] | list[float]]
    history: NotRequired[list[dict[str, int | float]]]


class Best(Checkpoint):
    """best.pt: all that is needed to use the network."""

    __pydantic_config__ = OPEN
    config: dict[str, Any]
    epoch: int
    classes: list[str]


class Last(Checkpoint):
    """last.pt: all that is needed to continue after an epoch."""

    __pydantic_config__ = OPEN
    history: list[dict[str, int | float]]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    best: float

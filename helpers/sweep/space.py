"""The searched parameters of a sweep: wandb's distributions, as Optuna and a grid need them.

A parameter is a field of `Config` with values to choose from or a distribution to draw from.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from helpers.runs.config import Config, did_you_mean, yaml_hint

LARGEST_GRID = 10_000  # points; to list and queue more takes minutes of silence
DISTRIBUTIONS = {  # name: keys it needs, keys it may have with wandb's defaults
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (("min", "max"), {}),
    "uniform": (("min", "max"), {}),
    "q_uniform": (("min", "max"), {"q": 1}),
    "log_uniform": (("min", "max"), {}),  # of the exponents of e
    "log_uniform_values": (("min", "max"), {}),
    "inv_log_uniform": (("min", "max"), {}),
    "inv_log_uniform_values": (("min", "max"), {}),
    "q_log_uniform": (("min", "max"), {"q": 1}),
    "q_log_uniform_values": (("min", "max"), {"q": 1}),
}


class KeyProblem(ValueError):
    """Something is wrong with the entry `key` of a sweep file; an empty key means the whole."""

    def __init__(self, key: str, text: str):
        super().__init__(text)
        self.key = key


@dataclass(frozen=True)
class Parameter:
    """One searched parameter.

    `suggest(trial)` asks an Optuna trial for a value. `values` are those of a choice or a grid,
    None for a range. `examples` are values to check before anything runs.
    """

    name: str
    text: str  # how the file describes it
    suggest: Callable[[Any], Any]
    values: list | None
    examples: list


def make_parameter(name: str, entry: dict, method: str) -> Parameter:
    """Make the parameter that `entry` (a mapping of wandb's keys) describes.

    A constant has one value and no `suggest`. Raises KeyProblem for what wandb or `Config` would
    not take.
    """
    kind = entry.get("distribution") or _implied_distribution(entry)
    if kind is None:
        raise KeyProblem("", f"{name} needs value, values, min and max, or a distribution")
    if kind not in DISTRIBUTIONS:
        hint = did_you_mean(str(kind), DISTRIBUTIONS)
        raise KeyProblem("distribution", f"{name}: distribution {kind!r} is not supported{hint}")
    needed, optional = DISTRIBUTIONS[kind]
    for key in entry:
        if key not in ("distribution", *needed, *optional):
            raise KeyProblem(key, f"{name}: {kind} takes no key '{key}'")
    if missing := [key for key in needed if key not in entry]:
        raise KeyProblem("", f"{name}: {kind} needs {missing[0]}")
    if kind == "constant":
        parameter = Parameter(name, str(entry["value"]), None, [entry["value"]], [entry["value"]])
    elif "values" in needed:
        parameter = _make_choice(name, entry)
    else:
        parameter = _make_range(name, kind, entry, method)
    for example in parameter.examples:
        _check_value(name, example, next((k for k in ("value", "values", "min") if k in entry), ""))
    if method == "grid" and kind != "constant":
        if parameter.values is None or "probabilities" in entry:
            raise KeyProblem("", f"{name}: a grid takes values, int_uniform or q_uniform")
        parameter = _choice(name, parameter.text, parameter.values)
    return parameter


def check_number(key: str, value: Any, whole: bool = False, low: float = -math.inf):
    """Return the value of a key, a finite number of at least `low`; a float may be an integer."""
    wanted = int if whole else (int, float)
    if not isinstance(value, wanted) or isinstance(value, bool) or not low <= value < math.inf:
        kinds = "a whole number" if whole else "a number"
        limit = f" of at least {low}" if low > -math.inf else ""
        raise KeyProblem(key, f"{key} = {value!r} should be {kinds}{limit}{yaml_hint(value)}")
    return value


def _implied_distribution(entry: dict) -> str | None:
    """Return the distribution that wandb infers from the keys."""
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical_w_probabilities" if "probabilities" in entry else "categorical"
    if "min" in entry or "max" in entry:
        bounds = [entry.get("min"), entry.get("max")]
        return "int_uniform" if all(isinstance(b, int) for b in bounds) else "uniform"
    return None


def _make_choice(name: str, entry: dict) -> Parameter:
    values, probabilities = entry["values"], entry.get("probabilities")
    if not isinstance(values, list) or not values:
        raise KeyProblem("values", f"values of {name} should be a list of at least one")
    if probabilities is None:
        return _choice(name, ", ".join(map(str, values)), values)
    sound = isinstance(probabilities, list) and all(
        isinstance(p, int | float) and 0 <= p <= 1 for p in probabilities
    )
    if not sound or len(probabilities) != len(values) or abs(sum(probabilities) - 1) > 1e-6:
        raise KeyProblem(
            "probabilities",
            f"probabilities of {name} should be {len(values)} numbers that add up to 1",
        )
    text = ", ".join(f"{v} ({p:.0%})" for v, p in zip(values, probabilities, strict=True))
    bounds = np.cumsum(probabilities)[:-1]

    def suggest(trial):  # Optuna has no unequal choices: draw a point, see whose part it is in
        return values[np.searchsorted(bounds, trial.suggest_float(f"{name} (share)", 0, 1))]

    return Parameter(name, text, suggest, values, values)


def _make_range(name: str, kind: str, entry: dict, method: str) -> Parameter:
    needed, optional = DISTRIBUTIONS[kind]
    given = {**optional, **entry}
    numbers = {key: check_number(key, given[key], kind == "int_uniform")
               for key in (*needed, *optional)}  # fmt: skip
    low, high, q = numbers["min"], numbers["max"], numbers.get("q")
    text = f"{kind}, " + ", ".join(f"{key} {value}" for key, value in numbers.items())
    if q is not None and q <= 0:
        raise KeyProblem("q", f"q of {name} should be larger than 0")
    if low >= high:
        raise KeyProblem("min", f"{name}: min {low} should be smaller than max {high}")
    if kind.endswith("_values") and low <= 0:
        raise KeyProblem("min", f"{name}: min {low} should be larger than 0 for {kind}")
    if method == "grid" and (high - low) / (q or 1) > LARGEST_GRID:
        raise KeyProblem("max", f"{name} has over {LARGEST_GRID:,} values, too many for a grid")
    if kind == "int_uniform":
        values = list(range(low, high + 1)) if method == "grid" else None
        return Parameter(name, text, lambda t: t.suggest_int(name, low, high), values, [low, high])
    log = "log_uniform" in kind
    if log and not kind.endswith("_values"):
        if max(abs(low), abs(high)) > 700:
            raise KeyProblem("max", f"{name}: min {low} and max {high} of {kind} are exponents of "
                                    f"e: for the values themselves take {kind}_values")  # fmt: skip
        low, high = math.exp(low), math.exp(high)
        if kind.startswith("inv"):
            low, high = 1 / high, 1 / low

    def quantize(value: float):  # steps of a whole q stay whole, as in wandb
        return value if q is None else round(value / q) * q

    def suggest(trial):
        return quantize(trial.suggest_float(name, low, high, log=log))

    values = np.arange(low, high, q).tolist() if (kind, method) == ("q_uniform", "grid") else None
    return Parameter(name, text, suggest, values, values or [quantize(low), quantize(high)])


def _choice(name: str, text: str, values: list) -> Parameter:
    """Make a choice; Optuna's storages keep values as JSON, so that lists and None work."""
    choices = list(dict.fromkeys(map(json.dumps, values)))

    def suggest(trial):
        return json.loads(trial.suggest_categorical(name, choices))

    return Parameter(name, text, suggest, values, values)


def _check_value(name: str, value: Any, key: str) -> None:
    """Check one value against the field of `Config`, by itself."""
    field = Config.model_fields[name]
    annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else (
        field.annotation)  # fmt: skip
    try:
        TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise KeyProblem(
            key, f"{name} = {value!r} is not possible: it should be {wanted}{yaml_hint(value)}"
        ) from None

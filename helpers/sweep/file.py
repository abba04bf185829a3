"""wandb's sweep files, read strictly: what could not run the same way offline stops with its line.

The keys are those of wandb's schema (https://docs.wandb.ai/models/sweeps/sweep-config-keys);
parameters are the fields of `Config`. A nested group of parameters is a heading: `Config` is flat,
so only the innermost names count.
"""

import itertools
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from helpers import ROOT
from helpers.runs.config import Config, ConfigError, did_you_mean
from helpers.runs.text import reason
from helpers.sweep.space import (
    LARGEST_GRID,
    KeyProblem,
    Parameter,
    check_number,
    make_parameter,
)

METHODS = ("grid", "random", "bayes")
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")  # columns of history.csv
KEYS = ("method", "parameters", "metric", "run_cap", "early_terminate",
        "name", "description", "project", "entity", "program", "command")  # fmt: skip
FIXED = ("name", "runs_root", "tracking")  # decided by the sweep itself
MOST_EXAMPLES = 200  # combinations of which one has to work


def goal_of(metric: str) -> str:
    """Return what is good of a metric, in wandb's words: "maximize" or "minimize"."""
    return "maximize" if metric.endswith("accuracy") else "minimize"


def best_of(values: list[float], metric: str) -> float:
    """Return the best one of a metric's finite values; nan where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    best = max if goal_of(metric) == "maximize" else min
    return best(finite, default=math.nan)


@dataclass(frozen=True)
class Hyperband:
    """wandb's rule of early termination: the epochs at which runs are compared."""

    bands: list[int]
    eta: float
    strict: bool

    def stops(self, history: list[float], histories: list[list[float]]) -> bool:
        """Say whether a run stops; smaller is better, and `histories` includes its own.

        At its latest band a run must be among the best 1/eta of all that came so far: with its
        value there if `strict`, else with its best value until now. As `hyperband_stop_runs` of
        wandb's package `sweeps` 0.3.0 does it.
        """
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        values = sorted(other[reached[-1] - 1] for other in histories if len(other) >= reached[-1])
        threshold = values[int(1 / self.eta * len(values))]
        return (history[reached[-1] - 1] if self.strict else min(history)) > threshold


@dataclass(frozen=True)
class Definition:
    """A sweep as its file describes it; `content` is the file as wandb would read it."""

    name: str
    content: dict
    method: str
    parameters: list[Parameter]
    constants: dict[str, Any]
    example: dict[str, Any]  # values of all parameters, constants included, that work together
    run_cap: int | None
    metric: str
    target: float | None
    hyperband: Hyperband | None

    @property
    def sign(self) -> int:
        """1 where a smaller metric is better, else -1."""
        return 1 if goal_of(self.metric) == "minimize" else -1

    def grid(self) -> list[dict]:
        """List the points of a grid, each once, in wandb's order: the last name changes fastest."""
        names = [parameter.name for parameter in self.parameters]
        points = itertools.product(*(parameter.values for parameter in self.parameters))
        unique: dict[str, dict] = {}
        for point in points:
            if len(unique) == self.run_cap:
                break
            unique.setdefault(json.dumps(point), dict(zip(names, point, strict=True)))
        return list(unique.values())

    def configure(self, config: Config, parameters: dict, prefix: str) -> Config:
        """Return the configuration of a point; the others of its parameters are `config`'s.

        Its run lies in the sweep's folder, under a name that starts with `prefix`.
        """
        folder = Path(config.runs_root) / "sweeps" / self.name
        chosen = self.constants | parameters
        config = config.replace(**chosen, runs_root=str(folder), name="")
        return config.replace(name=f"{prefix}-{config.id}")

    def reached(self, value: float) -> bool:
        """Say whether a value of the metric reaches its target."""
        return self.target is not None and self.sign * value <= self.sign * self.target


def read_sweep(path: Path | str, config: Config) -> Definition:
    """Read a sweep file whose constants and searched parameters change `config`.

    A relative path starts at the repository. Raises FileNotFoundError, and ConfigError in one
    sentence with the line for whatever wandb or `Config` would not take, or Optuna cannot express.
    """
    path = ROOT / path
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise FileNotFoundError(f"there is no sweep file {path}{near}")
    return _File(path, config).read()


@dataclass
class _File:
    """Read one file; every problem names the file and the line."""

    path: Path
    config: Config
    loader: yaml.SafeLoader = field(init=False)

    def problem(self, node: yaml.Node | int, text: str) -> ConfigError:
        line = node if isinstance(node, int) else node.start_mark.line + 1
        return ConfigError(f"{self.path.name}, line {line}: {text}")

    def read(self) -> Definition:
        try:
            text = self.path.read_text(encoding="utf-8")
            self.loader = yaml.SafeLoader(text)
            root = self.loader.get_single_node()
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            raise self.problem(error.problem_mark.line + 1, f"no YAML: {error.problem}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self.problem(1, f"no YAML: {reason(error)}") from None
        if root is None:
            raise self.problem(1, "the file is empty; a sweep needs method and parameters")
        keys = self.mapping(root, "a sweep", KEYS)
        for needed in ("method", "parameters"):
            if needed not in keys:
                raise self.problem(root, f"'{needed}' is missing")
        method = self.value(keys["method"])
        if method not in METHODS:
            hint = did_you_mean(str(method), METHODS)
            raise self.problem(
                keys["method"],
                f"method '{method}' is not supported{hint}; choose one of {', '.join(METHODS)}",
            )
        parameters, constants = self.parameters(keys["parameters"], method)
        run_cap = self.number(keys, "run_cap", whole=True, low=1)
        metric, target = self.metric(keys, root, method)
        hyperband = self.hyperband(keys)
        if run_cap is None and method != "grid":
            text = f"a {method} search never ends by itself: add run_cap, the number of runs"
            raise self.problem(keys["method"], text)
        points = math.prod(len(p.values) for p in parameters) if method == "grid" else 0
        if min(points, run_cap or points) > LARGEST_GRID:
            text = (
                f"a grid of {points:,} runs would never end, {LARGEST_GRID:,} are the most: give "
                f"fewer values, or take method random with run_cap, the number of runs"
            )
            raise self.problem(keys["method"], text)
        if hyperband and "metric" not in keys:
            raise self.problem(keys["early_terminate"], "early_terminate needs a metric")
        example = self.example(parameters, constants, metric, keys["parameters"])
        return Definition(self.path.stem, content, method, parameters, constants, example, run_cap,
                          metric, target, hyperband)  # fmt: skip

    def mapping(self, node: yaml.Node, what: str, known=None) -> dict[str, yaml.Node]:
        """Return the entries of a mapping; stop at unknown or repeated keys."""
        if not isinstance(node, yaml.MappingNode):
            raise self.problem(node, f"{what} should be a mapping of keys to values")
        entries: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = str(self.value(key_node))
            if known is not None and key not in known:
                hint = did_you_mean(key, known) or f"; it takes {', '.join(known)}"
                raise self.problem(key_node, f"key '{key}' of {what} is not supported{hint}")
            if key in entries:
                raise self.problem(key_node, f"'{key}' stands twice in {what}")
            entries[key] = value_node
        return entries

    def value(self, node: yaml.Node) -> Any:
        return self.loader.construct_object(node, deep=True)

    def number(self, keys: dict, key: str, default=None, **limits):
        if key not in keys:
            return default
        try:
            return check_number(key, self.value(keys[key]), **limits)
        except KeyProblem as problem:
            raise self.problem(keys[key], str(problem)) from None

    def metric(self, keys: dict, root: yaml.Node, method: str) -> tuple[str, float | None]:
        """Return the metric's name and target."""
        if "metric" not in keys:
            if method == "bayes":
                raise self.problem(root, "method bayes needs a metric with name and goal")
            return "val_accuracy", None
        entries = self.mapping(keys["metric"], "metric", ("name", "goal", "target"))
        name = self.value(entries["name"]) if "name" in entries else None
        if name not in METRICS:
            hint = did_you_mean(str(name), METRICS)
            text = f"metric name {name!r} is not known{hint}; choose one of {', '.join(METRICS)}"
            raise self.problem(entries.get("name", keys["metric"]), text)
        goal = self.value(entries["goal"]) if "goal" in entries else "minimize"
        if goal != goal_of(name):
            given = f"not '{goal}'" if "goal" in entries else "since wandb minimizes by default"
            text = f"{name} needs goal: {goal_of(name)}, {given}"
            raise self.problem(entries.get("goal", keys["metric"]), text)
        return name, self.number(entries, "target")

    def hyperband(self, keys: dict) -> Hyperband | None:
        if "early_terminate" not in keys:
            return None
        node = keys["early_terminate"]
        known = ("type", "min_iter", "max_iter", "s", "eta", "strict")
        entries = self.mapping(node, "early_terminate", known)
        kind = self.value(entries["type"]) if "type" in entries else None
        if kind != "hyperband":
            raise self.problem(entries.get("type", node), f"type {kind!r} should be hyperband")
        eta = self.number(entries, "eta", 3)
        if eta <= 1:
            raise self.problem(entries["eta"], f"eta = {eta} should be larger than 1")
        strict = self.value(entries["strict"]) if "strict" in entries else True
        if not isinstance(strict, bool):
            raise self.problem(entries["strict"], f"strict = {strict!r} should be true or false")
        max_iter = self.number(entries, "max_iter", whole=True, low=1)
        min_iter = self.number(entries, "min_iter", whole=True, low=1)
        s = self.number(entries, "s", whole=True, low=1)
        if max_iter is not None and s is not None:
            bands = sorted(int(max_iter / eta**k) for k in range(1, s + 1) if max_iter >= eta**k)
        elif min_iter is not None and max_iter is None:
            bands = [int(min_iter * eta**k) for k in range(100) if min_iter * eta**k < 1e9]
        else:
            raise self.problem(node, "early_terminate needs min_iter, or max_iter and s")
        if not bands:
            raise self.problem(node, f"max_iter {max_iter} leaves no epoch to compare runs at")
        return Hyperband(bands, eta, strict)

    def parameters(self, node: yaml.Node, method: str) -> tuple[list[Parameter], dict[str, Any]]:
        """Return the searched parameters, in wandb's order, and the constants of a group."""
        searched: dict[str, Parameter] = {}
        constants: dict[str, Any] = {}
        entries = self.mapping(node, "parameters")
        place = {str(self.value(key)): key for key, _ in node.value}
        for name, entry in sorted(entries.items()):
            keys = self.mapping(entry, f"parameter {name}")
            if "parameters" in keys:
                self.mapping(entry, f"group {name}", ("parameters",))
                more, fixed = self.parameters(keys["parameters"], method)
            elif name in FIXED:
                raise self.problem(place[name], f"'{name}' is the sweep's own: leave it out")
            elif name not in Config.model_fields:
                hint = did_you_mean(name, Config.model_fields)
                hint = hint or "; helpers/runs/config.py lists them all"
                raise self.problem(place[name], f"unknown parameter '{name}'{hint}")
            else:
                more, fixed = self.parameter(name, entry, keys, method)
            for parameter in [*(p.name for p in more), *fixed]:
                if parameter in searched or parameter in constants:
                    raise self.problem(entry, f"parameter '{parameter}' stands twice")
            searched |= {parameter.name: parameter for parameter in more}
            constants |= fixed
        if not searched and not constants:
            raise self.problem(node, "there are no parameters")
        return list(searched.values()), constants

    def parameter(self, name: str, entry: yaml.Node, keys: dict, method: str):
        try:
            plain = {key: self.value(value) for key, value in keys.items()}
            parameter = make_parameter(name, plain, method)
        except KeyProblem as problem:
            raise self.problem(keys.get(problem.key, entry), str(problem)) from None
        if parameter.suggest is None:
            return [], {name: parameter.values[0]}
        return [parameter], {}

    def example(self, parameters: list, constants: dict, metric: str, node: yaml.Node) -> dict:
        """Return the first combination that makes a valid configuration; stop where none does.

        Of more than `MOST_EXAMPLES`, the first one and a random choice of the others are tried.
        """
        values = [parameter.examples for parameter in parameters]
        points = itertools.product(*values)
        if math.prod(map(len, values)) > MOST_EXAMPLES:
            rng = random.Random(0)
            others = ([rng.choice(v) for v in values] for _ in range(MOST_EXAMPLES))
            points = itertools.chain([next(points)], others)
        names = [parameter.name for parameter in parameters]
        problem = None
        for point in points:
            chosen = constants | dict(zip(names, point, strict=True))
            try:
                config = self.config.replace(**chosen)
            except ConfigError as error:
                problem = problem or error
                continue
            if metric.startswith("val") and config.val_fraction == 0:
                raise self.problem(node, f"{metric} needs val_fraction above 0")
            return chosen
        raise self.problem(node, str(problem))

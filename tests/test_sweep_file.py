"""Sweep files: the same points and decisions as wandb's own package, one sentence for the rest."""

import json
import math

import numpy as np
import optuna
import pytest
import yaml
from scipy import stats

from helpers import ROOT
from helpers.runs.config import Config, ConfigError
from helpers.sweep.file import read_sweep

ORACLE = json.loads((ROOT / "tests" / "data" / "wandb_sweeps_0.3.0.json").read_text())
GRID = """\
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  dropout:
    values: [0.0, 0.2]
  seed: {values: [0, 1, 2]}
"""


@pytest.fixture
def read(tmp_path):
    def read(content, config=None):
        path = tmp_path / "sweep.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return read_sweep(path, config or Config())

    return read


def search(method="random", run_cap=1, **parameters):
    metric = {"name": "val_accuracy", "goal": "maximize"}
    return {"method": method, "run_cap": run_cap, "metric": metric, "parameters": parameters}


def test_grid_in_wandbs_order(read):
    points = [(p["dropout"], p["seed"]) for p in read(GRID).grid()]
    assert points == [(0.0, 0), (0.0, 1), (0.0, 2), (0.2, 0), (0.2, 1), (0.2, 2)]
    assert len(read(GRID + "run_cap: 4\n").grid()) == 4


@pytest.mark.parametrize("case", ORACLE["grids"], ids=lambda case: "-".join(case["parameters"]))
def test_grid_is_that_of_wandb(read, case):
    definition = read({"method": "grid", "parameters": case["parameters"]})
    assert [definition.constants | point for point in definition.grid()] == case["points"]


@pytest.mark.parametrize("number", range(len(ORACLE["hyperband"])))
def test_runs_end_where_wandb_ends_them(read, number):
    case = ORACLE["hyperband"][number]
    metric = "val_accuracy" if case["goal"] == "maximize" else "val_loss"
    definition = read(
        search(lr={"value": 0.1})
        | {"metric": {"name": metric, "goal": case["goal"]}}
        | {"early_terminate": {"type": "hyperband", **case["rule"]}}
    )
    signed = [[definition.sign * value for value in history] for history in case["histories"]]
    stopped = [i for i, own in enumerate(signed) if definition.hyperband.stops(own, signed)]
    assert stopped == case["stopped"]


def test_oracle_has_enough_cases_of_both_kinds():
    stopped = [len(case["stopped"]) for case in ORACLE["hyperband"]]
    assert len(stopped) >= 20 and 10 < sum(map(bool, stopped)) < len(stopped)


def draw(definition, count=2000):
    """Draw values of the only parameter of a search by Optuna."""
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler, storage=optuna.storages.InMemoryStorage())
    (parameter,) = definition.parameters
    return [parameter.suggest(study.ask()) for _ in range(count)]


DISTRIBUTIONS = {
    "uniform": ({"min": 0.1, "max": 0.5}, stats.uniform(0.1, 0.4)),
    "log_uniform": ({"min": -9, "max": -2}, stats.loguniform(math.exp(-9), math.exp(-2))),
    "log_uniform_values": ({"min": 1.0e-4, "max": 0.1}, stats.loguniform(1e-4, 0.1)),
    "inv_log_uniform": ({"min": 2, "max": 9}, stats.loguniform(math.exp(-9), math.exp(-2))),
    "inv_log_uniform_values": ({"min": 1.0e-4, "max": 0.1}, stats.loguniform(1e-4, 0.1)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_continuous_distribution(read, name):
    keys, expected = DISTRIBUTIONS[name]
    values = draw(read(search(lr={"distribution": name, **keys})))
    assert stats.kstest(values, expected.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("name", "entry", "expected"),
    [
        ("epochs", {"min": 1, "max": 4}, {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}),
        (
            "batch_size",
            {"distribution": "q_uniform", "min": 16, "max": 64, "q": 16},
            {16: 1 / 6, 32: 1 / 3, 48: 1 / 3, 64: 1 / 6},  # the ends are half as wide
        ),
        (
            "batch_size",
            {"distribution": "q_log_uniform_values", "min": 8, "max": 32, "q": 8},
            {
                8: math.log(12 / 8) / math.log(4),
                16: math.log(20 / 12) / math.log(4),
                24: math.log(28 / 20) / math.log(4),
                32: math.log(32 / 28) / math.log(4),
            },
        ),
        (
            "dropout",
            {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.25},
            {0.0: 0.25, 0.25: 0.5, 0.5: 0.25},
        ),
        (
            "optimizer",
            {"values": ["sgd", "adam", "adamw"], "probabilities": [0.7, 0.1, 0.2]},
            {"sgd": 0.7, "adam": 0.1, "adamw": 0.2},
        ),
        ("dense", {"values": [[], 8, [8, 8]]}, {"[]": 1 / 3, "8": 1 / 3, "[8, 8]": 1 / 3}),
    ],
)
def test_discrete_distribution(read, name, entry, expected):
    values = draw(read(search(**{name: entry})))
    if name == "dense":
        values = [str(value) for value in values]
    elif name in ("epochs", "batch_size"):
        assert all(isinstance(value, int) for value in values)
    counts = [values.count(value) for value in expected]
    assert sum(counts) == len(values)
    shares = np.array(list(expected.values()))
    assert stats.chisquare(counts, shares / shares.sum() * len(values)).pvalue > 0.001


def test_nested_parameters_and_constants(read):
    definition = read(
        search(
            network={"parameters": {"dropout": {"values": [0.1]}, "batch_norm": {"value": False}}},
            lr={"min": 0.1, "max": 0.2},
        )
    )
    assert [p.name for p in definition.parameters] == ["lr", "dropout"]
    assert definition.constants == {"batch_norm": False}


def test_target_is_reached_from_the_right_side(read):
    content = search(lr={"value": 0.1}) | {
        "metric": {"name": "val_loss", "goal": "minimize", "target": 0.5}
    }
    assert read(content).reached(0.5) and not read(content).reached(0.6)
    content["metric"] = {"name": "val_accuracy", "goal": "maximize", "target": 0.5}
    assert read(content).reached(0.6) and not read(content).reached(0.4)


BAD = {  # text changed in GRID: line that the message names, and what it says
    ("method: grid", "method: gird"): (1, "'gird' is not supported, did you mean 'grid'"),
    ("method: grid", "method: bayes"): (1, "add run_cap"),
    ("method: grid", "methud: grid"): (1, "'methud' of a sweep .*did you mean 'method'"),
    ("val_accuracy,", "accuracy,"): (2, "did you mean 'val_accuracy'"),
    ("goal: maximize", "goal: minimize"): (2, "val_accuracy needs goal: maximize"),
    (", goal: maximize", ""): (2, "wandb minimizes by default"),
    ("maximize}", "maximize, target: high}"): (2, "target = 'high' should be a number"),
    ("  dropout:", "  drop_out:"): (4, "unknown parameter 'drop_out', did you mean 'dropout'"),
    ("  dropout:", "  name:"): (4, "the sweep's own"),
    ("values: [0.0, 0.2]", "values: [0.0, 1.5]"): (5, "dropout = 1.5 .* less than 1"),
    ("values: [0.0, 0.2]", "values: [0.0, 1e-1]"): (5, "YAML takes 1e-1 for text: write 1.0e-01"),
    ("values: [0.0, 0.2]", "values: 0.2"): (5, "should be a list"),
    ("values: [0.0, 0.2]", "values: []"): (5, "at least one"),
    ("values: [0.0, 0.2]", "value: [0.0, 0.2]"): (5, "should be a valid number"),
    ("values: [0.0, 0.2]", "min: 0.0"): (5, "needs max"),
    ("values: [0.0, 0.2]", "{min: 0.0, max: 0.2}"): (5, "a grid takes values"),
    ("values: [0.0, 0.2]", "vals: [0.0, 0.2]"): (5, "needs value, values"),
    ("values: [0.0, 0.2]", "distribution: normal"): (5, "'normal' is not supported"),
    ("values: [0.0, 0.2]", "{values: [0.0], probabilities: [1]}"): (5, "a grid takes values"),
    ("values: [0.0, 0.2]", "{values: [0.1], q: 2}"): (5, "takes no key 'q'"),
    ("values: [0.0, 0.2]", "{min: 0.3, max: 0.2}"): (5, "min 0.3 should be smaller than max"),
    ("  seed:", "  dropout:"): (6, "stands twice"),
    ("[0, 1, 2]}", "[0]}\n  epochs: {min: 1, max: 9000}"): (1, "18,000 runs would never end"),
    ("seed: {values: [0, 1, 2]}", "seed: {min: 0, max: 1000000000}"): (6, "over 10,000 values"),
    ("[0, 1, 2]}", "[0, 1, 2]"): (7, "no YAML"),
    ("[0, 1, 2]}\n", "[0]}\nrun_cap: 0\n"): (7, "run_cap = 0 should be a whole number"),
    ("[0, 1, 2]}\n", "[0]}\nearly_terminate: {type: median}\n"): (7, "should be hyperband"),
    ("[0, 1, 2]}\n", "[0]}\nearly_terminate: {type: hyperband}\n"): (7, "needs min_iter"),
    (
        "[0, 1, 2]}\n",
        "[0]}\nearly_terminate: {type: hyperband, min_iter: 1, eta: 1}\n",
    ): (7, "eta = 1 should be larger than 1"),
    (
        "[0, 1, 2]}\n",
        "[0]}\nearly_terminate: {type: hyperband, max_iter: 2, s: 1}\n",
    ): (7, "leaves no epoch"),
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change[1].strip())
def test_bad_file_is_one_sentence_with_its_line(read, change):
    line, text = BAD[change]
    old, new = change
    assert old in GRID
    with pytest.raises(ConfigError, match=text) as error:
        read(GRID.replace(old, new, 1))
    assert str(error.value).startswith(f"sweep.yaml, line {line}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "method: grid", "- a", "method: [grid]\nparameters: {}"])
def test_no_sweep_at_all(read, content):
    with pytest.raises(ConfigError, match="sweep.yaml, line 1"):
        read(content)


def test_combinations_that_cannot_work(read):
    with pytest.raises(ConfigError, match="norm_after_pool needs batch_norm"):
        read(search(batch_norm={"value": False}, norm_after_pool={"value": True}))
    with pytest.raises(ConfigError, match="val_fraction above 0"):
        read(search(lr={"value": 0.1}), Config(val_fraction=0))


def test_combinations_that_work_are_found_behind_many_that_do_not(read):
    many = {"values": [round(0.01 * n, 2) for n in range(1, 16)]}
    content = search(batch_norm={"values": [False, True]}, dropout=many, lr=many,
                     norm_after_pool={"value": True})  # fmt: skip
    assert read(content).example["batch_norm"] is True
    content["parameters"]["batch_norm"] = {"value": False}
    with pytest.raises(ConfigError, match="norm_after_pool needs batch_norm"):
        read(content)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "first.yaml").touch()
    with pytest.raises(FileNotFoundError, match="did you mean 'first.yaml'"):
        read_sweep(tmp_path / "frist.yaml", Config())


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_of_the_repository_can_be_read(path):
    definition = read_sweep(path, Config())
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and definition.content == yaml.safe_load(text)

"""Findings of sweeps: pairs, intervals, plans and importance, on run folders written by hand."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from helpers.runs.config import NO_EFFECT, Config
from helpers.runs.folder import Run
from helpers.sweep import figures, findings
from helpers.sweep.findings import Comparison, compare, importance, plan, varied


@pytest.fixture
def write(tmp_path):
    """Write a run's folder with a value of the metric at each epoch."""

    def write(values, stopped_at=None, **parameters):
        config = Config(runs_root=str(tmp_path), **parameters)
        run = Run(tmp_path / config.id)
        run.folder.mkdir()
        run.write_json("config.json", config.model_dump())
        run.write_csv("history.csv", [{"epoch": i + 1, "val_accuracy": v, "val_loss": 1 - v}
                                      for i, v in enumerate(values)])  # fmt: skip
        minute = sum(1 for _ in tmp_path.iterdir())
        stopped = {"stopped_at": stopped_at} if stopped_at else {}
        run.write_json("metrics.json", {"train_seconds": 30.0})
        run.set_status("finished", **stopped)
        status = run.status | {"time": f"2026-01-01T00:{minute:02d}:00.000+00:00"}
        run.write_json("status.json", status)
        return run

    return write


@pytest.fixture
def grid(write):
    """A full grid whose accuracy is known: batch norm adds .1, dropout takes .1 of its value."""
    noise = np.random.default_rng(0)
    return [
        write([0.1, 0.5 + 0.1 * norm - 0.1 * dropout + noise.normal(0, 0.003)],
              batch_norm=norm, dropout=dropout, seed=seed)
        for norm, dropout, seed in itertools.product([False, True], [0.0, 0.2], [0, 1, 2, 3])
    ]  # fmt: skip


def test_varied_parameters_only(grid):
    assert varied(grid) == {
        "batch_norm": [False, True],
        "dropout": [0.0, 0.2],
        "seed": [0, 1, 2, 3],
    }


def test_comparison_finds_the_known_effects(grid):
    found = {c.parameter: c for c in compare(grid) if c.parameter != "seed"}
    assert (found["batch_norm"].value, found["batch_norm"].baseline) == (True, False)
    assert found["batch_norm"].pairs == found["dropout"].pairs == 8
    assert found["batch_norm"].mean == pytest.approx(0.1, abs=0.005)
    assert found["dropout"].mean == pytest.approx(-0.02, abs=0.005)
    assert found["batch_norm"].is_evidence and found["dropout"].is_evidence
    seeds = [c for c in compare(grid) if c.parameter == "seed"]
    assert len(seeds) == 6 and all(c.pairs == 4 and not c.is_evidence for c in seeds)


def test_comparison_by_hand(write):
    values = [(0.5, True, 0), (0.4, False, 0), (0.7, True, 1), (0.3, False, 1), (0.9, True, 2)]
    runs = [write([v], batch_norm=norm, seed=seed) for v, norm, seed in values]
    (norm,) = [c for c in compare(runs) if c.parameter == "batch_norm"]
    assert norm.pairs == 2 and norm.mean == pytest.approx((0.1 + 0.4) / 2)
    (norm,) = [c for c in compare(runs, "val_loss") if c.parameter == "batch_norm"]
    assert norm.mean == pytest.approx(-(0.1 + 0.4) / 2)


def test_run_ended_early_is_compared_up_to_there(write):
    runs = [write([0.2, 0.9], batch_norm=True), write([0.3], stopped_at=1, batch_norm=False)]
    (norm,) = compare(runs)
    assert norm.mean == pytest.approx(-0.1)


def test_runs_that_differ_in_two_parameters_are_no_pair(write):
    runs = [write([0.2], batch_norm=True, seed=0), write([0.3], batch_norm=False, seed=1)]
    assert [(c.parameter, c.pairs) for c in compare(runs)] == [("batch_norm", 0), ("seed", 0)]
    assert str(compare(runs)[0]) == "Batch norm: no evidence, 0 pairs of at least 6"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "Batch norm: +3.1 points [1.0, 5.2], 14 pairs"),
        ({"low": -0.01}, "Batch norm: no evidence, +3.1 points [-1.0, 5.2], 14 pairs"),
        ({"pairs": 1}, "Batch norm: no evidence, 1 pair of at least 6"),
        (
            {"parameter": "dropout", "value": 0.3, "baseline": 0.2},
            "Dropout 0.3 instead of 0.2: +3.1 points [1.0, 5.2], 14 pairs",
        ),
        (
            {"parameter": "filters", "value": [32] * 5, "baseline": [64, 32, 16, 8, 4]},
            "Filters 32 x 5 instead of 64, 32, 16, 8, 4: +3.1 points [1.0, 5.2], 14 pairs",
        ),
        ({"metric": "val_loss"}, "Batch norm: +0.031 [0.010, 0.052], 14 pairs"),
    ],
)
def test_sentence(change, text):
    keys = ("parameter", "value", "baseline", "metric", "mean", "low", "high", "pairs")
    plain = ("batch_norm", True, False, "val_accuracy", 0.031, 0.01, 0.052, 14)
    assert str(Comparison(**dict(zip(keys, plain, strict=True)) | change)) == text


def pairs_of(configs, parameter, values):
    rest = [json.dumps(c.model_dump(exclude=NO_EFFECT | {parameter})) for c in configs]
    both = [{r for r, c in zip(rest, configs, strict=True) if getattr(c, parameter) == v}
            for v in values]  # fmt: skip
    return len(both[0] & both[1])


def test_plan_gives_every_parameter_its_pairs(write):
    runs = [
        write([0.3], batch_norm=norm, dropout=dropout, seed=seed)
        for norm, dropout, seed in [
            (True, 0.0, 0), (False, 0.2, 1), (True, 0.2, 2), (False, 0.0, 3), (True, 0.0, 4),
            (True, 0.2, 5),
        ]
    ]  # fmt: skip
    planned = plan(runs, pairs=4)
    everything = [run.config for run in runs] + planned
    assert pairs_of(everything, "batch_norm", [True, False]) >= 4
    assert pairs_of(everything, "dropout", [0.0, 0.2]) >= 4
    assert len({c.id for c in everything}) == len(everything)
    # Eight pairs of four runs each at best: a planned run can complete one pair per parameter.
    assert len(planned) <= 8


def test_plan_is_empty_where_pairs_are_enough(grid):
    assert plan(grid, pairs=4) == []


def test_plan_is_smallest_for_two_parameters(write):
    """Two runs at opposite corners: two runs more give each parameter two pairs, not four."""
    runs = [write([0.3], batch_norm=True, dropout=0.0), write([0.4], batch_norm=False, dropout=0.2)]
    planned = {(c.batch_norm, c.dropout) for c in plan(runs, pairs=2)}
    assert planned == {(True, 0.2), (False, 0.0)}


def test_plan_of_runs_without_validation_images_goes_by_their_own_metric(write):
    """Of the two that could be completed first, the one with the smaller loss is."""
    runs = [write([0.3], batch_norm=norm, dropout=d) for norm, d in [(True, 0.0), (False, 0.2)]]
    for run, loss in zip(runs, (0.1, 0.9), strict=True):
        run.write_csv("history.csv", [{"epoch": 1, "train_loss": loss}])
        run.set_status("finished")
    (first, second) = plan(runs, 2, "train_loss")
    assert [(c.batch_norm, c.dropout) for c in (first, second)] == [(False, 0.0), (True, 0.2)]


def test_plan_leaves_out_ranges_and_what_cannot_work(write):
    runs = [write([0.3], lr=0.001 * (i + 1), dense=8 * (1 + i % 2), batch_norm=True,
                  norm_after_pool=i < 3) for i in range(6)]  # fmt: skip
    planned = plan(runs, pairs=6)
    assert {c.lr for c in planned} == {run.config.lr for run in runs}


def test_importance_finds_what_mattered(grid):
    rows = importance(grid)
    assert [row["name"] for row in rows][:2] == ["batch_norm", "dropout"]
    assert sum(row["importance"] for row in rows) == pytest.approx(1)
    assert rows[0]["correlation"] > 0.9 and rows[1]["correlation"] < 0


def test_importance_of_choices_has_a_row_for_each_value(write):
    good = {"relu": 0.3, "gelu": 0.5, "silu": 0.3}
    runs = [write([good[name]], activation=name, seed=seed) for name in good for seed in (0, 1)]
    rows = {row["name"]: row for row in importance(runs)}
    assert rows["activation gelu"]["correlation"] == pytest.approx(1)
    assert rows["activation relu"]["correlation"] == pytest.approx(-0.5)
    assert rows["activation gelu"]["importance"] > 0.5


def test_importance_of_runs_that_are_all_equally_good(write):
    assert importance([write([0.3], seed=seed) for seed in (0, 1)]) == []


def test_panels_draw_what_is_in_the_folders(grid, write):
    runs = [*grid, write([0.2], stopped_at=1, batch_norm=True, filters=[8] * 5)]
    figure = figures.by_time(runs)
    best_so_far = figure.axes[0].lines[0].get_ydata()
    values = [max(row["val_accuracy"] for row in run.history) for run in runs]
    assert list(best_so_far) == list(np.maximum.accumulate(values))
    to_the_end, early = figure.axes[0].collections
    assert len(to_the_end.get_offsets()) == len(grid) and len(early.get_offsets()) == 1
    lines = figures.parallel_coordinates(runs).axes[0].patches
    assert len(lines) == len(runs)
    assert len(figures.importance_table(runs).axes[0].patches) == len(importance(runs))
    assert isinstance(figures.comparison_table(compare(runs)), Figure)


def test_panels_take_a_single_run(write):
    panels = (figures.by_time, figures.parallel_coordinates, figures.importance_table)
    for seed, draw in enumerate(panels):
        draw([write([0.2], seed=seed)]).draw_without_rendering()


def test_interaction_is_the_difference_of_differences(write):
    """Batch norm adds .3 with the large rate and .1 with the small one."""
    noise = iter([0.0, 0.01, -0.01, 0.005, 0.0, -0.005, 0.01, 0.0, 0.002, -0.002, 0.0, 0.004])
    runs = [
        write([0.3 + (0.3 if lr > 0.001 else 0.1) * norm + next(noise)], batch_norm=norm, lr=lr,
              seed=seed)
        for seed in range(3) for norm in (True, False) for lr in (0.0001, 0.01)
    ]  # fmt: skip
    runs.append(write([0.9], batch_norm=True, lr=0.0001, dropout=0.3))  # in no square of four
    found = next(
        x for x in findings.interactions(runs) if {x.first, x.second} == {"batch_norm", "lr"}
    )
    assert found.squares == 3 and found.is_evidence
    assert found.mean == pytest.approx(0.2, abs=0.02) and found.low < found.mean < found.high
    assert isinstance(figures.interaction(runs, "batch_norm", "lr"), Figure)


def test_an_interaction_says_its_unit_and_whether_it_is_one():
    found = findings.Interaction("batch_norm", "lr", "val_accuracy", 0.199, 0.0503, 0.3481, 4)
    assert str(found) == (
        "Batch norm and lr together: +19.9 points [5.0, 34.8], 4 squares: a hint of an interaction"
    )
    found = findings.Interaction("dropout", "lr", "val_loss", 0.1, -0.05, 0.25, 1)
    assert str(found) == (
        "Dropout and lr together: +0.100 [-0.050, 0.250], 1 square: no evidence of an interaction"
    )


def test_two_equal_squares_are_luck_and_no_hint():
    found = findings.Interaction("dropout", "lr", "val_accuracy", 0.02, 0.02, 0.02, 2)
    assert not found.is_evidence and str(found).endswith("no evidence of an interaction")


def test_one_instead_of_zero_is_named_and_yes_instead_of_no_is_not():
    for value, baseline, words in (1, 0, "Warmup 1 instead of 0:"), (True, False, "Warmup:"):
        found = Comparison("warmup", value, baseline, "val_accuracy", 0.02, 0.01, 0.03, 4)
        assert str(found).startswith(words)


def test_interaction_of_runs_that_were_ended_early_is_that_of_the_epochs_of_all(write):
    runs = [
        write([0.3, 0.9], batch_norm=norm, dropout=dropout)
        for norm, dropout in [(True, 0.0), (True, 0.2), (False, 0.0)]
    ]
    runs.append(write([0.3], stopped_at=1, batch_norm=False, dropout=0.2))
    (found,) = findings.interactions(runs)
    assert found.squares == 1 and found.mean == 0


def test_no_square_is_no_interaction(write):
    runs = [write([0.3], batch_norm=norm, dropout=d) for norm, d in [(True, 0.0), (False, 0.2)]]
    (found,) = findings.interactions(runs)
    assert found.squares == 0 and not found.is_evidence


def test_a_search_is_compared_with_every_random_order():
    """Of four values in a random order, the largest comes first in 1 of 4, last in 1 of 4."""
    pool = [0.1, 0.1, 0.1, 0.9]
    best, chance = findings.search_against_random([0.9, 0.1], pool)
    assert best.shape == (10_000, 2) and chance == pytest.approx(1 / 4, abs=0.02)
    assert best[:, 1].mean() == pytest.approx(0.5 * 0.9 + 0.5 * 0.1, abs=0.02)
    assert findings.search_against_random([0.1, 0.1], pool)[1] == 1
    assert isinstance(figures.against_random([0.9, 0.1], best), Figure)


def test_lines_of_parallel_coordinates_never_meet_on_an_axis(grid):
    lines = [
        patch.get_path().vertices for patch in figures.parallel_coordinates(grid).axes[0].patches
    ]
    parameters = len(varied(grid))
    for column in range(parameters):
        heights = sorted(line[3 * column][1] for line in lines)
        assert min(np.diff(heights)) > 0.005 and heights[0] >= 0 and heights[-1] <= 1

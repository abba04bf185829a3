"""Rows of a report side by side: what differs in one choice is compared, on the same images."""

import pytest

from helpers.report import comparisons
from helpers.report.rows import Row, config_of
from helpers.runs.config import Config
from helpers.runs.folder import Run

NOTEBOOK = "02_train_from_scratch"


def make_row(name, grid=None, **parameters):
    return Row(report="R9", name=name, notebook=NOTEBOOK, parameters=parameters, grid=grid or {})


def save(run, config, right, split="val"):
    """Write a finished run of two epochs whose k-th image is right as `right` says."""
    run.folder.mkdir(parents=True)
    run.write_json("config.json", config.model_dump())
    metrics = {"val": {"accuracy": 0.5}, "trainable": 5, "params": 9, "train_seconds": 1.0}
    run.write_json("metrics.json", metrics | {split: {"accuracy": sum(right) / len(right)}})
    run.write_csv("history.csv", [
        {"epoch": n, "train_loss": 2.0, "train_accuracy": 0.1, "val_loss": 1.5, "val_accuracy": 0.5}
        for n in (1, 2)
    ])  # fmt: skip
    run.write_predictions(split, [
        {"split": split, "path": str(n), "label": "a", "predicted": "a" if hit else "b"}
        for n, hit in enumerate(right)
    ])  # fmt: skip
    run.set_status("finished")
    return run


@pytest.fixture
def groups(tmp_path):
    rows = [
        make_row("base", lr=0.1),
        make_row("dropout", lr=0.1, dropout=0.5),
        make_row("both", lr=0.2, dropout=0.5),
        make_row("split", lr=0.1, val_fraction=0.3),
    ]
    hits = {"base": [1] * 30 + [0] * 10, "dropout": [1] * 10 + [0] * 30, "both": [1] * 40,
            "split": [1] * 41}  # fmt: skip
    for row in rows:
        for name, parameters in row.points.items():
            save(Run(tmp_path / "R9" / name), config_of(row, parameters), hits[row.name])
    found = comparisons.measured(rows, tmp_path)
    assert list(found) == [row.name for row in rows]
    return found


def test_rows_that_differ_in_one_choice_are_compared(groups):
    """base and split differ in the validation images, base and both in two choices."""
    first, second = comparisons.one_choice_changed(groups)
    assert first.startswith("dropout against base (dropout 0.5 instead of 0.2): -50.0 points [")
    assert first.endswith("on validation images, worse for these two networks alone.")
    assert second.startswith("both against dropout (lr 0.2 instead of 0.1): +75.0 points [")
    assert second.endswith("on validation images, better for these two networks alone.")


def test_a_row_s_grid_is_compared_value_by_value(tmp_path):
    rows = [make_row("base", lr=0.1), make_row("rates", {"lr": [0.2, 0.4], "seed": [0, 1]})]
    for row in rows:
        for name, parameters in row.points.items():
            right = [1] * {0.1: 20, 0.2: 10, 0.4: 30}[parameters["lr"]]
            save(Run(tmp_path / "R9" / name), config_of(row, parameters),
                 right + [0] * (40 - len(right)))  # fmt: skip
    groups = comparisons.measured(rows, tmp_path)
    assert {name: len(runs) for name, runs in groups.items()} == {
        "base": 1, "rates (lr 0.2)": 2, "rates (lr 0.4)": 2}  # fmt: skip
    first, second, third = comparisons.one_choice_changed(groups)
    assert first.startswith("rates (lr 0.2) against base (lr 0.2 instead of 0.1): -25.0 points")
    assert second.startswith("rates (lr 0.4) against base (lr 0.4 instead of 0.1): +25.0 points")
    assert third.startswith("rates (lr 0.4) against rates (lr 0.2)")


def test_seeds_are_compared_in_pairs_and_on_the_test_set_where_it_is_open(tmp_path):
    groups = {}
    for name, dropout, hits in ("a", 0.0, (20, 22)), ("b", 0.5, (20, 22)):
        groups[name] = [
            save(Run(tmp_path / f"{name}{seed}"), Config(dropout=dropout, seed=seed),
                 [1] * hits[seed] + [0] * 20, "test")
            for seed in (0, 1)
        ]  # fmt: skip
    (line,) = comparisons.one_choice_changed(groups)
    assert ": +0.0 points" in line and line.endswith("on test images, no evidence.")


def test_rows_that_saw_other_images_are_not_compared(groups):
    """Somebody added images between two trainings."""
    (run,) = groups["dropout"]
    others = [row | {"path": f"new/{row['path']}"} for row in run.predictions]
    run.write_predictions("val", others)
    assert comparisons.one_choice_changed(groups) == []


def test_figures_are_drawn_of_several_rows(groups):
    (text, curves), = comparisons.draw(groups)  # fmt: skip
    assert [line.get_label() for line in curves.axes[0].lines] == list(groups)
    assert comparisons.draw({"base": groups["base"]}) == []

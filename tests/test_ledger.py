"""The ledger: verdicts on hand-computed cases, every stated figure once, tables that keep them."""

import csv
import io
import json

import pytest

from helpers.report import ledger
from helpers.report.ledger import Entry, entries_of, judge
from helpers.report.rows import Row, config_of, load_all
from helpers.runs.config import Config
from helpers.runs.folder import Run

NOTEBOOK = "02_train_from_scratch"


def make_row(**given):
    row = dict(report="R5", name="row", section="1", notebook=NOTEBOOK)
    return Row(**{**row, **given})


def make_run(folder, config, **metrics):
    """Write what a finished training leaves."""
    folder.mkdir(parents=True)
    run = Run(folder)
    run.write_json("config.json", config.model_dump())
    run.write_json("metrics.json", metrics)
    run.set_status("finished")
    return run


@pytest.mark.parametrize(
    ("stated", "values", "verdict"),
    [
        (40.0, (), "not run"),
        (40.0, (41.9,), "reproduced"),  # one run: only the 2 points count
        (40.0, (42.1,), "better"),
        (40.0, (37.9,), "worse"),
        (40.0, (42.0,), "reproduced"),  # exactly 2 points
        (40.0, (40.0, 50.0), "better"),  # mean 45; two runs say nothing about their spread
        # mean 45, sample variance (25 + 0 + 25) / 2 = 25: 2 std = 10 points
        (40.0, (40.0, 45.0, 50.0), "reproduced"),
        (35.1, (40.0, 45.0, 50.0), "reproduced"),  # 9.9 points away
        (34.9, (40.0, 45.0, 50.0), "better"),  # 10.1 points away
        (55.1, (40.0, 45.0, 50.0), "worse"),
        # nearly equal seeds: 2 std = .2 points, but 2 points always pass
        (43.0, (44.9, 45.0, 45.1), "reproduced"),
        (40.0, (30.0, 45.0, 50.0), "shown"),  # 10.4: they disagree among themselves
        (42.9, (44.9, 45.0, 45.1), "better"),
        ("> 80", (91.0,), "reproduced"),  # a bound holds
        ("> 80", (77.0,), "worse"),
    ],
)
def test_verdict_on_an_accuracy(stated, values, verdict):
    assert judge("test_accuracy", stated, values) == verdict


@pytest.mark.parametrize(
    ("stated", "values", "right", "verdict"),
    [
        (2521354, (2521354,), None, "equal"),
        (2521354, (2521355,), None, "differs"),  # a count is never nearly right
        (9100000, (132863336,), 132863336, "wrong in the report"),
        (9100000, (132863335,), 132863336, "differs"),  # neither the report's nor the right one
        (9100000, (), 132863336, "not run"),
        ("5.3 M", (5288548,), None, "equal"),  # rounded, and within a unit of its last digit
        ("3.4 M", (3504872,), None, "differs"),
        ("3.4 M", (3504872,), 3504872, "wrong in the report"),
        ("< 10 M", (2278604,), None, "equal"),
        ("< 1 M", (1248424,), 1248424, "wrong in the report"),
    ],
)
def test_verdict_on_a_count(stated, values, right, verdict):
    assert judge("parameters", stated, values, right) == verdict


@pytest.mark.parametrize("measure", ["train_loss", "test_loss", "epochs", "runs"])
def test_losses_and_epochs_get_no_verdict(measure):
    assert judge(measure, 1.0, (9.0,)) not in (*ledger.GOOD, *ledger.BAD, "not run")


def test_runs_of_a_row_are_averaged_over_its_seeds(tmp_path):
    row = make_row(
        parameters={"epochs": 3},
        grid={"seed": [0, 1, 2]},
        stated={"test_accuracy": 61.0, "val_accuracy": 10.0, "epochs": 3},
    )
    for (name, parameters), accuracy in zip(row.points.items(), (0.57, 0.6, 0.63), strict=True):
        make_run(tmp_path / "R5" / name, config_of(row, parameters), epochs=3,
                 test={"accuracy": accuracy}, val={"accuracy": 0.1})  # fmt: skip
    test, val, epochs = entries_of(row, tmp_path)
    assert test.values == pytest.approx((57, 60, 63))
    assert test.mean == pytest.approx(60) and test.std == pytest.approx(3)
    assert test.verdict == val.verdict == "reproduced"
    assert epochs.values == (3, 3, 3)
    cells = test.cells()
    assert (cells["measured"], cells["std"], cells["runs"]) == ("60.00", "3.00", "3")
    assert cells["difference"] == "-1.00"


def test_run_with_other_parameters_is_no_measurement(tmp_path):
    row = make_row(parameters={"epochs": 3}, stated={"test_accuracy": 50.0})
    metrics = {"epochs": 1, "test": {"accuracy": 0.5}}
    make_run(tmp_path / "R5" / "row", Config(epochs=1), **metrics)
    (entry,) = entries_of(row, tmp_path)
    assert entry.verdict == "not run" and entry.values == ()


def test_sweep_is_measured_by_its_best_run_with_the_file_s_values(tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text("parameters: {epochs: {value: 3}, augment: {value: []}, lr: {values: [1]}}")
    row = make_row(notebook="03_sweep", parameters={"sweep": str(file)},
                   stated={"runs": 3, "val_accuracy": 42.3})  # fmt: skip
    folder = tmp_path / "R5" / "sweeps" / "search"
    for number, accuracy in enumerate((0.2, 0.43, 0.1)):
        config = Config(epochs=3, augment=[], lr=0.1 + number)
        make_run(folder / str(number), config, epochs=3, val={"accuracy": accuracy})
    make_run(folder / "longer", Config(epochs=30, augment=[]), epochs=30, val={"accuracy": 0.9})
    runs, accuracy = entries_of(row, tmp_path)
    assert runs.values == (3,) and runs.verdict == ledger.NOT_JUDGED
    assert accuracy.values == pytest.approx((43.0,)) and accuracy.verdict == "reproduced"


def test_run_on_other_data_never_gets_a_verdict(tmp_path):
    row = make_row(stated={"test_accuracy": 50.0, "epochs": 20})
    metrics = {"epochs": 20, "test": {"accuracy": 0.5}}
    make_run(tmp_path / "R5-tiny_nature" / "row", Config(), **metrics)
    assert [entry.verdict for entry in entries_of(row, tmp_path)] == ["not run"] * 2


def test_counts_are_read_from_the_row_s_folder(tmp_path):
    row = make_row(
        notebook="01_count_flops_and_params",
        stated={"parameters": 12, "parameters + moving_statistics": 15, "flops": 7},
        wrong={"flops": {"right": 8, "why": "It forgets one."}},
        derived={"macs": 4},
    )
    assert [entry.verdict for entry in entries_of(row, tmp_path)] == ["not run"] * 4
    folder = tmp_path / "R5" / "row"
    folder.mkdir(parents=True)
    counts = {"parameters": 12, "moving_statistics": 3, "flops": 8, "macs": 4}
    (folder / "counts.json").write_text(json.dumps(counts))
    found = entries_of(row, tmp_path)
    verdicts = [entry.verdict for entry in found]
    assert verdicts == ["equal", "equal", "wrong in the report", "equal"]
    assert [entry.kind for entry in found] == ["stated"] * 3 + ["derived"]
    assert found[2].remark == "It forgets one."


def test_row_that_has_not_run_says_how_to_run_it(tmp_path):
    (entry,) = entries_of(make_row(stated={"test_accuracy": 50.0}), tmp_path)
    assert "python -m helpers.report.batch experiments/r5.yaml --rows row" in entry.remark


def test_every_stated_figure_of_the_reports_is_an_entry(tmp_path):
    entries = ledger.ledger(load_all(), tmp_path)
    known = {(entry.report, entry.row, entry.measure): entry.stated for entry in entries}
    assert len(known) == len(entries)
    # by hand from the reports
    assert known["R1", "best", "accuracy"] == 39.54
    assert known["R3", "sweep", "val_accuracy"] == 42.3
    assert known["R4", "b2_last_block_dropout.5", "test_accuracy"] == 54.69
    assert known["R5", "scratch_lr.01", "test_accuracy"] == 27.5
    assert {entry.verdict for entry in entries} == {"not run"}


def test_tables_hold_the_ledger():
    entries = [
        Entry("R5", "a|b", "test_accuracy", "stated", 50.0, (49.0, 50.5, 51.0), "reproduced"),
        Entry("R1", "counts", "parameters", "stated", 2521354, (), "not run", "run it, please"),
    ]
    first, second = csv.DictReader(io.StringIO(ledger.to_csv(entries)))
    assert first["row"] == "a|b" and float(first["measured"]) == pytest.approx(50.17)
    assert float(first["std"]) == pytest.approx(1.04) and first["verdict"] == "reproduced"
    assert second["measured"] == "" and second["remark"] == "run it, please"
    lines = ledger.to_markdown(entries).splitlines()
    assert len(lines) == 4 and r"a\|b" in lines[2]
    bars = [line.replace(r"\|", "").count("|") for line in lines]
    assert bars == [len(ledger.COLUMNS) + 1] * 4

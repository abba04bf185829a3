"""Recorded measurements stay what they were, apart from others, and comparable with fresh ones."""

import json

import pytest
from test_report import ROWS, Page, save_run

from helpers.report import ledger, page, results
from helpers.report.rows import config_of
from helpers.runs.folder import Run

ROW = ROWS["R5", "scratch_lr.01"]  # three seeds; stated: 27.5 % test accuracy


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Make a run of each seed, and a folder for records."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for (name, parameters), accuracy in zip(ROW.points.items(), (0.27, 0.28, 0.29), strict=True):
        folder = tmp_path / "runs" / "R5" / name
        save_run(folder, config_of(ROW, parameters), test={"accuracy": accuracy})
    return tmp_path / "runs"


def record(runs, seeds=(0, 1, 2), remark=""):
    names = [f"R5/scratch_lr.01-seed{seed}" for seed in seeds]
    results.main(["record", *names, "--runs-root", str(runs), "--remark", remark])


def test_a_line_says_how_to_make_the_run_again(runs):
    record(runs, remark="loaded machine")
    first, second, third = results.load()
    assert first["command"].endswith("batch experiments/r5.yaml --rows scratch_lr.01-seed0")
    assert (first["test_accuracy"], first["seed"], first["commit"]) == ("0.27", "0", "abcdef0")
    assert first["packages"] == "torch==9.8.7" and first["remark"] == "loaded machine"
    assert json.loads(third["config"])["model"] == "alexnet" and third["seed"] == "2"
    record(runs, [1])
    assert len(results.load()) == 3 and results.load()[1]["remark"] == ""


def test_records_of_other_code_are_never_averaged_with_these(runs, tmp_path):
    record(runs)
    environment = Run(runs / "R5" / "scratch_lr.01-seed2").environment
    Run(runs / "R5" / "scratch_lr.01-seed2").write_json(
        "environment.json", environment | {"commit": "0123456"}
    )
    record(runs, [2])
    entries = [e for e in ledger.recorded_entries(ROW) if e.measure == "test_accuracy"]
    assert sorted(len(entry.values) for entry in entries) == [1, 2]
    assert {"abcdef0" in entry.remark for entry in entries} == {True, False}
    assert all(entry.verdict == "reproduced" and entry.recorded for entry in entries)
    local = [e for e in ledger.entries_of(ROW, runs) if e.measure == "test_accuracy"]
    assert [len(entry.values) for entry in local] == [3] and not local[0].recorded
    text = Page(page.write_report(runs, tmp_path / "out").read_text()).sections["The ledger"]
    assert "2 recorded, abcdef0" in text and "commit 0123456, A device" in text
    empty = tmp_path / "empty"
    text = Page(page.write_report(empty, tmp_path / "out").read_text()).sections["The ledger"]
    assert "1 recorded, 0123456" in text and "not run here: scratch_lr.1, scratch_lr.01," in text


def test_a_record_of_other_parameters_is_none_of_the_row(runs):
    record(runs)
    path = results.RESULTS / "runs.csv"
    text = path.read_text().replace('""lr"": 0.01', '""lr"": 0.02')
    path.write_text(text + "\n")
    assert ledger.recorded_entries(ROW) == []


def test_every_record_still_counts_for_its_row_and_says_how_it_was_made():
    lines = results.load()
    counted = [line["run"] for row in ROWS.values()
               for found in results.recorded(row).values() for line in found]  # fmt: skip
    assert sorted(counted) == sorted(line["run"] for line in lines) and len(lines) >= 28
    for line in lines:
        assert all(line[key] for key in ("device", "processor", "threads", "packages", "commit"))
        assert line["command"].endswith(f"--rows {line['run'].partition('/')[2]}")


def test_fresh_runs_are_set_beside_their_records(runs, capsys):
    record(runs)
    run = Run(runs / "R5" / "scratch_lr.01-seed1")
    run.write_json("metrics.json", run.metrics | {"test": {"accuracy": 0.31}})
    results.main(["compare", "--runs-root", str(runs)])
    said = capsys.readouterr().out
    row = "| R5/scratch_lr.01-seed1 | test accuracy | 0.2800 | 0.3100 | +0.0300 | same code"
    assert row in said and "| 0.2700 | 0.2700 | +0.0000 |" in said
    with pytest.raises(SystemExit):
        results.main(["compare", "R5/none", "--runs-root", str(runs)])
    assert "R5/none has no record; recorded are R5/scratch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        results.main(["compare", "R5/scratch_lr.01-seed1", "--runs-root", str(runs / "none")])
    assert "R5/scratch_lr.01-seed1 has not finished here" in capsys.readouterr().err
    (run.folder / "metrics.json").write_text("{")
    with pytest.raises(SystemExit):
        results.main(["compare", "--runs-root", str(runs)])
    assert "metrics.json is damaged" in capsys.readouterr().err


def test_recorded_counts_are_the_same_here(runs, capsys):
    folder = runs / "R5" / "counts_resnet34"
    folder.mkdir()
    (folder / "counts.json").write_text('{"parameters": 21336485, "fc.parameters": 51813}')
    results.main(["record", "--runs-root", str(runs)])
    (folder / "counts.json").write_text('{"parameters": 21336486, "fc.parameters": 51813}')
    results.main(["compare", "--runs-root", str(runs)])
    said = capsys.readouterr().out
    assert "| R5/counts_resnet34 | parameters | 21336485 | 21336486 | +1 | differs |" in said
    assert "1 of 2 recorded counts are the same here" in said
    results.main(["record", "--runs-root", str(runs / "elsewhere")])  # counts nothing, loses none
    assert len(results.load("counts.csv")) == 2

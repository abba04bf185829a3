"""Rows of the reports: all can run as written, and mistakes in a file stop with one sentence."""

import json
import re
from fnmatch import fnmatch

import pytest
import yaml

from helpers.count.algebra import cs6910_operations
from helpers.count.layers import count, without_weights
from helpers.count.record import write_counts
from helpers.models import build, freeze
from helpers.report import rows
from helpers.report.rows import ExperimentError, fits, load, load_all, number
from helpers.runs.config import Config
from helpers.runs.folder import Run

ROWS = load_all()
COUNTED = [row for row in ROWS if row.counts]
ROW = {
    "name": "a",
    "notebook": "02_train_from_scratch",
    "parameters": {"lr": 0.1, "epochs": 2},
    "stated": {"test_accuracy": 9.7},
}


def name_of(row):
    return f"{row.report}-{row.name}"


@pytest.fixture
def write(tmp_path):
    def write(*rows, **more):
        path = tmp_path / "r9.yaml"
        path.write_text(yaml.safe_dump({"report": "R9", "title": "t", "rows": rows, **more}))
        return path

    return write


def save_run(folder, **parameters):
    folder.mkdir(parents=True)
    run = Run(folder)
    run.write_json("config.json", Config(**parameters).model_dump())
    run.set_status("finished")


def test_every_report_is_there():
    assert {row.report for row in ROWS} == {"R1", "R2", "R3", "R4", "R5"}
    assert len({(row.report, point) for row in ROWS for point in row.points}) == sum(
        len(row.points) for row in ROWS
    )


def test_all_rows_of_the_five_tables_are_there():
    """25 lines of R5's table, 9 of R4's, 4 of R2's: each states a test accuracy of its own."""
    tables = {"R5": 25, "R4": 9, "R2": 4}
    stated = {
        report: [
            row.stated["test_accuracy"]
            for row in ROWS
            if row.report == report and "test_accuracy" in row.stated
        ]
        for report in tables
    }  # fmt: skip
    assert {report: len(values) for report, values in stated.items()} == tables
    assert sum(stated["R5"]) == pytest.approx(
        9.7 + 27.5 + 15.4 + 16.57 + 23.25 + 25.89  # phase 1
        + 91 + 91.6 + 96.2 + 96.9 + 96.4 + 94.5 + 96.8  # 2 and 3
        + 90.8 + 91 + 97.1 + 94.8 + 97 + 96.6 + 96.6 + 97.1 + 96.9 + 96.5 + 97.9 + 98.1
    )  # fmt: skip


@pytest.mark.parametrize("row", COUNTED, ids=name_of)
def test_counts_are_the_reports_or_shown_wrong(row, tmp_path):
    config = rows.config_of(row, row.parameters)
    with without_weights():
        model = build(config, row.parameters["num_classes"])
    freeze(model, config.freeze)
    operations = cs6910_operations(config, 10) if config.model == "five_blocks" else []
    counts = count(model, config.image_size)
    write_counts(tmp_path / row.report / row.name, model, counts, operations)
    found = rows.counts_of(row, tmp_path)
    for _, measure, figure in row.figures():
        wrong = row.wrong.get(measure)
        assert found[measure] == wrong.right if wrong else fits(figure, found[measure]), measure
        assert not wrong or not fits(figure, found[measure])


def test_counts_of_a_row_that_has_not_run(tmp_path):
    assert rows.counts_of(COUNTED[0], tmp_path) is None


def test_grid_makes_an_execution_of_each_combination(write):
    (row,) = load(write({**ROW, "grid": {"seed": [0, 1], "lr": [0.1, 0.01, 0.001]}}))
    assert len(row.points) == 6
    assert row.points["a-lr0.01-seed1"] == {"lr": 0.01, "epochs": 2, "seed": 1}


def test_parameters_may_be_a_file_beside_it(write, tmp_path):
    (tmp_path / "given.yaml").write_text("lr: 0.5\n")
    (row,) = load(write({**ROW, "parameters": "given.yaml"}))
    assert row.points == {"a": {"lr": 0.5}}


def test_notes_are_joined(write):
    one, two, three = {"guess": "One."}, {"claim": "Two."}, {"derived": "Three,\n  and more."}
    (row,) = load(write({**ROW, "notes": [one, [two, [three]]]}))
    assert row.notes == [("guess", "One."), ("claim", "Two."), ("derived", "Three, and more.")]


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_row_says_whose_words_it_implements_or_why_it_is_there(row):
    own = any(kind == "own" for kind, _ in row.notes)
    assert bool(row.section) != own
    assert not (own and row.stated)


@pytest.mark.parametrize(
    ("figure", "value", "fit"),
    [
        (9, 9, True), (9, 9.5, False), (43.5, 43.5, True),
        ("3.4 M", 3_400_000, True), ("3.4 M", 3_499_999, True), ("3.4 M", 3_300_001, True),
        ("3.4 M", 3_504_872, False), ("143 M", 143_667_240, True), ("143 M", 144_000_000, False),
        ("< 10 M", 9_999_999, True), ("< 10 M", 10_000_000, False), ("< 1 M", 1_248_424, False),
        ("> 80", 80.5, True), ("> 80", 79.9, False), ("5 k", 5_999, True), ("5 k", 6_000, False),
    ],
)  # fmt: skip
def test_figures_rounded_and_bounds(figure, value, fit):
    assert fits(figure, value) == fit
    assert number("3.4 M") == 3_400_000 and number("> 80") == number(80) == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "x"}, "unknown key 'nam', did you mean 'name'"),
        ({"notebook": "02_train_from_scrath"}, "did you mean '02_train_from_scratch'"),
        ({"parameters": {"epoch": 1}}, "unknown parameter 'epoch', did you mean 'epochs'"),
        ({"parameters": {"epochs": "many"}}, "epochs = 'many' is not possible"),
        ({"parameters": {"processes": 2.5}}, "processes = 2.5 is not possible: it should be int"),
        ({"parameters": [1]}, "parameters = [1] is not possible"),
        ({"parameters": "nowhere.yaml"}, "no file 'nowhere.yaml'"),
        ({"grid": {"seed": 3}}, "seed = 3 is not possible: it should be list"),
        ({"grid": {"seed": []}}, "seed = [] should be a list of values"),
        ({"grid": {"seed": [0, -1]}}, "seed = -1 is not possible"),
        ({"stated": {"test_acuracy": 1}}, "did you mean 'test_accuracy'"),
        ({"stated": {"test_accuracy": "27 %"}}, "test_accuracy = '27 %' should be a number"),
        ({"stated": {"test_accuracy": True}}, "test_accuracy = True should be a number"),
        ({"derived": {"test_accuracy": 1}}, "test_accuracy is given twice"),
        ({"wrong": {"val_accuracy": {"right": 1, "why": "x"}}}, "'val_accuracy' is not stated"),
        ({"wrong": {"test_accuracy": {"right": 1}}}, "it needs wrong: test_accuracy: why"),
        ({"test": "yes"}, "test = 'yes' is not possible"),
        ({"notebook": "04_test_grid", "parameters": {}, "test": True}, "test is for notebook"),
        ({"limit_minutes": "long"}, "limit_minutes = 'long'"),
        ({"notes": 3}, "should be a kind and a sentence"),
        ({"notes": [{"gues": "x"}]}, "unknown kind 'gues', did you mean 'guess'"),
        ({"section": 2.6}, "section = 2.6 is not possible: it should be string"),
        ({"name": "a/b"}, "the name should have letters"),
    ],
)
def test_mistake_names_file_row_and_way_out(write, change, message):
    row = {**ROW, **change}
    with pytest.raises(ExperimentError) as error:
        load(write(row))
    assert str(error.value).startswith(f"r9.yaml, row '{row['name']}': ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_mistakes_of_the_whole_file(write, tmp_path):
    with pytest.raises(ExperimentError, match="row 'a': the name is used twice"):
        load(write(ROW, ROW))
    with pytest.raises(ExperimentError, match="r9.yaml, row 1: it needs a name"):
        load(write({}))
    with pytest.raises(ExperimentError, match="unknown key 'extra'"):
        load(write(ROW, extra=1))
    with pytest.raises(FileNotFoundError, match=r"experiments/ has .*r1\.yaml"):
        load(tmp_path / "none.yaml")
    for text in ("a: [", "rows: 3"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ExperimentError, match="^bad.yaml is no"):
            load(tmp_path / "bad.yaml")


def test_runs_of_a_row_are_those_with_its_parameters(write, tmp_path):
    (row,) = load(write({**ROW, "grid": {"seed": [0, 1, 2]}}))
    save_run(tmp_path / "R9" / "a-seed0", lr=0.1, epochs=2, seed=0)
    save_run(tmp_path / "R9" / "a-seed1", lr=0.1, epochs=1, seed=1)  # fewer epochs
    save_run(tmp_path / "R9-tiny_nature" / "a-seed2", lr=0.1, epochs=1, seed=2, image_size=32)
    (tmp_path / "R9" / "a-seed2").mkdir()
    assert [run.name for run in rows.runs_of(row, runs_root=tmp_path)] == ["a-seed0"]
    elsewhere = rows.runs_of(row, "tiny_nature", tmp_path)
    assert [run.name for run in elsewhere] == ["a-seed2"]


def test_runs_of_a_sweep_are_those_in_its_folder(tmp_path):
    row = next(row for row in ROWS if row.name == "sweep_first")
    content = yaml.safe_load((rows.ROOT / row.parameters["sweep"]).read_text())["parameters"]
    fixed = {name: entry["value"] for name, entry in content.items() if "value" in entry}
    save_run(tmp_path / "R1" / "sweeps" / "r1_first" / "run-1", **fixed, seed=3)
    save_run(tmp_path / "R1" / "sweeps" / "r1_first" / "run-2", **{**fixed, "epochs": 1})
    save_run(tmp_path / "R1" / "sweeps" / "r1_second" / "run-1", **fixed, seed=4)
    found = rows.runs_of(row, runs_root=tmp_path)
    assert [run.config.seed for run in found] == [3]


def test_counts_file_is_plain_json(tmp_path):
    with without_weights():
        model = build(Config(), 10)
    write_counts(tmp_path, model, count(model, 64))
    content = json.loads((tmp_path / "counts.json").read_text())
    assert content["parameters"] == sum(p.numel() for p in model.parameters())
    assert content["flops"] == 2 * content["macs"]
    assert content["head.classifier.parameters"] == 128 * 10 + 10
    head = sum(p.numel() for p in model.head.classifier.parameters())
    assert content["body.parameters"] == content["parameters"] - head


def read_index():
    """Return each report's lines of the index in experiments/README.md: patterns, answer."""
    text = (rows.EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    found = {}
    for part in re.split(r"^### (?=R\d$)", text.partition("\n## Run rows")[0], flags=re.M)[1:]:
        lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line[:1] == "|"]
        found[part[:2]] = [(re.findall(r"`([^`]+)`", r), answer) for _, r, answer in lines[2:]]
    return found


def test_index_leads_to_every_row_and_to_none_that_is_not_there():
    index = read_index()
    assert index.keys() == {row.report for row in ROWS}
    for report, lines in index.items():
        patterns = [pattern for some, _ in lines for pattern in some]
        names = [row.name for row in ROWS if row.report == report]
        assert [p for p in patterns if not any(fnmatch(name, p) for name in names)] == []
        of_report = [row.name for row in ROWS if row.report == report and row.section]
        left = [name for name in of_report if not any(fnmatch(name, p) for p in patterns)]
        assert set(left) <= {"counts_alexnet", "counts_resnet34"}  # figures of ours


def test_index_leads_to_sections_that_are_there():
    headings = {}
    for path in rows.NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        headings[path.name[:2]] = re.findall(r"^#+ (.*)$", text, re.M)
    answers = [part for lines in read_index().values() for _, a in lines for part in a.split("; ")]
    named = [(part[:2], name) for part in answers if part[:2] in headings
             for name in re.findall(r"(?<![\w`])\*([^*`]+)\*", part)]  # fmt: skip
    assert len(named) > 15
    assert [(number, name) for number, name in named if name not in headings[number]] == []

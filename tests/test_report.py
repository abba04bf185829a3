"""The page loads nothing, escapes names, names what is missing; same runs, same page."""

import base64
import csv
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image

from helpers import ROOT
from helpers.report import ledger, results
from helpers.report import page as report
from helpers.report.ledger import Entry
from helpers.report.rows import config_of, load_all
from helpers.runs.config import Config

ROWS = {(row.report, row.name): row for row in load_all()}
LOADING = {"src", "srcset", "href", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Collect what a browser would load, the elements, and the text of each section."""

    def __init__(self, source):
        super().__init__()
        self.loads, self.elements, self.sections, self.heading = [], [], {"": ""}, ""
        self.opening = False
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.loads += [value for name, value in attributes if name in LOADING]
        assert not any(name.startswith("on") for name, _ in attributes)
        self.opening = tag == "h2"
        self.sections[self.heading] += " "

    def handle_data(self, text):
        if self.opening and text.strip():
            self.heading, self.opening = text.strip(), False
            self.sections[self.heading] = ""
        self.sections[self.heading] += text


def save_run(folder, config, time="2026-01-02T03:04:05+00:00", **metrics):
    folder.mkdir(parents=True)
    counts = {"params": 526090, "trainable": 526090}
    given = {"epochs": 2, "best_epoch": 2, "train_seconds": 61.2, "val": {"accuracy": 0.5}}
    history = "epoch,lr,seconds,train_loss,val_loss,train_accuracy,val_accuracy\n"
    files = {
        "config.json": json.dumps(config.model_dump()),
        "metrics.json": json.dumps(counts | given | metrics),
        "status.json": json.dumps({"state": "finished", "time": time}),
        "history.csv": history + "1,.1,1,2,2.1,.3,.2\n2,.1,1,1.5,1.6,.6,.5\n",
        "predictions.csv": "split,path,label,predicted,confidence\nval,a.jpg,a,b,.9\n",
        "environment.json": json.dumps({
            "device": "A device", "processor": "a processor", "threads": 3, "python": "3.99",
            "packages": {"torch": "9.8.7"}, "commit": "abcdef0",
        }),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "best.pt").touch()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Make a runs folder with something for every section."""
    root = tmp_path_factory.mktemp("page") / "runs"
    save_run(
        root / "<b>x</b>",
        Config(dataset="caltech101", seed=7),
        val={"accuracy": 0.77},
        test={"accuracy": 0.61},
    )
    for name in ("filters", "confusion"):
        Image.new("RGB", (4, 4), "red").save(root / "<b>x</b>" / f"{name}.png")
    row = ROWS["R5", "scratch_lr.01"]
    for (name, parameters), accuracy in zip(row.points.items(), (0.4, 0.41, 0.42), strict=True):
        save_run(root / "R5" / name, config_of(row, parameters), test={"accuracy": accuracy})
    save_run(root / "R3-tiny_nature" / "elsewhere", Config(epochs=1), val={"accuracy": 0.123})
    counted = root / "R5" / "counts_resnet34"
    counted.mkdir()
    (counted / "counts.json").write_text('{"parameters": 21336485, "fc.parameters": 51812}')
    failed = root / "batch" / "R5" / "scratch_lr.1-seed0"
    failed.mkdir(parents=True)
    (failed / "status.json").write_text('{"state": "failed", "reason": "no <data> set"}')
    for kind, leaked, others in ("clean", "aaab", "aabb"), ("leaking", "aaaa", "abbb"):
        measured = {"val": {"accuracy": 0.56}, "test": {"accuracy": 0.5}}
        save_run(root / "leak" / kind, Config(dataset=f"folder:data/{kind}"), **measured)
        rows = [f"val,a/{n}.jpg,a,b,.9,.1" for n in range(4)]
        for mark, predicted in ("leaked", leaked), ("", others):
            rows += [f"test,a/{mark}{n}.jpg,a,{name},.9,.1" for n, name in enumerate(predicted)]
        header = "split,path,label,predicted,confidence,label_probability"
        (root / "leak" / kind / "predictions.csv").write_text("\n".join([header, *rows]) + "\n")
    for i in range(8):
        config = Config(image_size=32, lr=(1e-3, 1e-2)[i % 2], batch_size=(16, 32)[i // 4])
        begun, val = f"2026-01-02T03:0{i}:05+00:00", {"accuracy": 0.3 + i / 40}
        save_run(root / "sweeps" / "search" / f"run{i}", config, begun, val=val)
    config = Config(weights="runs/x", dataset="tiny_species", freeze="all_but_head")
    save_run(root / "tuned", config, trainable=1542, val={"accuracy": 0.9})
    return root


@pytest.fixture(scope="module", autouse=True)
def nothing_recorded(tmp_path_factory):
    """Show what these runs give, whatever results/ holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RESULTS", tmp_path_factory.mktemp("results"))
        yield


@pytest.fixture(scope="module")
def source(runs, nothing_recorded):
    return report.write_report(runs, runs.parent / "out").read_text()


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_page_loads_nothing_and_runs_nothing(source, page):
    assert page.loads and all(value.startswith("data:image/") for value in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.elements)
    assert not re.search(r"url\s*\(|@import", source)
    for value in page.loads:  # nor do the pictures
        content = base64.b64decode(value.partition("base64,")[2], validate=True)
        if "svg" in value[:20]:
            assert not re.search(rb'href="(?!#)|url\((?!#)|<script|<image', content)


def test_names_are_shown_and_not_obeyed(source, page):
    assert "<b>x</b>" not in source and "&lt;b&gt;x&lt;/b&gt;" in source
    assert "<b>x</b>" in page.sections["The best run on validation"]
    assert "no <data> set" in page.sections["The ledger"]


def test_same_runs_give_the_same_files(runs, source, tmp_path):
    again = report.write_report(runs, tmp_path)
    assert again.read_text() == source
    for name in "ledger.csv", "ledger.md":
        assert (tmp_path / name).read_bytes() == (runs.parent / "out" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.csv", "ledger.md", "report.html",
    ]  # fmt: skip


def test_measured_rows_stand_beside_what_was_stated(source, page):
    """R5 states 27.5 % for this row; 40, 41 and 42 % are 13.5 points more, std 1."""
    line = next(x for x in source.split("<tr>") if "scratch_lr.01<" in x and "27.50" in x)
    cells = re.sub(r"<[^>]*>", "|", line)
    assert re.findall(r"[^|\s][^|]*", cells)[:8] == [
        "scratch_lr.01", "test accuracy", "stated", "27.50", "41.00 ± 1.00", "3", "+13.50",
        "better",
    ]  # fmt: skip
    assert 'class="v good">better' in line
    counting = page.sections["Counting"]
    assert re.search(r"21,336,485\s+21,336,485\s+1\s+\+0\s+equal", counting)
    assert re.search(r"51,813\s+51,812\s+1\s+-1\s+differs", counting)


def test_csv_has_every_stated_figure_as_a_plain_number(runs, source):
    with (runs.parent / "out" / "ledger.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    stated = [(r.report, r.name, *figure) for r in ROWS.values() for figure in r.figures()]
    assert len(lines) == len(stated)
    for line, (name, row, kind, measure, value) in zip(lines, stated, strict=True):
        assert (line["report"], line["row"]) == (name, row)
        assert line["kind"].strip("'") == kind
        assert line["measure"] == measure.replace("_", " ")
        if isinstance(value, str):
            assert line["stated"] == value
        else:
            assert float(line["stated"]) == pytest.approx(value, abs=0.005)


def test_notes_stand_beside_what_ran(page):
    """Also those of counts; each with its kind and the rows that it is about."""
    counting = page.sections["Counting"]
    assert re.search(r"counts_resnet34:\s+derived\s*\.", counting)
    ledger = page.sections["The ledger"]
    assert "contradiction." in ledger and "guess." in ledger


def test_every_section_shows_its_runs(page):
    sections = page.sections
    assert "8 runs on tiny_nature" in sections["Sweeps"]
    assert re.search(r"R3\s+elsewhere\s+tiny_nature", sections["On other data than the reports'"])
    assert "12.3 %" not in sections["The ledger"]
    leak = sections["A leak of test images, and its trace"]
    shares = r"56\.0 %\s+{} %\s+{} %\s+{} points"
    assert re.search(shares.format(r"75\.0", r"50\.0", r"\+25\.0"), leak)
    assert re.search(shares.format(r"100\.0", r"25\.0", r"\+75\.0"), leak)
    row = r"five_blocks, all but head frozen\s+1\s+1,542\s+526,090\s+61.2\s+90.0 %"
    assert re.search(row, sections["Fine-tuning"])
    assert "torch 9.8.7" in sections["Where it ran"] and "0, 1, 2, 7" in sections["Where it ran"]


def test_what_is_missing_is_named(page):
    best = page.sections["The best run on validation"]
    assert best.count("Not drawn yet") == 2 and "notebook 04 with run = <b>x</b>" in best
    rows = page.sections["The ledger"]
    assert "scratch_lr.1 failed" in rows and "better_recipe" in rows


def test_nothing_has_run_and_all_of_it_is_said(tmp_path):
    page = Page(report.write_report(tmp_path / "none", tmp_path / "out").read_text())
    expected = {
        "Counting": "No count row has run",
        "On other data than the reports'": "None",
        "A leak of test images, and its trace": "has not run",
        "Sweeps": "No sweep has run",
        "The best run on validation": "No run has finished",
        "Fine-tuning": "No network was fine-tuned",
        "Where it ran": "Nothing has run yet",
    }
    assert all(text in page.sections[name] for name, text in expected.items())
    assert page.sections["The ledger"].count("not run") >= 5


def test_row_of_our_own_is_shown_without_a_verdict(runs, tmp_path):
    row = ROWS["R5", "better_recipe"]
    assert not row.stated
    for name, parameters in row.points.items():
        save_run(tmp_path / "R5" / name, config_of(row, parameters), test={"accuracy": 0.8})
    found = {entry.measure: entry for entry in ledger.entries_of(row, tmp_path)}
    assert found["test_accuracy"].mean == pytest.approx(80)
    assert found["test_accuracy"].cells()["difference"] == ""
    assert {entry.verdict for entry in found.values()} == {ledger.NOT_JUDGED}
    page = Page(report.write_report(tmp_path, tmp_path / "out").read_text())
    assert re.search(r"better_recipe\s+test accuracy\s+80.00", page.sections["The ledger"])


def test_verdicts_are_counted_for_each_report():
    entries = [
        Entry("R1", "a", "test_accuracy", "stated", 1, (1,), "reproduced"),
        Entry("R1", "b", "test_accuracy", "stated", 1, (), "not run"),
        Entry("R2", "c", "parameters", "stated", 1, (1,), "equal"),
    ]
    (axes,) = report.draw_verdicts(entries).axes
    bars = {bar.get_label(): [patch.get_width() for patch in bar] for bar in axes.containers}
    assert bars == {"equal": [1, 0], "reproduced": [0, 1], "not run": [0, 1]}  # R2 below R1


def test_commit_is_unknown_where_git_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit unknown" in report.write_report(tmp_path / "runs", tmp_path).read_text()


def test_best_run_is_one_on_photographs_of_one_s_own_before_drawn_ones(tmp_path):
    save_run(tmp_path / "drawn", Config(), val={"accuracy": 0.9})
    page = Page(report.write_report(tmp_path, tmp_path / "out").read_text())
    assert "drawn: five_blocks on tiny_nature" in page.sections["The best run on validation"]
    save_run(tmp_path / "mine", Config(dataset="folder:my/pets"), val={"accuracy": 0.6})
    leak = Config(dataset="folder:data/leak/clean")
    save_run(tmp_path / "leak" / "clean", leak, val={"accuracy": 0.8})
    page = Page(report.write_report(tmp_path, tmp_path / "out").read_text())
    assert "mine: five_blocks on pets" in page.sections["The best run on validation"]


def test_best_run_is_one_that_can_still_be_drawn(tmp_path):
    """A batch on drawn images keeps no weights: notebooks 04 and 05 could not read them."""
    save_run(tmp_path / "R5-tiny_nature" / "row", Config(), val={"accuracy": 0.9})
    (tmp_path / "R5-tiny_nature" / "row" / "best.pt").unlink()
    page = Page(report.write_report(tmp_path, tmp_path / "out").read_text())
    assert "No run has finished and kept its weights" in page.sections["The best run on validation"]


def test_a_damaged_file_leaves_a_run_out_and_is_named(tmp_path):
    save_run(tmp_path / "whole", Config(), val={"accuracy": 0.7})
    save_run(tmp_path / "cut", Config(seed=1), val={"accuracy": 0.8})
    (tmp_path / "cut" / "predictions.csv").write_text("split,path,label,predicted\nval,a\n")
    text = report.write_report(tmp_path, tmp_path / "out").read_text()
    assert "cut/predictions.csv is damaged" in text
    assert "whole: five_blocks on" in Page(text).sections["The best run on validation"]


def test_a_sweep_that_states_no_figure_counts_as_run(tmp_path):
    row = ROWS["R5", "lr_grid"]
    assert row.notebook == "03_sweep" and not row.stated
    folder = tmp_path / "R5" / "sweeps" / "r5_lr" / "one"
    text = Page(report.write_report(tmp_path, tmp_path / "out").read_text()).sections["The ledger"]
    assert "lr_grid" in text
    fixed = yaml.safe_load((ROOT / row.parameters["sweep"]).read_text())["parameters"]
    fixed = {name: entry["value"] for name, entry in fixed.items() if "value" in entry}
    save_run(folder, Config(**fixed), val={"accuracy": 0.3})
    text = Page(report.write_report(tmp_path, tmp_path / "out").read_text()).sections["The ledger"]
    assert "lr_grid" not in text


def test_run_with_pictures_is_shown_and_a_better_one_named(tmp_path):
    save_run(tmp_path / "seen", Config(), val={"accuracy": 0.7})
    save_run(tmp_path / "unseen", Config(seed=1), val={"accuracy": 0.8})
    Image.new("RGB", (4, 4)).save(tmp_path / "seen" / "filters.png")
    page = Page(report.write_report(tmp_path, tmp_path / "out").read_text())
    best = page.sections["The best run on validation"]
    assert "seen: five_blocks on tiny_nature" in best
    assert "Better on validation, 80.0 %" in best and "run = unseen" in best

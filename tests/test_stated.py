"""What is called stated is in the report's text, and what is in its tables is in a row.

The five texts are no part of the repository: without them these tests are skipped.
"""

import re

import pytest
import yaml

from helpers import ROOT
from helpers.report.rows import EXPERIMENTS, load_all

FOLDER = ROOT.parent / "shared" / "reports"
TEXTS = dict(zip(("R1", "R2", "R3", "R4", "R5"), sorted(FOLDER.glob("*.txt")), strict=False))
ROWS = load_all()
REPORTS = ("R1", "R2", "R3", "R4", "R5")
PASSAGE = 450  # characters in which all figures of a row are found
NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:e-?\d+)?(?!\d)")

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the reports' texts are not here")


def text_of(report: str) -> str:
    """Return a report without its addresses, which hold numbers that say nothing."""
    text = TEXTS[report].read_text(encoding="utf-8")
    return re.sub(r"https?://\S+|\]\([^)\s]*\)|<https?[^>]*>", " ", text)


def numbers_in(text: str) -> list[tuple[float, int]]:
    """Return every number in a text with its place."""
    return [(float(m[0].replace(",", "")), m.start()) for m in NUMBER.finditer(text)]


def digits_of(figure) -> float:
    """Return the number as it is written: 3.4 of "3.4 M"."""
    return float(figure.strip("<> kM")) if isinstance(figure, str) else float(figure)


def passage(wanted: list[float], text: str) -> int | None:
    """Return the length of the shortest passage that holds all the numbers, None without one."""
    places = [(value, place) for value, place in numbers_in(text) if value in wanted]
    best, last = None, {}
    for value, place in places:
        last[value] = place
        if len(last) == len(set(wanted)):
            length = max(last.values()) - min(last.values())
            best = length if best is None else min(best, length)
    return best


@pytest.mark.parametrize("row", [r for r in ROWS if r.stated], ids=lambda r: f"{r.report}-{r.name}")
def test_stated_figures_are_together_in_the_text(row):
    text = text_of(row.report)
    there = {value for value, _ in numbers_in(text)}
    wanted = {measure: digits_of(figure) for measure, figure in row.stated.items()}
    assert {measure for measure, value in wanted.items() if value not in there} == set()
    if row.report != "R3":  # its answers give one figure each
        together = [value for measure, value in wanted.items() if measure not in ("epochs", "runs")]
        assert not together or passage(together, text) < PASSAGE


def test_every_line_of_r5_s_table_is_a_row():
    """Epochs, learning rate and, where it has a column, split come first; then the figures."""
    measures = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "test_accuracy")
    lines = []
    for line in text_of("R5").splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        values = [float(c) for c in cells if re.fullmatch(r"[\d.]+", c)]
        if len(values) + cells.count("-") >= 7:
            lines.append((*values[:2], *values[-5 + cells.count("-") :]))
    rows = [
        (float(row.parameters["epochs"]), row.parameters["lr"],
         *(float(row.stated[m]) for m in measures if m in row.stated))
        for row in ROWS
        if row.report == "R5" and "test_accuracy" in row.stated
    ]  # fmt: skip
    assert len(lines) == 25
    assert sorted(lines) == sorted(rows)


def test_every_result_of_r4_is_a_row():
    pattern = (
        r"Testing Accuracy: ([\d.]+)%\s+Trainable Parameters: (\d+)\s+"
        r"Total [Pp]arameters: (\d+)\s+Epochs required: ?(\d+)"
    )
    blocks = [tuple(map(float, block)) for block in re.findall(pattern, text_of("R4"))]
    measures = ("test_accuracy", "trainable", "parameters", "epochs")
    rows = [
        tuple(float(row.stated[measure]) for measure in measures)
        for row in ROWS
        if row.report == "R4" and "test_accuracy" in row.stated
    ]
    assert len(blocks) == 9
    assert sorted(blocks) == sorted(rows)


def test_every_candidate_of_r4_is_a_row():
    found = re.findall(r"^\S.*?\t(<?)([\d.]+)M\t", text_of("R4"), re.MULTILINE)
    rows = [
        (str(row.stated["parameters"])[:1].strip("0123456789"), digits_of(row.stated["parameters"]))
        for row in ROWS
        if row.report == "R4" and row.parameters.get("num_classes") == 1000
    ]
    assert len(found) == 7  # one of them is two networks, and two rows
    assert {(bound, float(digits)) for bound, digits in found} == set(rows)


def test_every_result_of_r2_is_in_a_row():
    pattern = r"(Loss|Accuracy): ([\d.]+)"
    found = [float(value) for _, value in re.findall(pattern, text_of("R2"))]
    rows = [
        float(value)
        for row in ROWS
        if row.report == "R2" and "test_accuracy" in row.stated
        for measure, value in row.stated.items()
        if measure != "epochs"
    ]
    assert len(found) == 22
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize("report", REPORTS)
def test_every_number_is_in_a_row_or_explained(report):
    explained = yaml.safe_load((EXPERIMENTS / "not_in_rows.yaml").read_text(encoding="utf-8"))
    there = {value for value, _ in numbers_in(text_of(report))}
    rows = [row for row in ROWS if row.report == report and row.section]  # not those of our own
    known = {digits_of(figure) for row in rows for figure in row.stated.values()}
    for row in rows:
        given = {n: v for n, v in row.parameters.items() if n != "step_size"}  # the template's
        known |= set(leaves([given, row.grid]))
        if "sweep" in row.parameters:
            known |= set(leaves(read_sweep(row.parameters["sweep"])))
    assert there - known == {float(n) for n in explained[report]}


def leaves(value) -> list[float]:
    """Return every number in nested lists and mappings."""
    if isinstance(value, dict):
        return leaves(list(value.values()))
    if isinstance(value, list):
        return [number for entry in value for number in leaves(entry)]
    if isinstance(value, str):  # an augmentation's strength
        return [float(value.partition("=")[2])] if "=" in value else []
    return [] if isinstance(value, bool) or value is None else [float(value)]


def read_sweep(file: str) -> dict:
    content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return {"run_cap": content.get("run_cap"), "parameters": content["parameters"]}


def test_r3_s_sweep_has_its_values():
    """The report lists them as `name: [values]`."""
    names = {
        "batch_size": "batch_size", "learning_rate": "lr", "conv_filters": "filters",
        "activation": "activation", "dense_neurons": "dense", "dropout_rate": "dropout",
        "use_batch_norm": "batch_norm",
    }  # fmt: skip
    listed = dict(re.findall(r"^(\w+): (\[.*\]|\d+)$", text_of("R3"), re.MULTILINE))
    sweep = read_sweep("sweeps/r3.yaml")["parameters"]
    assert sweep["epochs"]["value"] == int(listed.pop("epochs"))
    assert len(sweep["augment"]["values"]) == len(yaml.safe_load(listed.pop("data_augment")))
    assert listed.keys() == names.keys()
    for name, text in listed.items():
        assert sweep[names[name]]["values"] == yaml.safe_load(text), name
    varied = {name for name, entry in sweep.items() if "values" in entry}
    assert varied == {*names.values(), "augment"}


@pytest.mark.parametrize("which", ["first", "second"])
def test_r1_s_sweeps_have_their_values(which):
    text = text_of("R1")
    listed = text[text.index("Chosen Hyperparameters") : text.index("Strategies to reduce")]
    patterns = {
        "kernel_size": r"c5 - (.*)", "batch_size": r"Batch size : (.*)",
        "filters": r"Number of filters - (.*)", "dense": r"Dense Neurons - (.*)",
        "dropout": r"Dropout fraction - (.*)",
        "filter_organization": r"Filter Organization - (.*)", "optimizer": r"Optimizer - (.*)",
        "batch_norm": r"Batch Normalization - (.*)", "augment": r"Data Augmentation - (.*)",
    }  # fmt: skip
    sweep = read_sweep(f"sweeps/r1_{which}.yaml")["parameters"]
    for name, pattern in patterns.items():
        values = re.split(r", | or ", re.search(pattern, listed)[1].strip())
        if name in ("batch_norm", "augment"):
            assert len(sweep[name]["values"]) == len(values)
        else:
            assert {str(v) for v in sweep[name]["values"]} == {v.lower() for v in values}, name
    assert {name for name, entry in sweep.items() if "values" in entry} == set(patterns)


def test_words_are_not_the_reports():
    """Facts and figures are taken, never sentences: no ten words in a row are theirs."""
    for row in ROWS:
        words = re.findall(r"\w+", text_of(row.report).lower())
        theirs = {tuple(words[i : i + 10]) for i in range(len(words))}
        for _, text in row.notes:
            ours = re.findall(r"\w+", text.lower())
            assert not {tuple(ours[i : i + 10]) for i in range(len(ours) - 9)} & theirs, text

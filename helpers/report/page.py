"""One self-contained HTML file from the run folders: ledger, counts, sweeps, curves, pictures.

    python -m helpers.report [--runs-root runs] [--output RUNS_ROOT/report]

Writes report.html (no script, nothing loaded from outside, prints to A4), ledger.csv and ledger.md.
Nothing is trained and no test set is opened; what is missing is named with the way to make it. The
same run folders give the same page, byte for byte.
"""

import argparse
import base64
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from helpers import ROOT
from helpers.evaluate import figures
from helpers.evaluate.tradeoff import draw_tradeoff, tradeoff_table
from helpers.models.device import environment
from helpers.report import comparisons, leakage, ledger
from helpers.report.executions import EMBEDDED
from helpers.report.ledger import Entry, measure_of
from helpers.report.rows import SWEEPING, TRAINING, Row, load_all, runs_of
from helpers.runs.files import CannotWrite, DamagedFile, naming_the_disk, write_atomically
from helpers.runs.folder import Run
from helpers.runs.search import find_runs, read_runs
from helpers.sweep import figures as sweep_figures
from helpers.sweep import findings

TEMPLATE = "page.html.jinja"
PICTURES = {  # saved beside a run: what they show, the notebook that draws them, narrow or not
    "test_grid.png": ("Test images with the prediction; green is right, red is wrong.", "04", True),
    "confusion.png": ("Which classes are taken for which.", "04", True),
    "filters.png": ("The filters of the first convolution.", "05", True),
    "guided_2x5.png": ("Guided backpropagation of ten neurons of the last block.", "05", False),
}


def write_report(runs_root: str = "runs", output: Path | str = "") -> Path:
    """Write report.html, ledger.csv and ledger.md; returns the path of the page.

    `output` is the folder for them, by default RUNS_ROOT/report.
    """
    folder = ROOT / (output or Path(runs_root, "report"))
    with naming_the_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = load_all()
    entries = ledger.ledger(rows, runs_root)
    known = [entry for row in rows for entry in ledger.recorded_entries(row)]
    write_atomically(folder / "ledger.csv", ledger.to_csv(entries + known).encode())
    write_atomically(folder / "ledger.md", ledger.to_markdown(entries + known).encode())
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = templates.get_template(TEMPLATE).render(**_collect(rows, entries, known, runs_root))
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def _collect(rows: list[Row], entries: list[Entry], known: list[Entry], runs_root: str) -> dict:
    """Gather everything that the page shows; `known` are recorded entries."""
    runs = [run for run in find_runs(runs_root) if run.metrics]
    counting = {(row.report, row.name) for row in rows if row.counts}
    counts = [entry for entry in entries if (entry.report, entry.row) in counting]
    trained = [entry for entry in entries if (entry.report, entry.row) not in counting]
    stated = [entry for entry in entries if entry.kind == "stated"]
    verdicts = Counter(entry.verdict for entry in stated)
    good = sum(entry.verdict == "equal" for entry in counts)
    return {
        "newest": runs[-1].status["time"][:16].replace("T", " ") + " UTC" if runs else "none yet",
        "commit": environment()["commit"],
        "facts": [
            (len(stated), "figures stated by five reports"),
            (good, f"of {len(counts)} counts equal"),
            (verdicts["reproduced"] + verdicts["better"], "accuracies reproduced or better"),
            (verdicts["not run"], "figures not run here yet"),
            (len(known), "recorded figures"),
            (len(runs), "finished runs"),
        ],
        "verdicts": draw_svg(draw_verdicts(stated), "All stated figures by verdict."),
        "damaged": read_runs(runs_root)[1],
        "rules": _rules(),
        "good": ledger.GOOD,
        "bad": ledger.BAD,
        "reports": [
            _report(name, title, [entry for entry in [*trained, *known] if entry.report == name],
                    [row for row in rows if row.report == name], runs_root)
            for name, title in {row.report: row.title for row in rows}.items()
        ],
        "counts": [entry for entry in counts if entry.values],
        "remarks": _remarks([row for row in rows if row.counts],
                            [entry for entry in counts if entry.values]),
        "other": _on_other_data(runs_root),
        "leakage": [(leakage.KINDS[kind], leakage.accuracies(run), leakage.trace(run))
                    for kind, run in leakage.demonstrated(runs_root).items()],
        "sweeps": _sweeps(runs),
        "best": _best(runs, runs_root),
        "tuned": _tuned(runs),
        "environments": _environments(runs),
        "seeds": sorted({run.config.seed for run in runs}),
    }  # fmt: skip


def draw_verdicts(entries: list[Entry]) -> Figure:
    """Draw how many of each report's stated figures have which verdict."""
    kinds = {
        "equal": (figures.TEAL, "white"), "reproduced": (figures.GREEN, "white"),
        "better": ("#8cc4cb", "black"), "shown": ("#c9d1d4", "black"),
        "wrong in the report": (figures.ORANGE, "black"), "worse": (figures.RED, "white"),
        "differs": ("#7a1f18", "white"), "not run": ("#eef1f2", "black"),
    }  # fmt: skip
    names = sorted({entry.report for entry in entries}, reverse=True)
    figure = Figure(figsize=(9, 0.9 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for kind, (color, on_color) in kinds.items():
        counts = [sum(e.report == name and e.verdict == kind for e in entries) for name in names]
        if any(counts):
            bars = axes.barh(names, counts, left=left, color=color, label=kind, height=0.62)
            axes.bar_label(bars, [str(n) if n else "" for n in counts], label_type="center",
                           fontsize=8.5, color=on_color)  # fmt: skip
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_xlabel("stated figures")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    return figure


def draw_svg(figure: Figure, text: str) -> dict:
    """Turn a figure into a picture of the page, sharp at any size."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "five blocks"}):  # else its ids are random
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _picture(buffer.getvalue(), "image/svg+xml", text)


def _picture(content: bytes, kind: str, text: str, narrow: bool = False) -> dict:
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"source": source, "text": text, "narrow": narrow}


def _report(name: str, title: str, entries: list[Entry], rows: list[Row], runs_root: str) -> dict:
    """Gather one report's measured figures, the rows that did not run and why, and remarks."""
    measured = [entry for entry in entries if entry.values]
    order = {row.name: place for place, row in enumerate(rows)}
    measured.sort(key=lambda entry: order[entry.row])
    done = {entry.row for entry in measured if not entry.recorded}
    done |= {row.name for row in rows  # a sweep may state no figure, and then has no entry
             if row.notebook == SWEEPING and runs_of(row, runs_root=runs_root)}  # fmt: skip
    shown = {entry.row for entry in measured}
    trained = [row for row in rows if row.notebook == SWEEPING or row.notebook in TRAINING]
    unrun = [row for row in trained if row.name not in done]
    failed = {row.name: ledger.reason_of(row, runs_root) for row in unrun}
    return {
        "name": name,
        "title": title,
        "entries": measured,
        "unrun": list(failed),
        "failed": {row: reason for row, reason in failed.items() if reason},
        "remarks": _remarks([row for row in trained if row.name in shown], measured),
        "together": _together(name, rows, runs_root),
    }


def _together(name: str, rows: list[Row], runs_root: str) -> list[dict]:
    """Draw and compare a report's rows, notebook by notebook: on its data, or where it ran."""
    folders = [(ROOT / runs_root / name), *sorted((ROOT / runs_root).glob(f"{name}-*"))]
    found = []
    for dataset in (folder.name.partition("-")[2] for folder in folders if folder.exists()):
        for notebook in TRAINING:
            chosen = [row for row in rows if row.notebook == notebook]
            groups = comparisons.measured(chosen, runs_root, dataset)
            shown = [draw_svg(figure, text) for text, figure in comparisons.draw(groups)]
            if shown:
                found.append({
                    "dataset": dataset, "notebook": notebook[:2], "figures": shown,
                    "lines": comparisons.one_choice_changed(groups),
                })  # fmt: skip
    return found


def _remarks(rows: list[Row], entries: list[Entry]) -> dict[tuple[str, str], list[str]]:
    """Return each note (kind, text) on rows that ran, with the names of the rows it is about."""
    remarks: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found = [entry for entry in entries if (entry.report, entry.row) == (row.report, row.name)]
        wrong = [("", entry.remark if entry.recorded else f"{entry.measure}: {entry.remark}")
                 for entry in found if entry.remark]  # fmt: skip
        for note in dict.fromkeys((*row.notes, *wrong)) if found else ():
            remarks.setdefault(note, []).append(f"{row.report} {row.name}")
    return remarks


def _rules() -> list[str]:
    """Read the rules from the ledger's own words."""
    text = ledger.__doc__.split("The rules:")[1]
    return [" ".join(rule.split()) for rule in text.split("\n- ")[1:]]


def _on_other_data(runs_root: str) -> list[dict]:
    found = []
    for folder in sorted((ROOT / runs_root).glob("R[0-9]-*")):
        runs = [run for run in find_runs(folder) if run.metrics and not _swept(run)]
        found += [_describe(run) | {"report": folder.name[:2]} for run in runs]
    return found


def _describe(run: Run) -> dict:
    """Return a run's figures as text."""
    config, metrics = run.config, run.metrics

    def percent(measure: str) -> str:
        value = measure_of(run, measure)
        return "" if value is None else f"{value:.1f} %"

    return {
        "name": run.name, "data": _dataset(run), "model": config.model,
        "epochs": metrics["epochs"], "params": f"{metrics['params']:,}",
        "seconds": f"{metrics['train_seconds']:.0f}",
        "val": percent("val_accuracy"), "test": percent("test_accuracy"),
    }  # fmt: skip


def _dataset(run: Run) -> str:
    return Path(run.config.dataset.removeprefix("folder:")).name


def _swept(run: Run) -> bool:
    return run.folder.parent.parent.name == "sweeps"


def _sweeps(every: list[Run]) -> list[dict]:
    """Draw each sweep's panels and list its one-factor findings."""
    found = []
    for folder in sorted({run.folder.parent for run in every if _swept(run)}):
        runs = [run for run in every if run.folder.parent == folder and "val" in run.metrics]
        if len(runs) < 2:
            continue
        drawn = [
            draw_svg(sweep_figures.by_time(runs), "Validation accuracy against time."),
            draw_svg(sweep_figures.parallel_coordinates(runs), "Each run as a line."),
            draw_svg(sweep_figures.importance_table(runs), "Importance and correlation."),
        ]
        found.append({
            "name": folder.name, "count": len(runs), "dataset": _dataset(runs[0]),
            "figures": drawn, "findings": [str(line) for line in findings.compare(runs)],
        })  # fmt: skip
    return found


def _best(runs: list[Run], runs_root: str) -> dict | None:
    """Describe the best run on validation, on photographs if there are any.

    Runs of which notebooks 04 and 05 have drawn pictures come first; a better one is named.
    """
    measured = [run for run in runs if "val" in run.metrics and run.config.weights == "none"
                and (run.folder / "best.pt").exists()  # not of rows run on drawn images
                and run.folder.parent.name != leakage.FOLDER]  # fmt: skip
    if not measured:
        return None
    photographs = [run for run in measured if run.config.dataset not in EMBEDDED]
    nature = [run for run in measured if run.config.dataset == "tiny_nature"]
    chosen = photographs or nature or measured
    drawn = [run for run in chosen if any((run.folder / file).exists() for file in PICTURES)]
    run, best = (
        max(runs, key=lambda run: run.metrics["val"]["accuracy"])
        for runs in (drawn or chosen, chosen)
    )
    text = _describe(run)
    name, better = (r.folder.relative_to(ROOT / runs_root).as_posix() for r in (run, best))
    shown = [draw_svg(figures.curves(run), "Loss and accuracy by epoch; the dot is the best one.")]
    missing = []
    for file, (caption, notebook, narrow) in PICTURES.items():
        if (run.folder / file).exists():
            shown.append(_picture((run.folder / file).read_bytes(), "image/png", caption, narrow))
        else:
            missing.append(f"{caption} Not drawn yet: notebook {notebook} with run = {name}.")
    if best.metrics["val"]["accuracy"] > run.metrics["val"]["accuracy"]:
        missing.append(
            f"Better on validation, {_describe(best)['val']}, and not drawn yet: "
            f"notebooks 04 and 05 with run = {better}."
        )
    test = f", test accuracy {text['test']}" if text["test"] else ", test set still closed"
    return {
        "name": name, "figures": shown, "missing": missing,
        "text": f"{text['model']} on {text['data']}, {text['params']} parameters, "
                f"{text['epochs']} epochs, validation accuracy {text['val']}{test}.",
    }  # fmt: skip


def _tuned(every: list[Run]) -> list[dict]:
    """Compare fine-tuned networks with each other and with those from scratch, by data set."""
    runs = [run for run in every if "val" in run.metrics and not _swept(run)
            and not re.match(r"R\d-", run.folder.parent.name)]  # fmt: skip
    found = []
    for dataset in sorted({run.config.dataset for run in runs if run.config.weights != "none"}):
        group = [run for run in runs if run.config.dataset == dataset]
        text = "Validation accuracy against what it costs."
        found.append({
            "dataset": _dataset(group[0]), "rows": tradeoff_table(group),
            "figure": draw_svg(draw_tradeoff(group), text),
        })  # fmt: skip
    return found


def _environments(runs: list[Run]) -> list[tuple[int, dict, list[str]]]:
    """Count the runs by hardware and versions, each with the commits of their code."""
    commits: dict[str, list[str]] = {}
    for run in runs:
        if run.environment:
            machine = {name: x for name, x in run.environment.items() if name != "commit"}
            commits.setdefault(json.dumps(machine), []).append(run.environment["commit"])
    return [(len(c), json.loads(text), sorted(set(c))) for text, c in commits.items()]


def main() -> None:
    """Write the report and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument("--output", default="")
    options = parser.parse_args()
    try:
        path = write_report(options.runs_root, options.output)
    except (CannotWrite, DamagedFile) as error:
        sys.exit(str(error))
    print(f"report: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")

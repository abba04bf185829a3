"""One self-contained HTML file from the run folders: ledger, counts, sweeps, curves, pictures.

    python -m helpers.report [--runs-root runs] [--output runs/report]

Writes report.html (no script, nothing loaded from outside, prints to A4), ledger.csv and ledger.md.
Nothing is trained and no test set is opened; what is missing is named with the way to make it.
"""

import argparse
import base64
import io
import subprocess
from collections import Counter
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from helpers import ROOT, figures, findings, ledger, panels
from helpers.experiments import EXPERIMENTS, load_all
from helpers.ledger import Entry, measure_of
from helpers.runs import Run, find_runs, now, write_atomically

TEMPLATE = "report.html.jinja"
PHOTOGRAPHS = ("nature_12k", "caltech101", "cub200", "scenes15")  # shown before drawn images
PICTURES = {  # saved beside a run: what they show, and the notebook that draws them
    "test_grid.png": ("Test images with the prediction; green is right, red is wrong.", "04"),
    "confusion.png": ("Which classes are taken for which.", "04"),
    "filters.png": ("The filters of the first convolution.", "05"),
    "guided_2x5.png": ("Guided backpropagation of ten neurons of the last block.", "05"),
}


def write_report(runs_root: str = "runs", output: Path | str = "runs/report") -> Path:
    """Write report.html, ledger.csv and ledger.md into a folder; returns the path of the page."""
    folder = ROOT / output
    folder.mkdir(parents=True, exist_ok=True)
    entries = ledger.ledger(runs_root)
    write_atomically(folder / "ledger.csv", ledger.to_csv(entries).encode())
    write_atomically(folder / "ledger.md", ledger.to_markdown(entries).encode())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(**collect(entries, runs_root))
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def collect(entries: list[Entry], runs_root: str = "runs") -> dict:
    """Gather everything that the page shows."""
    runs = find_runs(runs_root)
    counting = {(row.report, row.name) for row in load_all() if row.counts}
    counts = [entry for entry in entries if (entry.report, entry.row) in counting]
    trained = [entry for entry in entries if (entry.report, entry.row) not in counting]
    verdicts = Counter(entry.verdict for entry in entries)
    environments = Counter(
        yaml.safe_dump(run.environment, sort_keys=True) for run in runs if run.environment
    )
    return {
        "date": now()[:16].replace("T", " ") + " UTC",
        "commit": _commit(),
        "facts": [
            (len(entries), "figures stated by five reports"),
            (verdicts["equal"], f"of {len(counts)} counts equal"),
            (verdicts["reproduced"] + verdicts["better"], "accuracies reproduced or better"),
            (verdicts["not run"], "figures not run here yet"),
            (len(runs), "finished runs"),
        ],
        "verdicts": draw_svg(draw_verdicts(entries), "All stated figures by verdict."),
        "rules": _rules(),
        "good": ledger.GOOD,
        "bad": ledger.BAD,
        "reports": [_report(name, title, trained) for name, title in _titles().items()],
        "counts": [entry for entry in counts if entry.values],
        "other": _on_other_data(runs_root),
        "leakage": _leakage(runs_root),
        "sweeps": _sweeps(runs_root),
        "best": _best(runs),
        "tuned": [_describe(run) for run in runs if run.config.weights != "none"],
        "tradeoff": [],
        "environments": [
            (count, yaml.safe_load(text)) for text, count in environments.most_common()
        ],
        "seeds": sorted({run.config.seed for run in runs}),
    }


def draw_verdicts(entries: list[Entry]) -> Figure:
    """Draw how many of each report's stated figures have which verdict."""
    kinds = {
        "equal": figures.TEAL, "reproduced": figures.GREEN, "better": "#8cc4cb",
        "shown": "#c9d1d4", "wrong in the report": figures.ORANGE, "worse": figures.RED,
        "differs": "#7a1f18", "not run": "#eef1f2",
    }  # fmt: skip
    names = sorted({entry.report for entry in entries}, reverse=True)
    figure = Figure(figsize=(9, 0.9 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for kind, color in kinds.items():
        counts = [sum(e.report == name and e.verdict == kind for e in entries) for name in names]
        if any(counts):
            bars = axes.barh(names, counts, left=left, color=color, label=kind, height=0.62)
            axes.bar_label(bars, [str(n) if n else "" for n in counts], label_type="center",
                           fontsize=8.5)  # fmt: skip
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_xlabel("stated figures")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
    return figure


def draw_svg(figure: Figure, text: str, narrow: bool = False) -> dict:
    """Turn a figure into a picture of the page, sharp at any size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return _picture(buffer.getvalue(), "image/svg+xml", text, narrow)


def _picture(content: bytes, kind: str, text: str, narrow: bool = False) -> dict:
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"source": source, "text": text, "narrow": narrow}


def _report(name: str, title: str, entries: list[Entry]) -> tuple:
    """Return one report's measured entries, the names of its rows not run, and its remarks."""
    own = [entry for entry in entries if entry.report == name]
    measured = [entry for entry in own if entry.values]
    unrun = list(dict.fromkeys(entry.row for entry in own if not entry.values))
    done = {entry.row for entry in measured}
    remarks = [
        (row.name, " ".join(row.open))
        for row in load_all()
        if row.report == name and row.name in done and row.open
    ]
    return name, title, measured, [row for row in unrun if row not in done], remarks


def _titles() -> dict[str, str]:
    files = sorted(EXPERIMENTS.glob("r[0-9]*.yaml"))
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
    return {content["report"]: content["title"] for content in contents}


def _rules() -> list[str]:
    """Read the rules from the ledger's own words."""
    text = ledger.__doc__.split("The rules:")[1]
    return [" ".join(rule.split()) for rule in text.split("\n- ")[1:]]


def _on_other_data(runs_root: str) -> list[dict]:
    rows = []
    reports = {row.report for row in load_all()}
    for folder in sorted((ROOT / runs_root).glob("R*-*")):
        report, _, _ = folder.name.partition("-")
        if report in reports:
            rows += [_describe(run) | {"report": report} for run in find_runs(folder)]
    return rows


def _describe(run: Run) -> dict:
    """Return a run's figures as text."""
    config, metrics = run.config, run.metrics

    def percent(measure: str) -> str:
        value = measure_of(run, measure)
        return "" if value is None else f"{value:.1f} %"

    return {
        "name": run.name, "data": _dataset(run), "model": config.model,
        "weights": Path(config.weights).name, "epochs": metrics["epochs"],
        "freeze": ", then ".join(s.freeze or config.freeze for s in config.stages) or config.freeze,
        "trainable": f"{metrics['trainable']:,}", "params": f"{metrics['params']:,}",
        "seconds": f"{metrics['train_seconds']:.0f}",
        "val": percent("val_accuracy"), "test": percent("test_accuracy"),
    }  # fmt: skip


def _dataset(run: Run) -> str:
    return Path(run.config.dataset.removeprefix("folder:")).name


def _leakage(runs_root: str) -> list[tuple]:
    found = []
    for kind, name in {"clean": "as it should be", "leaking": "with the test images"}.items():
        run = Run(ROOT / runs_root / "leakage" / kind)
        if run.finished and "test" in run.metrics:
            values = (run.metrics[split]["accuracy"] for split in ("train", "val", "test"))
            found.append((name, *values))
    return found


def _sweeps(runs_root: str) -> list[dict]:
    """Draw each sweep's panels and list its one-factor findings."""
    folders = sorted({run.folder.parent for run in find_runs(Path(runs_root))
                      if "sweeps" in run.folder.parts})  # fmt: skip
    found = []
    for folder in folders:
        runs = [run for run in find_runs(folder) if "val" in run.metrics]
        if len(runs) < 2:
            continue
        drawn = [
            draw_svg(panels.by_time(runs), "Validation accuracy against time.", True),
            draw_svg(panels.parallel_coordinates(runs), "Each run as a line."),
            draw_svg(panels.importance_table(runs), "Importance and correlation.", True),
        ]
        found.append({
            "name": folder.name, "count": len(runs), "dataset": _dataset(runs[0]),
            "figures": drawn, "findings": [str(line) for line in findings.compare(runs)],
        })  # fmt: skip
    return found


def _best(runs: list[Run]) -> dict | None:
    """Describe the best run on validation, on photographs if there are any."""
    measured = [run for run in runs if "val" in run.metrics and run.config.weights == "none"]
    for datasets in (PHOTOGRAPHS, ("tiny_nature",)):
        chosen = [run for run in measured if run.config.dataset in datasets]
        if chosen:
            break
    else:
        return None
    run = max(chosen, key=lambda run: run.metrics["val"]["accuracy"])
    text = _describe(run)
    shown = [draw_svg(figures.curves(run), "Loss and accuracy by epoch; the dot is the best one.")]
    missing = []
    for file, (caption, notebook) in PICTURES.items():
        if (run.folder / file).exists():
            shown.append(_picture((run.folder / file).read_bytes(), "image/png", caption))
        else:
            missing.append(f"{caption} Not drawn yet: notebook {notebook} with run = {run.name}.")
    test = f", test accuracy {text['test']}" if text["test"] else ", test set still closed"
    return {
        "name": run.name, "figures": shown, "missing": missing,
        "text": f"{text['model']} on {text['data']}, {text['params']} parameters, "
                f"{text['epochs']} epochs, validation accuracy {text['val']}{test}.",
    }  # fmt: skip


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def main() -> None:
    """Write the report and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs-root", default="runs")
    parser.add_argument("--output", default="runs/report")
    options = parser.parse_args()
    path = write_report(options.runs_root, options.output)
    print(f"report: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()

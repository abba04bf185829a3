"""Rows of a report side by side: their curves, their costs, and pairs that differ in one choice."""

from itertools import combinations

from matplotlib.figure import Figure

from helpers.evaluate import compare_runs
from helpers.evaluate.figures import curves_of_several
from helpers.evaluate.tradeoff import draw_tradeoff
from helpers.report.rows import TRAINING, Row, by_setting, runs_of
from helpers.runs.folder import Run
from helpers.runs.search import shorten, varied


def measured(rows: list[Row], runs_root: str = "runs", dataset: str = "") -> dict[str, list[Run]]:
    """Return the finished runs of the rows that train, by row and what its grid varies.

    `dataset` is that of `runs_of`.
    """
    found = {}
    for row in rows:
        if row.notebook in TRAINING:
            runs = [run for run in runs_of(row, dataset, runs_root) if run.metrics]
            for setting, group in by_setting(row, runs).items():
                found[f"{row.name} ({setting})" if setting else row.name] = group
    return found


def draw(groups: dict[str, list[Run]]) -> list[tuple[str, Figure]]:
    """Draw what the rows of one notebook look like together, each figure with its caption.

    The curves of all rows; of fine-tuned ones what they cost, by test accuracy where all of them
    have opened their test set.
    """
    if len(groups) < 2:
        return []
    runs = [run for group in groups.values() for run in group]
    text = "A colour for each row and each value that it varies, a line for each run."
    drawn = [(text, curves_of_several(groups))]
    if any(run.config.weights != "none" or run.config.model != "five_blocks" for run in runs):
        split = "test" if all("test" in run.metrics for run in runs) else "val"
        word = {"test": "Test", "val": "Validation"}[split]
        drawn.append((f"{word} accuracy against what it costs.", draw_tradeoff(runs, split)))
    return drawn


def one_choice_changed(groups: dict[str, list[Run]]) -> list[str]:
    """Say for each two rows that differ in a single parameter what that changes, and how surely.

    On the test images where both have opened their test set, else on the same validation images;
    seeds are compared in pairs.
    """
    lines = []
    for (name, runs), (other, others) in combinations(groups.items(), 2):
        changed = [key for key in varied([runs[0], others[0]]) if key != "seed"]
        pairs = [(b, a) for a in runs for b in others if a.config.seed == b.config.seed]
        if len(changed) != 1 or not pairs:
            continue
        split = "test" if all("test" in run.metrics for pair in pairs for run in pair) else "val"
        (first, second), (key,) = zip(*pairs, strict=True), changed
        try:
            found = compare_runs(list(first), list(second), split)
        except ValueError:  # not measured on the same images
            continue
        there, before = (shorten(getattr(run.config, key)) for run in (others[0], runs[0]))
        images = "test" if split == "test" else "validation"
        choice = f"{key.replace('_', ' ')} {there} instead of {before}"
        verdict = found.verdict if found.seeds else f"{found.verdict} for these two networks alone"
        lines.append(f"{other} against {name} ({choice}): {found} on {images} images, {verdict}.")
    return lines

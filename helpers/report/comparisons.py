"""Rows of a report side by side: their curves, their costs, and pairs that differ in one choice."""

from itertools import combinations

from matplotlib.figure import Figure

from helpers.evaluate import compare_runs
from helpers.evaluate.figures import curves_of_several
from helpers.evaluate.tradeoff import draw_tradeoff
from helpers.report.rows import TRAINING, Row, runs_of
from helpers.runs.folder import Run
from helpers.runs.search import shorten, varied


def measured(rows: list[Row], runs_root: str = "runs", dataset: str = "") -> dict[str, list[Run]]:
    """Return the finished runs of the rows that train, by row; see `runs_of` for `dataset`."""
    found = {
        row.name: [run for run in runs_of(row, dataset, runs_root) if run.metrics]
        for row in rows
        if row.notebook in TRAINING
    }
    return {name: runs for name, runs in found.items() if runs}


def draw(groups: dict[str, list[Run]]) -> list[tuple[str, Figure]]:
    """Draw what the rows of one notebook look like together, each figure with its caption.

    The curves of all rows; of fine-tuned ones what they cost, by test accuracy where all of them
    have opened their test set.
    """
    if len(groups) < 2:
        return []
    runs = [run for group in groups.values() for run in group]
    drawn = [("A colour for each row, a line for each run.", curves_of_several(groups))]
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
        lines.append(
            f"{other} against {name} ({choice}): {found} on {images} images, {found.verdict}."
        )
    return lines

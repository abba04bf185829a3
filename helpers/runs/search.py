"""Which runs there are, and what tells them apart."""

import json
from pathlib import Path

from helpers import ROOT
from helpers.runs.config import NO_EFFECT, Config
from helpers.runs.files import DamagedFile, damaged
from helpers.runs.folder import START_AGAIN, Run
from helpers.runs.text import say_once


def find_runs(runs_root: str | Path = "runs", **parameters) -> list[Run]:
    """List the finished runs below `runs_root` whose configuration has these parameters.

    Newest last. Runs that cannot be read are left out and named, once.
    """
    runs, bad = read_runs(runs_root)
    for trouble in bad:
        say_once(f"left out: {trouble}")
    return [run for run in runs if all(getattr(run.config, k) == v for k, v in parameters.items())]


def read_runs(runs_root: str | Path = "runs") -> tuple[list[Run], list[str]]:
    """Return the finished runs below `runs_root`, newest last, and what is wrong with others."""
    found, bad = [], []
    files = [path for name in ("config.json", "best.pt") for path in
             Path(ROOT / runs_root).rglob(name)]  # fmt: skip
    for run in sorted({Run(path.parent) for path in files}, key=lambda run: run.folder):
        try:
            if not (run.folder / "config.json").exists():
                raise damaged(run.folder / "config.json", "it is missing", START_AGAIN)
            if run.finished:
                run.check()
                found.append((run.status["time"], run))
        except DamagedFile as error:
            bad.append(str(error))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])], bad


def best_run(dataset: str, runs_root: str | Path = "runs") -> Run | None:
    """Return the run of a data set that is best on validation, or None where there is none.

    Candidates are the finished runs that lie in `runs_root` itself, not those of a sweep, of a
    report or of a pretraining, which have folders of their own; of equals, the oldest.
    """
    found = [
        run
        for run in find_runs(runs_root, dataset=dataset)
        if run.folder.parent == Path(ROOT / runs_root) and "val" in run.metrics
    ]
    return max(found, key=lambda run: run.metrics["val"]["accuracy"], default=None)


def varied(runs: list[Run]) -> dict[str, list]:
    """Return the parameters that differ between runs, each with its values, sorted."""
    configs = [run.config.model_dump(exclude=NO_EFFECT) for run in runs]
    values = {name: {json_of(c[name]): c[name] for c in configs} for name in Config.model_fields
              if name not in NO_EFFECT}  # fmt: skip
    return {
        name: sorted(found.values(), key=_order)
        for name, found in values.items()
        if len(found) > 1
    }


def shorten(value: object) -> str:
    """Write a parameter's value briefly: a list of equal numbers as 32 x 5, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        if len(value) > 2 and len({json_of(v) for v in value}) == 1:
            return f"{shorten(value[0])} x {len(value)}"
        return ", ".join(shorten(v) for v in value) or "none"
    return str(value)


def json_of(value: object) -> str:
    """Write plain values as text by which they can be compared."""
    return json.dumps(value, sort_keys=True)


def _order(value: object) -> tuple:
    number = isinstance(value, bool | int | float)
    return (0, value, "") if number else (1, 0, json_of(value))

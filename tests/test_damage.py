"""What is on disk may be damaged: nothing is lost, one sentence says so, the rest goes on.

DAMAGED_STATES=1000 python -m pytest tests/test_damage.py -k damaged_states    tries that many.
"""

import json
import os
import random
import shutil
import time
import traceback

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from helpers import ROOT, data, models, train
from helpers.count.record import write_counts
from helpers.data import images as decoding
from helpers.detect.rules import read_rules
from helpers.report import rows
from helpers.report.executions import read_status
from helpers.report.rows import ExperimentError
from helpers.runs.config import Config, ConfigError
from helpers.runs.files import CannotWrite, DamagedFile
from helpers.runs.folder import Run
from helpers.runs.search import find_runs
from helpers.sweep import queue
from helpers.sweep.file import read_sweep

STATES = int(os.environ.get("DAMAGED_STATES", 90))
OWN = (ConfigError, DamagedFile, CannotWrite, ExperimentError, FileNotFoundError, ValueError)
RUN = ("config.json", "status.json", "metrics.json", "environment.json", "data.json",
       "history.csv", "predictions.csv", "best.pt")  # fmt: skip
SWEEP = """
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters: {lr: {values: [0.001, 0.01]}, dropout: {values: [0.0, 0.5]}}
"""


def is_own(error: BaseException) -> bool:
    """Say whether an error was raised on purpose, in one sentence of bounded length."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    on_purpose = str(ROOT / "helpers") in last.filename and last.line.startswith("raise")
    text = str(error)
    return isinstance(error, OWN) and on_purpose and "\n" not in text and 10 < len(text) <= 300


def write_images(folder, classes=("ant", "bee"), seed=0):
    rng = np.random.default_rng(seed)
    for label, name in enumerate(classes):
        for split, count in (("train", 8), ("test", 2)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = (rng.integers(0, 120, (32, 32, 3)) + 120 * label).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set, its decoded images, two finished runs, one begun, and a sweep."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setattr(decoding, "DECODED", home / "decoded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_images(home / "set")
    config = make_config(home)
    for name in ("good", "other"):
        train.train(config.replace(name=name, seed=len(name)))

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(config.replace(name="begun"), stop)
    (home / "grid.yaml").write_text(SWEEP)
    study = open_queue(home)
    queue.fill(study, queue.list_points(read_sweep(home / "grid.yaml", config), config))
    write_counts(home / "counts", *small_counts(config))
    pristine = tmp_path_factory.mktemp("pristine") / "home"
    shutil.copytree(home, pristine, symlinks=True)
    yield home, pristine
    torch.set_num_threads(threads)
    patch.undo()


def make_config(home):
    return Config(
        dataset=f"folder:{home / 'set'}", image_size=32, filters=2, dense=2, epochs=2, augment=[],
        batch_size=8, val_fraction=0.25, runs_root=str(home / "runs"), precision="float32",
    )  # fmt: skip


def small_counts(config):
    from helpers.count.layers import count

    model = models.build(config, 2)
    return model, count(model, 32)


def open_queue(home):
    config = make_config(home)
    return queue.open_study(read_sweep(home / "grid.yaml", config), config, str(home / "journal"))


def result(run: Run) -> tuple:
    """What must never be another run's, or another number: parameters, figures, epochs, weights."""
    config, metrics = run.config.model_dump(), run.metrics
    history = [{k: v for k, v in row.items() if "seconds" not in k} for row in run.history]
    figures = metrics["val"], metrics["train"], metrics["best_epoch"], metrics["params"]
    weights = models.rebuild(run).state_dict()
    return config, figures, history, {name: x.tolist() for name, x in weights.items()}


# Damages


def retype(rng, content: bytes) -> bytes:
    """Give one value of a JSON file another type, or drop it; the checksum may be lost, too."""
    tree = json.loads(content)
    if rng.random() < 0.5:
        tree.pop("checksum", None)
    holder = tree
    while True:
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.7:
            holder = holder[key]
            continue
        others = [v for v in ("text", 7, None, [1], {"a": 1}, True, 1e400)
                  if type(v) is not type(holder[key])]  # fmt: skip
        if rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = rng.choice(others)
        return json.dumps(tree).encode()


def flip(rng, content: bytes, most: int) -> bytes:
    changed = bytearray(content)
    place = rng.randrange(min(len(changed), most))
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damage(rng, path) -> str:
    """Damage a file in one of many ways, and return which."""
    content = path.read_bytes()
    most = 120 if path.suffix == ".npy" else len(content)  # pixels may be anything
    ways = {
        "empty": lambda: b"",
        "cut": lambda: content[: rng.randrange(len(content))],
        "flip": lambda: flip(rng, content, most),
        "foreign": lambda: rng.randbytes(rng.randrange(1, 4000)),
        "no UTF-8": lambda: b"\xff\xfe" + content if rng.random() < 0.5 else content + b"\xc3\x28",
        "text": lambda: b"<html><body>not found</body></html>\n",
        "another type": lambda: rng.choice([b"[]", b"3", b'"x"', b"null", b"{}", b"[[1]]", b"NaN"]),
    }
    if path.suffix == ".json":
        ways["retyped"] = lambda: retype(rng, content)
        ways["retyped again"] = ways["retyped"]
    if path.suffix == ".csv":
        lines = content.splitlines(keepends=True)
        ways["line lost"] = lambda: b"".join(lines[:1] + lines[2:])
        ways["cell lost"] = lambda: content.replace(b",", b"", 1)
    way = rng.choice([*ways, "removed", "a folder"])
    path.unlink()
    if way == "a folder":
        path.mkdir()
    elif way != "removed":
        path.write_bytes(ways[way]())
    return way


# Uses: each returns a good answer or raises


def use_finished(home, truth):
    """Readers of many runs go on; the run itself is right, mended, or refused in one sentence."""
    found = {run.name: run for run in find_runs(home / "runs")}
    assert "other" in found
    config = make_config(home).replace(name="good", seed=4)
    for answer in (lambda: found.get("good"), lambda: train.train(config)):
        try:
            run = answer()
            if run is not None:
                assert result(run) == truth
        except Exception as error:
            if not is_own(error):
                raise
    run = train.train(config)  # after the first one has set aside what was damaged
    assert result(run) == truth
    return run


def use_begun(home, truth):
    run = train.train(make_config(home).replace(name="begun"))
    if not (run.folder / "last.pt.damaged").exists():  # else it went on without the optimizer
        assert result(run) == truth
    assert len(run.history) == 2 and run.usable
    return run


def use_cache(home, truth):
    splits = data.load(make_config(home))
    pixels = splits.train.take(np.arange(len(splits.train)))
    assert (splits.fingerprint, splits.train.paths, pixels.tolist()) == truth
    return splits


def use_journal(home, truth):
    queue.slots(open_queue(home))


def use_counts(home, truth):
    row = rows.Row.model_construct(report="x", name="counts", notebook="01_count_flops_and_params",
                                   stated={"parameters": 1})  # fmt: skip
    path = home / "x"
    path.mkdir(exist_ok=True)
    shutil.rmtree(path / "counts", ignore_errors=True)
    shutil.copytree(home / "counts", path / "counts")
    counts = rows.counts_of(row, home)
    assert counts is None or counts["parameters"] == truth
    assert read_status(home / "counts") == {}


def use_weights(home, truth):
    config = make_config(home).replace(weights="good", name="tuned", head="dense")
    model = models.build(config, 2)
    name = next(iter(truth))
    assert model.state_dict()[name].tolist() == truth[name]


@pytest.fixture(scope="module")
def uses(home):
    folder, pristine = home
    good = result(Run(folder / "runs" / "good"))
    whole = result(train.train(make_config(folder).replace(name="begun")))
    splits = data.load(make_config(folder))
    pixels = splits.train.take(np.arange(len(splits.train))).tolist()
    cached = splits.fingerprint, splits.train.paths, pixels
    counts = json.loads((folder / "counts" / "counts.json").read_text())["parameters"]
    (cache,) = (path for path in (pristine / "decoded").iterdir() if path.is_dir())
    cases = [(f"runs/good/{name}", use_finished, good) for name in RUN]
    cases += [(f"runs/begun/{name}", use_begun, whole)
              for name in ("last.pt", "last.pt", "best.pt", "status.json", "history.csv",
                           "data.json", "environment.json", "config.json")]  # fmt: skip
    cases += [(f"decoded/{cache.name}/{name}", use_cache, cached)
              for name in ("index.json", "images.npy")]  # fmt: skip
    cases += [("journal", use_journal, None), ("counts/counts.json", use_counts, counts),
              ("runs/good/best.pt", use_weights, good[3])]  # fmt: skip
    return cases


def restore(home, pristine):
    for entry in home.iterdir():
        if entry.name != "set":  # whose files' times are in the cache's key
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in pristine.iterdir():
        if entry.name != "set":
            target = home / entry.name
            shutil.copytree(entry, target) if entry.is_dir() else shutil.copy2(entry, target)


def test_damaged_states_end_well_or_in_one_sentence(home, uses, capsys):
    folder, pristine = home
    bad, refused = [], 0
    for number in range(STATES):
        rng = random.Random(number)
        restore(folder, pristine)
        name, use, truth = uses[number % len(uses)]
        way = damage(rng, folder / name)
        start = time.monotonic()
        try:
            use(folder, truth)
        except AssertionError as error:
            bad.append(f"{number} {name} {way}: wrong: {str(error)[:200]}")
        except Exception as error:
            refused += 1
            if not is_own(error):
                place = traceback.extract_tb(error.__traceback__)[-1]
                bad.append(f"{number} {name} {way}: {error!r:.300} at {place}")
        if time.monotonic() - start > 20:
            bad.append(f"{number} {name} {way}: took {time.monotonic() - start:.0f} s")
    with capsys.disabled():
        print(f"\n{STATES} damaged states, {refused} refused in one sentence, {len(bad)} bad")
    assert not bad, "\n".join(bad)


ROWS = """
report: R9
title: Somebody's report
rows:
  - name: first
    section: Part A, question 1
    notebook: 02_train_from_scratch
    parameters: {dataset: tiny_nature, filters: [8, 8, 16, 16, 16], augment: [], lr: 0.001}
    grid: {seed: [0, 1]}
    stated: {val_accuracy: 42.3, epochs: 10}
    notes:
      - guess: the learning rate
  - name: counted
    section: Part B
    notebook: 01_count_flops_and_params
    parameters: {model: five_blocks, num_classes: 10, filters: 8}
    stated: {parameters: 12}
"""
RULES = """
zones:
  - name: street
    polygon: [[0.1, 0.2], [0.9, 0.2], [0.5, 0.9]]
    forbidden: [truck]
lanes:
  - name: lane
    polygon: [[0, 0], [1, 0], [1, 1]]
    directions: [[[0, 1], [1, 1]]]
"""


def test_changed_yaml_and_parameters_are_taken_or_refused_in_one_sentence(tmp_path, capsys):
    values = json.dumps(Config(stages=[{"epochs": 2, "freeze": "nothing"}]).model_dump())
    texts = {
        "rows.yaml": (ROWS, rows.load),
        "sweep.yaml": (SWEEP, lambda path: read_sweep(path, Config())),
        "rules.yaml": (RULES, read_rules),
        "values.json": (values, lambda path: Config(**yaml.safe_load(path.read_text()))),
    }
    for name, (text, read) in texts.items():  # as they are, they are taken
        (tmp_path / name).write_text(text)
        assert read(tmp_path / name)
    bad, refused = [], 0
    for number in range(4 * STATES):
        rng = random.Random(number)
        name = [*texts][number % len(texts)]
        text, read = texts[name]
        path = tmp_path / name
        content = json.dumps(yaml.safe_load(text)).encode()
        for _ in range(rng.choice([1, 1, 3])):
            content = retype(rng, content)
        path.write_bytes(content)
        if name != "values.json" and rng.random() < 0.3:
            path.write_text(text)
            while damage(rng, path) in ("a folder", "removed"):
                shutil.rmtree(path, ignore_errors=True)
                path.write_text(text)
        start = time.monotonic()
        try:
            read(path)
        except Exception as error:
            refused += 1
            if not is_own(error):
                place = traceback.extract_tb(error.__traceback__)[-1]
                bad.append(f"{number} {name} {path.read_bytes()[-300:]}: {error!r:.200} at {place}")
        if time.monotonic() - start > 20:
            bad.append(f"{number} {name}: took {time.monotonic() - start:.0f} s")
    with capsys.disabled():
        print(f"\n{4 * STATES} changed files, {refused} refused in one sentence, {len(bad)} bad")
    assert not bad, "\n".join(bad)

"""The batch finishes every row, whatever is killed on the way, and leaves nothing running."""

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import yaml

from helpers import ROOT
from helpers.report import batch, executions, rows
from helpers.report.rows import SWEEPING, TRAINING, ExperimentError, load
from helpers.runs.config import Config

WORK = """
import os, pathlib, time
home = pathlib.Path(folder)
with (home / "log").open("a") as file:
    file.write(f"{word} {os.getpid()}\\n")
if word.startswith("slow") and not (home / "go").exists():
    time.sleep(60)
if word == "fails":
    raise ValueError("broken on purpose")
if word == "dies" and (home / "log").read_text().count("dies") == 1:
    os._exit(1)
"""
DRIVER = """
import sys
from pathlib import Path
from helpers.report import batch, rows
rows.NOTEBOOKS = Path(sys.argv[1])
sys.exit(batch.main(sys.argv[2:]))
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen(["sleep", "60"], start_new_session=True)  # as papermill's kernel
with open(sys.argv[1], "a") as log:
    log.write(f"slow {os.getpid()}\\nslow {child.pid}\\n")
child.wait()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Make a folder of notebooks with one that notes down its calls, and use it."""
    cells = [
        nbformat.v4.new_code_cell(
            'folder: str = ""  # notes\nword: str = ""  # what to do',
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell(WORK),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "work.ipynb")
    monkeypatch.setattr(rows, "NOTEBOOKS", tmp_path / "notebooks")
    rows.notebook_parameters.cache_clear()
    yield tmp_path
    rows.notebook_parameters.cache_clear()


def write(home, rows):
    for row in rows:
        row |= {"notebook": "work", "parameters": {"folder": str(home), "word": row["name"]}}
    path = home / "r9.yaml"
    path.write_text(yaml.safe_dump({"report": "R9", "title": "t", "rows": rows}))
    return [str(path), "--runs-root", str(home / "runs")]


def status(home, name):
    path = home / "runs" / "batch" / "R9" / name / "status.json"
    return json.loads(path.read_text()) if path.exists() else {"state": "new"}


def calls(home):
    path = home / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


def is_alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def start(home, arguments):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(home / "notebooks"), *arguments],
        cwd=ROOT,
        stdout=(home / "out.txt").open("a"),
        stderr=subprocess.STDOUT,
    )


def test_every_row_ends_with_a_state_and_the_failed_ones_run_again(home, monkeypatch, capsys):
    def clock():  # the limit has passed as soon as the slow row's kernel has begun
        return time.monotonic() + 3600 * any(word == "slow" for word, _ in calls(home))

    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=clock, sleep=time.sleep))
    rows = [{"name": "good"}, {"name": "fails"}, {"name": "dies"},
            {"name": "slow", "limit_minutes": 30}]  # fmt: skip
    arguments = write(home, rows)
    assert batch.main([*arguments, "--jobs", "2"]) == 1
    said = capsys.readouterr().out
    assert "failed: R9 fails: ValueError: broken on purpose" in said
    assert "failed: R9 slow: not done within its limit of 30 minutes" in said
    assert "2 of 4 executions have finished" in said
    states = {row["name"]: status(home, row["name"])["state"] for row in rows}
    assert states == {"good": "finished", "fails": "failed", "dies": "finished", "slow": "failed"}
    assert not any(is_alive(int(pid)) for _, pid in calls(home))
    parameters = yaml.safe_load((home / "runs/batch/R9/good/parameters.yaml").read_text())
    assert parameters == {"folder": str(home), "word": "good"}
    done = nbformat.read(home / "runs/batch/R9/good/notebook.ipynb", 4)
    assert all(cell.execution_count for cell in done.cells)

    (home / "go").touch()
    assert batch.main([*arguments, "--rows", "[gds]*"]) == 0
    assert sorted(word for word, _ in calls(home)) == [
        "dies", "dies", "fails", "good", "slow", "slow",
    ]  # fmt: skip


def test_killed_batch_loses_no_finished_row_and_its_leftovers_are_stopped(home):
    arguments = write(home, [{"name": "good"}, {"name": "slow"}])
    first = start(home, arguments)
    wait_for(lambda: len(calls(home)) == 2)
    first.kill()
    first.wait()
    leftover = int(calls(home)[1][1])
    assert is_alive(leftover) and status(home, "slow")["state"] == "running"
    (home / "go").touch()
    assert batch.main(arguments) == 0
    assert not is_alive(leftover)
    assert [word for word, _ in calls(home)] == ["good", "slow", "slow"]
    assert status(home, "slow")["state"] == "finished"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_stopped_batch_stops_everything(home, monkeypatch, name, code):
    command = ["-c", PARENT, str(home / "log")]
    monkeypatch.setattr(executions.Execution, "command", lambda self, step: command)
    arguments = [*write(home, [{"name": "slow1"}, {"name": "slow2"}]), "--jobs", "2"]
    sent = []

    def sleep(seconds):
        time.sleep(seconds)
        if not sent and len(calls(home)) == 4:
            sent.append(name)
            signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        ended = batch.main(arguments)
    except SystemExit as error:
        ended = error.code
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == code and len(calls(home)) == 4
    assert not any(is_alive(int(pid)) for _, pid in calls(home))
    assert {status(home, f"slow{n}")["state"] for n in (1, 2)} == {"interrupted"}


def test_only_one_batch_works_on_a_report(home, capsys):
    arguments = write(home, [{"name": "good"}])
    folder = home / "runs" / "batch" / "R9"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert batch.main(arguments) == 2
    assert "another batch works on R9" in capsys.readouterr().err
    assert calls(home) == []


def test_a_batch_needs_no_module_that_windows_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    importlib.reload(batch)


def test_dry_run_writes_parameters_and_runs_nothing(home, capsys):
    assert batch.main([*write(home, [{"name": "good"}]), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "R9 good  new, at most 720 min" in said
    path = os.path.relpath(home / "runs/batch/R9/good/parameters.yaml", ROOT)
    assert f"-f {path} " in said
    assert calls(home) == [] and status(home, "good")["state"] == "new"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "best"], "--rows best fits none of good"),
        (["--set", "epochs"], "epochs should be NAME=VALUE"),
        (["--set", "filters=[8"], "no value in YAML"),
        (["--set", "epoch=1"], "unknown parameter 'epoch', did you mean 'epochs'"),
        (["--dataset", "tiny_natur"], "'tiny_natur' is not known, did you mean 'tiny_nature'"),
        (["--jobs", "0"], "--jobs 0 should be at least 1"),
    ],
)
def test_bad_argument_ends_in_one_sentence(home, capsys, arguments, message):
    assert batch.main([*write(home, [{"name": "good"}]), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (home / "runs").exists()


def plan(name, row, tmp_path, **options):
    rows = [entry for entry in load(ROOT / "experiments" / name) if entry.name == row]
    return executions.plan(rows, runs_root=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("scratch_lr.01", [f"scratch_lr.01-seed{seed}" for seed in (0, 1, 2)]),
        ("scratch_lr.0*1-seed2", [f"scratch_lr.{lr}-seed2" for lr in ("01", "001")]),
    ],
)
def test_rows_are_chosen_by_their_names_or_those_of_their_runs(pattern, names, tmp_path, capsys):
    arguments = [str(ROOT / "experiments" / "r5.yaml"), "--runs-root", str(tmp_path), "--dry-run"]
    assert batch.main([*arguments, "--rows", pattern]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[0] == "R"]
    assert listed == names


def test_row_runs_as_stated_and_opens_the_test_set_afterwards(tmp_path):
    first, *others = plan("r5.yaml", "scratch_lr.01", tmp_path)
    assert len(others) == 2 and first.changes == ""
    (notebook, parameters), (testing, given) = first.steps
    assert (notebook, testing) == ("02_train_from_scratch", "04_test_grid")
    stated = {**first.row.points[first.name], "name": "scratch_lr.01-seed0",
              "runs_root": f"{tmp_path}/R5"}  # fmt: skip
    assert Config(**parameters) == Config(**stated)
    place = os.path.normpath(ROOT / "runs" / given["run"])
    assert place == str(tmp_path / "R5" / "scratch_lr.01-seed0")


@pytest.mark.parametrize("name", ["r1.yaml", "r2.yaml", "r3.yaml", "r4.yaml", "r5.yaml"])
def test_no_default_of_a_notebook_slips_into_a_row(name, tmp_path):
    """What a training notebook's cell sets is what the row states, else Config's own default."""
    rows = [row for row in load(ROOT / "experiments" / name) if row.notebook in TRAINING]
    for execution in executions.plan(rows, runs_root=str(tmp_path)):
        (notebook, parameters), *_ = execution.steps
        cell = {**cell_of(notebook), **parameters}
        chosen = {n: v for n, v in cell.items() if n in Config.model_fields}
        stated = {n: v for n, v in execution.row.points[execution.name].items()
                  if n in Config.model_fields}  # fmt: skip
        assert Config(**chosen).id == Config(**stated).id, execution.label


@pytest.mark.parametrize("name", ["r1.yaml", "r2.yaml", "r3.yaml", "r4.yaml", "r5.yaml"])
def test_every_row_can_run_offline_on_drawn_images(name, tmp_path, monkeypatch):
    monkeypatch.setattr(executions, "_smallest_image_size", lambda network: 256)
    rows = load(ROOT / "experiments" / name)
    for one in executions.plan(rows, "tiny_nature", {"epochs": 1}, str(tmp_path)):
        if one.row.notebook in TRAINING:
            given = one.steps[0][1]
            config = Config(**{n: v for n, v in given.items() if n in Config.model_fields})
            assert (config.dataset, config.weights) == ("tiny_nature", "none"), one.label
            assert config.all_epochs == max(1, len(config.stages)), one.label
        elif one.row.notebook == SWEEPING:
            fixed = one.sweep["parameters"]
            assert fixed["dataset"] == {"value": "tiny_nature"}, one.label
            assert fixed["epochs"] == {"value": 1}, one.label
            assert fixed.get("weights", {"value": "none"}) == {"value": "none"}, one.label


def cell_of(notebook):
    """Run a notebook's cell of parameters."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    namespace = {}
    exec(cell.source, namespace)
    return {n: v for n, v in namespace.items() if not n.startswith("__")}


def test_embedded_data_makes_a_row_small_and_says_so(tmp_path):
    (execution,) = plan("r1.yaml", "inception_v3", tmp_path, dataset="tiny_nature",
                        changes={"epochs": 1})  # fmt: skip
    parameters = execution.steps[0][1]
    assert parameters["dataset"] == "tiny_nature" and parameters["weights"] == "none"
    assert parameters["epochs"] == 1
    assert parameters["image_size"] == 96  # 75 pixels are the least for its five halvings
    assert execution.folder.parent.name == "R1-tiny_nature"
    assert execution.changes.startswith("tiny_nature, not the report's data; weights none")


@pytest.mark.parametrize(
    ("name", "row", "size"),
    [("r3.yaml", "best", 32), ("r1.yaml", "best", 128), ("r5.yaml", "scratch_lr.1", 64)],
)
def test_embedded_images_are_the_smallest_that_the_network_takes(tmp_path, name, row, size):
    execution = plan(name, row, tmp_path, dataset="tiny_nature")[0]
    parameters = execution.steps[0][1]
    assert parameters["image_size"] == size
    chosen = {n: v for n, v in parameters.items() if n in Config.model_fields}
    assert Config(**chosen).image_size == size


def test_rows_on_drawn_images_keep_their_figures_not_their_weights(tmp_path):
    for dataset, left in ("tiny_species", []), ("caltech101", ["best.pt", "best.pt"]):
        (row,) = plan("r3.yaml", "best", tmp_path, dataset=dataset)
        (search,) = plan("r5.yaml", "lr_grid", tmp_path, dataset=dataset)
        for folder in row.run.folder, search.run.folder / "a_run":
            folder.mkdir(parents=True)
            (folder / "best.pt").touch()
            (folder / "metrics.json").touch()
        row.forget_weights()
        search.forget_weights()
        found = [p.name for e in (row, search) for p in e.run.folder.rglob("*") if p.is_file()]
        assert sorted(found) == [*left, "metrics.json", "metrics.json"]


def test_set_reaches_every_stage(tmp_path):
    (execution,) = plan("r2.yaml", "resnet101_unfrozen", tmp_path, changes={"epochs": 2})
    assert [stage["epochs"] for stage in execution.steps[0][1]["stages"]] == [2, 2]


def test_sweep_gets_a_changed_copy_of_its_file(tmp_path):
    (execution,) = plan("r1.yaml", "sweep_first", tmp_path, dataset="tiny_nature",
                        changes={"epochs": 1})  # fmt: skip
    execution.write_parameters()
    changed = yaml.safe_load(Path(execution.steps[0][1]["sweep"]).read_text())
    original = yaml.safe_load((ROOT / "sweeps" / "r1_first.yaml").read_text())
    values = changed["parameters"]
    assert values["dataset"] == {"value": "tiny_nature"} and values["epochs"] == {"value": 1}
    assert values["image_size"] == {"value": 128}  # kernel size 4 without padding
    assert values["dropout"] == original["parameters"]["dropout"]
    assert changed["run_cap"] == 32


def test_counts_do_not_depend_on_data(tmp_path):
    (execution,) = plan("r1.yaml", "counts", tmp_path, dataset="tiny_nature",
                        changes={"epochs": 1})  # fmt: skip
    assert execution.changes == "" and execution.folder.parent.name == "R1"
    assert execution.steps[0][1]["image_size"] == 274


def test_counts_need_no_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(batch.subprocess, "Popen", None)
    (execution,) = plan("r3.yaml", "counts_64_5_128", tmp_path)
    assert batch.run([execution]) == [] and execution.finished
    counts = json.loads((execution.run.folder / "counts.json").read_text())
    assert counts["parameters"] == 3 * 25 * 64 + 4 * 25 * 64**2 + 64 * 64 * 128 + 128 + 1290
    (broken,) = plan("r3.yaml", "counts_64_5_128", tmp_path)
    broken.steps[0][1]["dense"] = 0
    assert batch.run([broken]) == [broken] and "dense must be" in broken.status["reason"]


def test_run_with_other_parameters_is_never_overwritten(tmp_path):
    (execution,) = plan("r3.yaml", "best", tmp_path)
    given = {n: v for n, v in execution.steps[0][1].items() if n in Config.model_fields}
    execution.run.folder.mkdir(parents=True)
    execution.run.write_json("config.json", Config(**given).model_dump())
    plan("r3.yaml", "best", tmp_path)
    with pytest.raises(ExperimentError, match=r"R3 best: .*epochs 10 -> 3\): delete it, or give"):
        plan("r3.yaml", "best", tmp_path, changes={"epochs": 3})


def test_a_run_that_cannot_be_read_ends_in_one_sentence(tmp_path, capsys):
    (execution,) = plan("r3.yaml", "best", tmp_path)
    execution.run.folder.mkdir(parents=True)
    (execution.run.folder / "config.json").write_text("{")
    arguments = [str(ROOT / "experiments" / "r3.yaml"), "--rows", "best"]
    assert batch.main([*arguments, "--runs-root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "config.json is damaged" in error and error.count("\n") == 1
    assert batch.main([str(ROOT / "experiments")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_progress_is_read_from_what_the_row_has_written(tmp_path):
    (training,) = plan("r3.yaml", "best", tmp_path)
    assert batch._progress(training) == "R3 best, starting"
    training.run.folder.mkdir(parents=True)
    training.run.write_csv("history.csv", [{"epoch": 1}, {"epoch": 2}])
    assert batch._progress(training) == "R3 best, 2 of 10 epochs"
    (training.run.folder / "history.csv").write_text("epoch\n7\n")  # damaged: it is set aside soon
    assert batch._progress(training) == "R3 best, starting"
    (sweeping,) = plan("r5.yaml", "lr_grid", tmp_path)
    for name in "ab":
        (sweeping.run.folder / name).mkdir(parents=True)
        (sweeping.run.folder / name / "metrics.json").touch()
    assert batch._progress(sweeping) == "R5 lr_grid, 2 runs"


def test_the_report_s_own_data_by_name_changes_nothing(tmp_path):
    (plain,) = plan("r3.yaml", "best", tmp_path)
    dataset = plain.steps[0][1]["dataset"]
    assert plan("r3.yaml", "best", tmp_path, dataset=dataset) == [plain]


def test_the_film_goes_where_all_results_go(tmp_path):
    (execution,) = plan("r1.yaml", "trucks_on_the_wrong_road", tmp_path)
    assert execution.steps[0][1]["folder"] == str(tmp_path / "R1" / "trucks_on_the_wrong_road")


def test_a_sweep_is_finished_as_long_as_its_runs_are_there(tmp_path):
    (execution,) = plan("r5.yaml", "lr_grid", tmp_path)
    execution.write_parameters()
    execution.set_status("finished")
    assert not execution.finished
    execution.run.folder.mkdir(parents=True)
    assert execution.finished


def test_row_is_finished_as_long_as_its_run_is_there(tmp_path):
    (execution,) = plan("r3.yaml", "best", tmp_path)
    execution.write_parameters()
    execution.set_status("finished")
    assert not execution.finished
    execution.run.folder.mkdir(parents=True)
    execution.run.write_json("config.json", Config().model_dump())
    execution.run.set_status("finished")
    assert execution.finished
    execution.steps[0][1]["lr"] = 0.5
    assert not execution.finished


def test_nothing_else_is_stopped(tmp_path):
    environment = {**os.environ, batch.MARK: str(tmp_path / "batch" / "R1-other" / "row")}
    bystander = subprocess.Popen(["sleep", "60"], env=environment)
    while batch.MARK not in psutil.Process(bystander.pid).environ():  # empty for a moment
        time.sleep(0.01)
    batch.stop(tmp_path / "batch" / "R1")
    assert bystander.poll() is None
    batch.stop(tmp_path / "batch" / "R1-other")
    assert bystander.wait(5) is not None


def test_what_has_ended_but_is_not_reaped_is_not_waited_for(tmp_path):
    """As orphans in a container whose first process reaps none."""
    line = f"{batch.MARK}='{tmp_path}' sleep 60 & exec sleep 61"
    parent = subprocess.Popen(["sh", "-c", line])
    wait_for(lambda: psutil.Process(parent.pid).name() == "sleep")
    (child,) = psutil.Process(parent.pid).children()
    wait_for(lambda: batch.MARK in child.environ())
    begun = time.monotonic()
    batch.stop(tmp_path)
    assert time.monotonic() - begun < 2.5 and child.status() == psutil.STATUS_ZOMBIE
    parent.kill()
    parent.wait()

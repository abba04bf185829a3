"""Sweeps: every point once, continued, ended early, shared out; mistakes change nothing."""

import errno
import json
import math
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
import yaml
from optuna.trial import TrialState

from helpers import sweep
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run
from helpers.runs.search import find_runs
from helpers.sweep import queue, runner, worker
from helpers.sweep.file import read_sweep
from helpers.train import loop
from helpers.train.loop import TrainingDiverged

FAST = {"image_size": 32, "filters": 4, "dense": 8, "epochs": 2, "steps_per_epoch": 1,
        "val_steps": 1, "augment": []}  # fmt: skip
METRIC = {"name": "val_accuracy", "goal": "maximize"}
GRID = {"dropout": {"values": [0.0, 0.2]}, "lr": {"values": [0.001, 0.01, 0.1]}}


@pytest.fixture
def config(tmp_path):
    return Config(**FAST, runs_root=str(tmp_path))


@pytest.fixture
def write(tmp_path):
    def write(name="small", method="grid", parameters=GRID, **more):
        path = tmp_path / f"{name}.yaml"
        content = {"method": method, "metric": METRIC, "parameters": parameters, **more}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def curves(monkeypatch):
    """Replace training by curves made up from the parameters; returns what was trained."""
    trained = []

    def make(curve):
        def train(config, on_epoch=None):
            trained.append(config)
            run = Run(Path(config.runs_root) / config.name)
            run.folder.mkdir(parents=True, exist_ok=True)
            run.write_json("config.json", config.model_dump())
            rows, stopped = [], {}
            for epoch, value in enumerate(curve(config), start=1):
                rows.append({"epoch": epoch, "val_accuracy": value, "val_loss": 1 - value})
                run.write_csv("history.csv", rows)
                if on_epoch and on_epoch(rows[-1]):
                    stopped = {"stopped_at": epoch}
                    break
            run.write_json("metrics.json", {"train_seconds": 1.0})
            run.set_status("finished", **stopped)
            return run

        monkeypatch.setattr(worker, "train", train)
        monkeypatch.setattr(runner, "train", train)
        return trained

    return make


def study_of(path, config):
    definition = read_sweep(path, config)
    journal = Path(config.runs_root) / "sweeps" / definition.name / "journal.log"
    return queue.open_study(definition, config, str(journal))


def states(path, config):
    return [trial.state.name for trial in study_of(path, config).get_trials()]


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_grid_trains_every_point_once_and_is_read_again(write, config):
    path = write()
    result = sweep.run(path, config)
    points = {(run.config.dropout, run.config.lr) for run in result.runs}
    assert len(result.runs) == len(points) == 6 and result.failed == {}
    assert states(path, config) == ["COMPLETE"] * 6
    values = {run.name: max(r["val_accuracy"] for r in run.history) for run in result.runs}
    assert result.value(result.best) == max(values.values())
    before = files(result.folder / result.best.name)
    assert [run.name for run in sweep.run(path, config).runs] == [r.name for r in result.runs]
    assert files(result.folder / result.best.name) == before


def test_test_images_take_no_part(write, config, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "fit", lambda model, splits, *_: seen.append(splits.test))
    worker.train(read_sweep(write(), config).configure(config, {"dropout": 0.0}, "0000"))
    assert len(seen) == 1 and len(seen[0]) == 0


def test_interrupted_sweep_continues(write, config, curves, monkeypatch):
    path = write()
    trained = curves(lambda config: [0.1, 0.2])
    complete = worker.train

    def interrupted(config, on_epoch):
        if len(trained) == 2:
            raise KeyboardInterrupt
        return complete(config, on_epoch)

    monkeypatch.setattr(worker, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(path, config)
    monkeypatch.setattr(worker, "train", complete)
    assert len(sweep.run(path, config).runs) == 6
    assert len({config.id for config in trained}) == len(trained) == 6


def test_random_search_does_not_depend_on_the_order_of_work(write, config, curves):
    trained = curves(lambda config: [config.lr])
    path = write(method="random", run_cap=5, parameters={"lr": {"min": 0.01, "max": 0.1}})
    sweep.run(path, config)
    first = [c.lr for c in trained]
    shutil.rmtree(Path(config.runs_root) / "sweeps")
    trained.clear()
    sweep.run(path, config)
    assert [c.lr for c in trained] == first and len(set(first)) == 5
    assert all(0.01 <= lr <= 0.1 for lr in first)


def test_bayesian_search_finds_the_best_region(write, config, curves):
    trained = curves(lambda config: [1 - abs(config.dropout - 0.7)])
    path = write(method="bayes", run_cap=40, parameters={"dropout": {"min": 0.0, "max": 0.99}})
    result = sweep.run(path, config)
    distances = [abs(c.dropout - 0.7) for c in trained]
    assert len(trained) == 40 and abs(result.best.config.dropout - 0.7) < 0.05
    assert sum(distances[-20:]) / 20 < 0.2  # by chance: .29


def test_bayesian_search_tries_no_point_twice_while_there_are_others(write, config, curves):
    trained = curves(lambda config: [config.dropout])
    parameters = {"dropout": {"values": [0.0, 0.1, 0.2]}, "batch_size": {"values": [8, 16]}}
    path = write(method="bayes", run_cap=7, parameters=parameters)
    result = sweep.run(path, config)
    assert len({(c.dropout, c.batch_size) for c in trained[:6]}) == 6
    assert len(trained) == len(result.runs) == 7 and result.failed == {}  # run_cap is kept


def test_hyperband_ends_bad_runs_early(write, config, curves):
    # Runs come in the grid's order: .5, .4, .3 ... Only the first is among the best third.
    values = [0.0, 0.1, 0.2, 0.3, 0.4]
    curves(lambda config: [0.5 - config.dropout] * 4)
    path = write(parameters={"dropout": {"values": values}},
                 early_terminate={"type": "hyperband", "min_iter": 1})  # fmt: skip
    result = sweep.run(path, config)
    assert [len(run.history) for run in result.runs] == [4, 1, 1, 1, 1]
    assert states(path, config) == ["COMPLETE"] + ["PRUNED"] * 4


def test_sweep_ends_at_the_target(write, config, curves):
    trained = curves(lambda config: [config.dropout])
    path = write(parameters={"dropout": {"values": [0.1, 0.2, 0.3, 0.4]}},
                 metric=METRIC | {"target": 0.2})  # fmt: skip
    assert len(sweep.run(path, config).runs) == len(trained) == 2


def test_budget_ends_the_sweep(write, config, curves, monkeypatch):
    now = [time.time()]
    for module in (runner, worker):
        monkeypatch.setattr(module, "time", SimpleNamespace(
            time=lambda: now[0], sleep=time.sleep, perf_counter=time.perf_counter))  # fmt: skip

    def slow(config):
        now[0] += 30
        return [0.1]

    trained = curves(slow)
    path = write()
    sweep.run(path, config, budget=45 / 60)
    assert len(trained) == 2
    sweep.run(path, config)
    assert len(trained) == 6


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrainingDiverged("the loss became nan"), "the loss became nan"),
        (MemoryError("no room"), "no room"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
    ],
)
def test_failed_trial_is_recorded_and_the_sweep_goes_on(write, config, curves, error, reason):
    def curve(config):
        if config.lr == 0.01:
            raise error
        return [0.3]

    trained = curves(curve)
    path = write()
    result = sweep.run(path, config)
    assert len(result.runs) == 4 and set(result.failed.values()) == {reason}
    assert len(result.failed) == 2
    sweep.run(path, config)
    assert len(trained) == 6  # what failed for a reason is not tried again


def test_a_sweep_of_which_nothing_finished_says_why(write, config, curves):
    def curve(config):
        raise TrainingDiverged("the loss became nan")

    curves(curve)
    result = sweep.run(write(), config)
    with pytest.raises(RuntimeError, match="no run of sweep .* has finished .*became nan"):
        result.best  # noqa: B018  (it is a property)


def test_a_run_whose_metric_was_never_finite_has_failed_and_is_not_the_best(write, config, curves):
    trained = curves(lambda config: [math.nan, math.inf] if config.dropout == 0 else [0.3])
    path = write(metric={"name": "val_loss", "goal": "minimize"})
    result = sweep.run(path, config)
    assert len(trained) == 6 and len(result.runs) == 3 and result.best.config.dropout == 0.2
    assert set(result.failed.values()) == {"val_loss was never a finite number"}
    assert result.value(result.best) == 0.7


def test_a_sweep_runs_where_files_cannot_be_linked(write, config, curves, monkeypatch):
    """As on Windows, where a link needs rights that few people have."""

    def refuse(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    trained = curves(lambda config: [0.3])
    monkeypatch.setattr(os, "symlink", refuse)
    assert len(sweep.run(write(), config).runs) == len(trained) == 6


def test_error_in_the_code_stops_the_sweep(write, config, curves):
    def curve(config):
        raise RuntimeError("a mistake")

    curves(curve)
    with pytest.raises(RuntimeError, match="a mistake"):
        sweep.run(write(), config)


def test_impossible_point_is_recorded(write, config, curves):
    trained = curves(lambda config: [0.3])
    path = write(parameters={"batch_norm": {"values": [True, False]},
                             "norm_after_pool": {"values": [True, False]}})  # fmt: skip
    result = sweep.run(path, config)
    assert len(trained) == 3 and list(result.failed.values()) == [
        "norm_after_pool needs batch_norm"
    ]


def test_dead_workers_point_is_given_back(write, config, curves):
    trained = curves(lambda config: [0.3])
    path = write()
    definition = read_sweep(path, config)
    folder = Path(config.runs_root) / "sweeps" / "small"
    folder.mkdir(parents=True)
    study = study_of(path, config)
    queue.fill(study, queue.list_points(definition, config))
    dead = queue.claim(study, read_sweep(path, config), config, worker=0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    worker = {"host": dead.user_attrs["worker"]["host"], "pid": gone.pid, "started": 1.0}
    dead.set_user_attr("worker", worker)
    sweep.run(path, config)
    assert len(trained) == 6 and states(path, config).count("COMPLETE") == 6


def test_living_workers_point_is_left_alone(write, config):
    path = write()
    (Path(config.runs_root) / "sweeps" / "small").mkdir(parents=True)
    study = study_of(path, config)
    queue.fill(study, queue.list_points(read_sweep(path, config), config))
    taken = queue.claim(study, read_sweep(path, config), config, worker=0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = psutil.Process(other.pid).create_time()
        worker = taken.user_attrs["worker"] | {"pid": other.pid, "started": started}
        taken.set_user_attr("worker", worker)
        queue.give_back(study)
        assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1


@pytest.mark.parametrize("more", [{}, {"early_terminate": {"type": "hyperband", "min_iter": 1}}])
def test_queue_filled_twice_holds_each_point_once(write, config, curves, more):
    trained = curves(lambda config: [0.3, 0.4])
    path = write(**more)
    (Path(config.runs_root) / "sweeps" / "small").mkdir(parents=True)
    definition, study = read_sweep(path, config), study_of(path, config)
    for slot, point in enumerate(queue.list_points(definition, config)):
        for _ in range(2):  # as two machines would that begin at the same moment
            study.enqueue_trial(point, user_attrs={"slot": slot})
    assert len(sweep.run(path, config).runs) == len(trained) == 6


def test_a_slot_is_given_up_where_its_workers_die_without_getting_further():
    def trial(epochs, **attributes):
        values = dict.fromkeys(range(1, epochs + 1), 0.1)
        return optuna.trial.create_trial(state=TrialState.FAIL, intermediate_values=values,
                                         user_attrs={"slot": 0} | attributes)  # fmt: skip

    assert not queue.is_given_up([])
    assert not queue.is_given_up([trial(epochs) for epochs in range(9)])  # each got further
    assert queue.is_given_up([trial(1)] + [trial(3)] * 5)
    assert not queue.is_given_up([trial(1)] * 4 + [trial(3)] * 4)
    assert not queue.is_given_up([trial(3, interrupted=True)] * 9)


def test_a_trial_of_another_time_zone_is_not_taken_for_a_dead_worker_s(write, config):
    path = write()
    (Path(config.runs_root) / "sweeps" / "small").mkdir(parents=True)
    study = study_of(path, config)
    queue.fill(study, queue.list_points(read_sweep(path, config), config))
    taken = study.ask()  # and nobody has said yet that it is theirs
    begun = taken._trial_id
    study._storage._replay_result._trials[begun].datetime_start -= timedelta(hours=1)
    assert queue.give_back(study)
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 1


def test_killed_workers_points_are_done_exactly_once(write, config, monkeypatch, capsys):
    path = write(parameters=GRID | {"seed": {"value": 0}, "epochs": {"value": 6}})
    command = ["sweep", str(path), "--workers", "2"]
    command += [f"{name}={json.dumps(value)}" for name, value in config.model_dump().items()
                if name in FAST or name == "runs_root"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    folder = Path(config.runs_root) / "sweeps" / "small"
    killed = None
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(runpy.run_module, "helpers.sweep", run_name="__main__")
        while killed is None and not ended.done():
            time.sleep(0.05)
            if (folder / "journal.log").exists() and list(folder.glob("*/history.csv")):
                running = study_of(path, config).get_trials(states=(TrialState.RUNNING,))
                if running and "worker" in running[0].user_attrs:
                    killed = running[0].user_attrs
                    os.kill(killed["worker"]["pid"], signal.SIGKILL)
        ended.result(timeout=120)
    assert killed and capsys.readouterr().out.startswith("6 runs in")
    runs = [Run(p.parent) for p in folder.glob("*/status.json")]
    assert len({run.config.id for run in runs}) == len(runs) == 6
    assert all([row["epoch"] for row in run.history] == [1, 2, 3, 4, 5, 6] for run in runs)
    trials = study_of(path, config).get_trials()
    assert sum(t.state == TrialState.COMPLETE for t in trials) == 6


def test_dry_run_counts_points_and_trains_one_epoch(write, config, tmp_path, monkeypatch):
    path = write(parameters=GRID | {"epochs": {"value": 7}})
    text = sweep.preview(path, config, workers=2)
    assert "6 runs of up to 7 epochs" in text and "2 workers" in text
    assert "| lr | 0.001, 0.01, 0.1 |" in text and "| epochs | 7 (fixed) |" in text
    assert find_runs(tmp_path) == []
    monkeypatch.setattr(runner, "train", None)  # asked again, it says the same without training
    assert sweep.preview(path, config, workers=2) == text


def test_weights_are_a_run_beside_the_sweeps_wherever_those_are(write, config):
    runner.train(config.replace(name="earlier", epochs=1))
    path = write(parameters={"weights": {"value": "earlier"}, "lr": {"values": [0.001, 0.01]}})
    assert "2 runs of up to 2 epochs" in sweep.preview(path, config)
    assert len(sweep.run(path, config).runs) == 2


def test_a_first_point_that_cannot_be_trained_does_not_stop_the_sweep(write, config, curves):
    def curve(config):
        if config.lr == 0.001:
            raise TrainingDiverged("the loss became nan")
        return [0.3]

    curves(curve)
    path = write()
    text = sweep.preview(path, config)
    assert "the first cannot be trained (the loss became nan)" in text and "| lr |" in text
    result = sweep.run(path, config)
    assert len(result.runs) == 4 and len(result.failed) == 2
    more = [config.replace(lr=lr, name=str(lr)) for lr in (0.001, 0.02)]
    assert [run.name for run in sweep.train_points(result, more)] == ["0.02"]


def test_dry_run_takes_the_first_point_that_works_and_the_most_epochs(write, config, curves):
    trained = curves(lambda config: [0.3])
    path = write(
        method="random", run_cap=6,
        parameters={"batch_norm": {"values": [False, True]}, "norm_after_pool": {"value": True},
                    "epochs": {"min": 3, "max": 9}},
    )  # fmt: skip
    assert "6 runs of up to 9 epochs" in sweep.preview(path, config)
    assert [c.batch_norm for c in trained] == [True]
    with pytest.raises(ConfigError, match="workers = 0 should be at least 1"):
        sweep.preview(path, config, workers=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"workers": 0}, "workers = 0 should be at least 1"),
        ({"budget": -1}, "budget = -1 should be more than 0"),
        ({"storage": "sqlite:///sweep.db"}, "SQLite"),
        ({"storage": "postgresql://user:secret@localhost:1/none"}, "localhost:1/none cannot be"),
        ({"storage": "nothing://x"}, "cannot be used"),
    ],
)
def test_bad_call_is_one_sentence_and_changes_nothing(write, config, tmp_path, call, message):
    path = write()
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        sweep.run(path, config, **call)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)
    assert files(tmp_path) == before and not (tmp_path / "sweeps").exists()


def test_storage_of_another_sweep_is_refused(write, config, curves, tmp_path):
    curves(lambda config: [0.3])
    sweep.run(write(), config, storage=str(tmp_path / "queue.log"))
    changed = write(parameters={"lr": {"values": [0.5]}})
    for path, other in (changed, config), (write("other"), config):
        before = files(tmp_path)
        with pytest.raises(ConfigError, match="another sweep"):
            sweep.run(path, other, storage=str(tmp_path / "queue.log"))
        assert files(tmp_path) == before
    with pytest.raises(ConfigError, match="another sweep .*momentum"):
        sweep.run(write(), config.replace(momentum=0.5), storage=str(tmp_path / "queue.log"))


def test_storage_that_is_no_queue_is_left_as_it_is(write, config, tmp_path):
    diary = tmp_path / "diary.txt"
    diary.write_text("dear diary")
    with pytest.raises(ConfigError, match="diary.txt cannot be used"):
        sweep.run(write(), config, storage=str(diary))
    assert diary.read_text() == "dear diary"


def test_half_written_line_of_a_killed_worker_is_mended(write, config, curves):
    trained = curves(lambda config: [0.3])
    path = write()
    sweep.run(path, config)
    with (Path(config.runs_root) / "sweeps" / "small" / "journal.log").open("a") as file:
        file.write('{"op_code": 5, "half')
    assert len(sweep.run(path, config).runs) == len(trained) == 6


def test_online_gives_wandb_the_same_file_and_the_same_training(write, config, curves, monkeypatch):
    trained = curves(lambda config: [0.25])
    calls = []

    class Tracked:
        id = "abc"
        config = {"group": {"lr": 0.02}, "dropout": 0.2}
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

    def agent(sweep_id, function, project, count):
        calls.append((sweep_id, project, count))
        function()

    def make_sweep(content, project):
        calls.append((content, project))
        return "id-1"

    wandb = SimpleNamespace(login=lambda prompt, verify: True, init=Tracked, sweep=make_sweep,
                            agent=agent)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    parameters = {"group": {"parameters": {"lr": {"values": [0.01, 0.02]}}},
                  "dropout": {"values": [0.2]}}  # fmt: skip
    path = write(method="random", run_cap=3, parameters=parameters)
    result = sweep.run(path, config.replace(tracking="online"))
    assert calls == [(yaml.safe_load(path.read_text()), "five-blocks"), ("id-1", "five-blocks", 3)]
    assert [(c.lr, c.dropout) for c in trained] == [(0.02, 0.2)] and len(result.runs) == 1
    wandb.login = lambda prompt, verify: False
    with pytest.raises(ConfigError, match="wandb login"):
        sweep.run(path, config.replace(tracking="online"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a real server; skip where its programs or driver are not installed."""
    pytest.importorskip("psycopg")
    programs = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")}
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for name in programs:
        if found and (found[-1] / name).exists():
            programs[name] = str(found[-1] / name)
    if None in programs.values():
        pytest.skip("PostgreSQL is not installed")
    folder = tmp_path_factory.mktemp("server")
    prefix = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        for parent in [*folder.parents][:3]:
            if parent.owner() == "root" and parent != Path("/tmp"):
                parent.chmod(0o755)
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with_port = f"-p {port} -k {folder} -c listen_addresses=localhost"
    quiet = {"check": True, "capture_output": True, "cwd": folder}
    subprocess.run([*prefix, programs["initdb"], "-A", "trust", "-U", "sweeper", "-D",
                    str(folder / "data")], **quiet)  # fmt: skip
    control = [*prefix, programs["pg_ctl"], "-D", str(folder / "data")]
    subprocess.run([*control, "-w", "-l", str(folder / "log"), "-o", with_port, "start"],
                   check=True, cwd=folder, stdout=subprocess.DEVNULL)  # fmt: skip
    yield f"postgresql://sweeper@localhost:{port}"
    subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


@pytest.fixture
def postgresql(server, request):
    """Make a new database for this test."""
    import psycopg

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{request.node.name[:60]}"')
    return f"{server}/{request.node.name[:60]}".replace("://", "+psycopg://")


def test_postgresql_holds_the_queue(write, config, curves, postgresql):
    trained = curves(lambda config: [0.3])
    path = write()
    assert len(sweep.run(path, config, storage=postgresql).runs) == len(trained) == 6
    assert len(sweep.run(path, config, storage=postgresql).runs) == len(trained) == 6
    study = optuna.load_study(study_name="small", storage=postgresql)
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 6
    with pytest.raises(ConfigError, match="another sweep"):
        sweep.run(write(parameters={"lr": {"values": [0.5]}}), config, storage=postgresql)


def test_a_connection_that_postgresql_ends_is_opened_again(write, config, curves, postgresql):
    import psycopg

    def ended(config):
        with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
            others = (
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND usename = 'sweeper' AND pid <> %s"
            )
            own = connection.info.backend_pid
            ended.count += len(connection.execute(others, [own]).fetchall())
            connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({others}) AS p", [own])
        return [0.3]

    ended.count = 0
    trained = curves(ended)
    assert len(sweep.run(write(), config, storage=postgresql).runs) == len(trained) == 6
    assert ended.count >= 6


def test_a_locked_table_of_postgresql_is_one_sentence(
    write, config, curves, postgresql, monkeypatch
):
    import psycopg

    curves(lambda config: [0.3])
    path = write()
    sweep.run(path, config, storage=postgresql)
    monkeypatch.setattr(queue, "LOCK_SECONDS", 1)
    with psycopg.connect(postgresql.replace("+psycopg", "")) as connection:
        connection.execute("LOCK TABLE studies IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ConfigError, match=r"cannot be used: .*lock timeout"):
            sweep.run(path, config, storage=postgresql)

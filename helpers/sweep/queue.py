"""The queue of a sweep on an Optuna storage: each slot is run once, however many workers die.

A slot is a point of a grid or one of the `run_cap` runs of a search. A trial is one try at it:
COMPLETE or PRUNED (ended early) when it is done, FAIL with a reason when it can never be done, FAIL
without a reason when its worker died; then the slot is put into the queue again.
"""

import json
import os
import socket
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import optuna
import psutil
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from helpers.data.batches import mix_seeds
from helpers.runs.config import NO_EFFECT, Config, ConfigError
from helpers.runs.files import CannotWrite, naming_the_disk
from helpers.runs.text import reason, without_secrets
from helpers.sweep.file import Definition, goal_of

MOST_TRIES = 5  # of a slot whose workers die
MOST_DRAWS = 30  # for a point that was not tried before
REPEATED = "repeated"
SILENCE = 1800  # seconds without an epoch after which another machine's worker counts as dead
LOCK_SECONDS = 30  # for which a database's table may be locked by somebody else
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_FIRST_SEEN: dict[tuple, float] = {}  # trials that nobody seemed to work on, and since when

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(definition: Definition, config: Config, storage: str) -> optuna.Study:
    """Open or make the sweep's study in a journal file, or in a database by its URL.

    Raises ConfigError in one sentence when the storage cannot be reached, or holds another sweep
    of this name, CannotWrite where a journal's disk is full or read-only.
    """
    try:
        if "://" not in storage:
            backend = optuna.storages.JournalStorage(_journal(Path(storage)))
            others = set(optuna.get_all_study_names(backend)) - {definition.name}
            if others:
                raise ValueError(f"it is the queue of another sweep, {others.pop()}")
        elif storage.startswith("sqlite"):
            raise ValueError("SQLite does not bear several workers; use a journal file")
        else:
            options = {"pool_pre_ping": True}  # a connection that was ended is opened again
            if storage.startswith("postgresql"):
                limit = f"-c lock_timeout={LOCK_SECONDS}s"
                options["connect_args"] = {"connect_timeout": 10, "options": limit}
            backend = optuna.storages.RDBStorage(storage, engine_kwargs=options)
        if definition.name in optuna.get_all_study_names(backend):
            study = optuna.load_study(study_name=definition.name, storage=backend)
        else:
            study = optuna.create_study(
                study_name=definition.name,
                storage=backend,
                direction=goal_of(definition.metric),
                load_if_exists=True,  # another machine may have been quicker
            )
    except CannotWrite:
        raise
    except Exception as error:  # each database has its own
        place = without_secrets(storage, storage)
        why = without_secrets(reason(error.__cause__ or error, 120), storage)  # Optuna guesses
        if isinstance(error, ImportError):
            why = 'its driver is missing: pip install "psycopg[binary]", for postgresql+psycopg://'
        raise ConfigError(f"storage {place} cannot be used: {why}") from None
    kept = config.model_dump(exclude=NO_EFFECT)
    keys = ("method", "metric", "early_terminate", "parameters")
    content = {**{key: definition.content.get(key) for key in keys}, **kept}
    known = study.user_attrs.get("sweep")
    if known is None:
        study.set_user_attr("sweep", content)
    elif changed := [key for key in content if known.get(key) != content[key]]:
        raise ConfigError(
            f"storage {without_secrets(storage, storage)} holds another sweep named "
            f"{definition.name}, with other {', '.join(changed[:3])}: rename the sweep file, or "
            f"remove that storage"
        )
    return study


def _journal(path: Path) -> JournalFileBackend:
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            json.loads(file.readline())  # not a journal? then nothing is written
    with naming_the_disk(path):
        return _Journal(path)


class _Journal(JournalFileBackend):
    """Optuna's, with one sentence for a full disk, and free at once when its worker was killed.

    Optuna's own lock stays for 30 s then, and for ever the line that the worker had begun.
    """

    def __init__(self, path: Path):
        super().__init__(str(path), FileLock(path.with_name(f".{path.name}.lock")))

    def append_logs(self, logs: list[dict]) -> None:
        path = Path(self._file_path)
        with naming_the_disk(path), self._lock.acquire(poll_interval=0.005):
            with path.open("r+b") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # the begun line
                        file.seek(0)
                        file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)  # takes the lock again, as its owner may


def fill(study: optuna.Study, points: list[dict]) -> None:
    """Put every slot into the queue that is not there, not running and not done.

    A slot that was tried before is tried again with the same parameters.
    """
    tries = slots(study)
    for slot, point in enumerate(points):
        before = tries.get(slot, [])
        if not any(_counts(trial) for trial in before) and not is_given_up(before):
            again = before and REPEATED not in before[-1].user_attrs
            parameters = point | (before[-1].params if again else {})
            study.enqueue_trial(parameters, user_attrs={"slot": slot})


def list_points(definition: Definition, config: Config) -> list[dict]:
    """List what is known of each slot's parameters: all, but for a Bayesian search nothing."""
    if definition.method == "grid":
        return [{k: json.dumps(v) for k, v in point.items()} for point in definition.grid()]
    if definition.method == "bayes":
        return [{} for _ in range(definition.run_cap)]
    seed = mix_seeds(config.seed, zlib.crc32(definition.name.encode()))
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    points = []
    for _ in range(definition.run_cap):
        trial = drawn.ask()
        for parameter in definition.parameters:
            parameter.suggest(trial)
        points.append(trial.params)
    return points


def slots(study: optuna.Study) -> dict[int, list[FrozenTrial]]:
    """Return the trials of each slot, oldest first."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get("slot") is not None:
            found.setdefault(trial.user_attrs["slot"], []).append(trial)
    return found


def _counts(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL or "reason" in trial.user_attrs


def is_given_up(tries: list[FrozenTrial]) -> bool:
    """Say whether a slot's workers died so often, since one last got further, that it is left."""
    innocent = {"interrupted", REPEATED}
    epochs = [len(trial.intermediate_values) for trial in tries]
    since = tries[epochs.index(max(epochs)) :] if tries else []
    died = [t for t in since if not _counts(t) and not innocent & t.user_attrs.keys()]
    return len(died) >= MOST_TRIES


def is_target_reached(study: optuna.Study, definition: Definition) -> bool:
    """Say whether any run has reached the metric's target."""
    trials = study.get_trials(deepcopy=False)
    return any(definition.reached(v) for t in trials for v in t.intermediate_values.values())


def claim(
    study: optuna.Study, definition: Definition, config: Config, worker: int
) -> Trial | None:
    """Take the next trial from the queue for this process; None when the queue is empty.

    Its parameters are those of its slot, or those that a Bayesian search suggests. A point that
    was tried before would only give the same result: then less is demanded of the next suggestion,
    at last nothing, unless there seems to be no other point.
    """
    draws = 0
    while waiting := study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        begun = len(study.get_trials(deepcopy=False)) - len(waiting)
        seed = mix_seeds(config.seed, worker, begun)
        study.sampler = (
            optuna.samplers.RandomSampler(seed)
            if draws > MOST_DRAWS // 3
            else optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=8,
                n_ei_candidates=3 if draws else 24,
                multivariate=True,
                constant_liar=True,
            )
        )
        trial = study.ask()
        if not _is_ours(study, trial):
            trial.set_user_attr("slot", None)
            study.tell(trial, state=TrialState.FAIL)
            continue
        for parameter in definition.parameters:
            parameter.suggest(trial)
        if definition.method == "bayes" and draws < MOST_DRAWS and _was_tried(study, trial):
            draws += 1
            slot = trial.user_attrs["slot"]
            trial.set_user_attr(REPEATED, True)
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial({}, user_attrs={"slot": slot})
            continue
        trial.set_user_attr("seen", time.time())
        trial.set_user_attr("worker", _this_process())
        return trial
    return None


def _was_tried(study: optuna.Study, trial: Trial) -> bool:
    others = (t for tries in slots(study).values() for t in tries if t.number != trial.number)
    slot = trial.user_attrs["slot"]
    return any(_counts(t) and t.params == trial.params and t.user_attrs["slot"] != slot
               for t in others)  # fmt: skip


def _is_ours(study: optuna.Study, trial: Trial) -> bool:
    """Turn down what two machines put into the queue twice, or took from its end together."""
    slot = trial.user_attrs.get("slot")
    if slot is None:
        return False
    return not any(_counts(t) and t.number < trial.number for t in slots(study)[slot])


def give_back(study: optuna.Study) -> bool:
    """End the trials whose workers died; `fill` then puts their slots into the queue again.

    Returns whether a trial is left that was taken from the queue this moment, by nobody known.
    """
    unknown = False
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        alive = _is_alive(trial)
        unknown |= alive is None
        if alive is False:
            with suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
                study.tell(trial.number, state=TrialState.FAIL)
    return unknown


def _is_alive(trial: FrozenTrial) -> bool | None:
    worker = trial.user_attrs.get("worker")
    if worker is None:  # taken this moment, or the worker died in that moment
        # By this process's clock: that of the other machine may be in another time zone.
        first = _FIRST_SEEN.setdefault((trial.number, trial.datetime_start), time.monotonic())
        return None if time.monotonic() - first < 10 else False
    if worker["host"] != socket.gethostname():
        return time.time() - trial.user_attrs["seen"] < SILENCE
    if worker == _this_process():  # it asks when it works on nothing: an error ended that trial
        return False
    with suppress(psutil.Error):
        process = psutil.Process(worker["pid"])
        return (
            process.create_time() == worker["started"] and process.status() != psutil.STATUS_ZOMBIE
        )
    return False


def _this_process() -> dict:
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": process.create_time(),
    }

"""Run reports' rows again, each a papermill run of its own that may be killed and continued.

    python -m helpers.report.batch experiments/r5.yaml [--rows PATTERN] [--jobs N] [--set epochs=1]
        [--dataset tiny_nature] [--dry-run]

Rows that only count are counted at once, without a notebook, a fraction of a second each. Rows that
ran on drawn images in place of the report's keep their figures, not their weights.

Each execution has a folder runs/batch/REPORT/ROW: status.json, the executed notebook, log.txt and
parameters.yaml, with which papermill runs it by hand. Finished rows are skipped, all others start
or continue.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from helpers import ROOT
from helpers.report import rows
from helpers.report.executions import Execution, plan
from helpers.report.rows import ExperimentError
from helpers.runs.config import ConfigError, read_values
from helpers.runs.files import CannotWrite, DamagedFile, naming_the_disk, readable_json
from helpers.runs.progress import tqdm
from helpers.runs.text import for_terminal

MARK = "FIVE_BLOCKS_BATCH"  # in the environment of all that an execution starts: its folder
ATTEMPTS = 2  # where a notebook ends without an error of its own: its kernel was lost


def run(executions: list[Execution], jobs: int = 1) -> list[Execution]:
    """Run all executions that have not finished, `jobs` at a time; returns those that failed.

    However it ends, by an error, Ctrl-C or SIGTERM, nothing that it started is left running.
    What an earlier batch left running because it was killed is stopped first.
    """
    failed: list[Execution] = []
    running: list[Execution] = []
    with ExitStack() as stack:
        for folder in sorted({execution.folder.parent for execution in executions}):
            _lock(folder, stack)
            stop(folder)
        waiting = [execution for execution in executions if not execution.finished]
        done = len(executions) - len(waiting)
        print(f"{len(waiting)} of {len(executions)} executions to run, {done} finished before")
        bar = stack.enter_context(
            tqdm(total=len(executions), initial=done, unit="row", smoothing=0, disable=None)
        )

        def end(execution: Execution, state: str, reason: str) -> None:
            execution.set_status(state, reason)
            if state == "failed":
                failed.append(execution)
            bar.update()
            _say(bar, execution, state, reason)

        try:
            for execution in [one for one in waiting if one.row.counts]:
                waiting.remove(execution)
                end(execution, *_count(execution))
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(waiting.pop(0))
                    running[-1].write_parameters()
                    _start(running[-1], jobs)
                    if bar.disable:
                        _say(bar, running[-1], "started", running[-1].changes)
                for execution in list(running):
                    state, reason = _look(execution, jobs)
                    if state != "running":
                        running.remove(execution)
                        end(execution, state, reason)
                if not bar.disable:
                    bar.set_postfix_str("; ".join(map(_progress, running)))
                time.sleep(0.2)
        finally:
            for execution in running:
                _end(execution)
            for execution in running:
                with suppress(CannotWrite):  # a full disk has said so already
                    execution.set_status("interrupted")
                _say(bar, execution, "interrupted")
    return failed


def stop(folder: Path) -> None:
    """End every process that executions in `folder` started: papermill, kernels, their workers.

    Kernels are in sessions of their own; what they all share is the mark in their environment.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(MARK)
            if mark and folder in (Path(mark), *Path(mark).parents):
                process.terminate()
                found.append(process)
    for process in _alive(found, 3):
        with suppress(psutil.Error):
            process.kill()
    _alive(found, 10)


def _alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all have ended, reaped or not; returns those that have not in so many seconds."""
    until = time.monotonic() + seconds
    while True:
        left = []
        for process in processes:
            with suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def _end(execution: Execution) -> None:
    """Stop all that an execution started."""
    stop(execution.folder)
    if execution.process:
        execution.process.poll()  # reaps it


def _lock(folder: Path, stack: ExitStack) -> None:
    """Hold a report's folder while this batch lives; at its death the system lets go of it."""
    try:
        with naming_the_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
    except Timeout:
        text = f"another batch works on {folder.name}: wait for it, or stop it"
        raise ExperimentError(text) from None


def _start(execution: Execution, jobs: int) -> None:
    """Start the execution's present step, in a process group of its own."""
    execution.started = execution.started or time.monotonic()
    execution.set_status("running")
    environment = {**os.environ, MARK: str(execution.folder)}
    if jobs > 1:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with (execution.folder / "log.txt").open("ab") as log:
        execution.process = subprocess.Popen(
            [sys.executable, *execution.command(execution.step)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )


def _count(execution: Execution) -> tuple[str, str]:
    """Count here and now; returns the execution's state and a reason."""
    begun = time.monotonic()
    execution.write_parameters()
    try:
        execution.count()
        state, reason = "finished", ""
    except Exception as error:  # this row's mistake is not the other rows'
        state, reason = "failed", f"{type(error).__name__}: {error}"
    execution.seconds = time.monotonic() - begun
    return state, reason


def _look(execution: Execution, jobs: int) -> tuple[str, str]:
    """Return an execution's state and a reason; starts its next step where one has ended."""
    execution.seconds = time.monotonic() - execution.started
    code = execution.process.poll()
    if code is None:
        if execution.seconds < 60 * execution.row.limit_minutes:
            return "running", ""
        _end(execution)
        return "failed", f"not done within its limit of {execution.row.limit_minutes:g} minutes"
    if code == 0 and execution.step + 1 == len(execution.steps):
        execution.forget_weights()
        return "finished", ""
    if code == 0:
        execution.step += 1
    else:
        stop(execution.folder)  # a kernel may outlive its papermill
        reason = _error(execution.paths(execution.step)[1])
        if reason:
            return "failed", reason
        if execution.attempt == ATTEMPTS:
            return "failed", f"papermill ended with {code}: see {execution.folder}/log.txt"
        execution.attempt += 1
    _start(execution, jobs)
    return "running", ""


def _error(notebook: Path) -> str:
    """Return the error of an executed notebook's last cell that has one; "" for none."""
    content = readable_json(notebook, dict) or {}  # papermill may be killed while it writes
    outputs = [
        output
        for cell in content.get("cells", [])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    return " ".join(f"{outputs[-1]['ename']}: {outputs[-1]['evalue']}".split()) if outputs else ""


def _say(bar: tqdm, execution: Execution, state: str, remark: str = "") -> None:
    """Print an event, which stays above the bar."""
    seconds = f"{execution.seconds:.0f} s" if state != "started" else ""
    line = f"{execution.label:36}  {state:11} {seconds:>7}  {remark}"
    with bar.external_write_mode():
        print(line.rstrip(), flush=True)


def _progress(execution: Execution) -> str:
    """Say in a few words how far an execution is."""
    _, parameters = execution.steps[execution.step]
    epochs = sum(stage["epochs"] for stage in parameters.get("stages", []))
    epochs = epochs or parameters.get("epochs", "?")
    trained = 0
    with suppress(DamagedFile):  # its training sets the file aside
        trained = len(execution.run.history)
    where = f"{trained} of {epochs} epochs" if trained else "starting"
    if runs := len(list(execution.run.folder.glob("*/metrics.json"))):  # of a sweep
        where = f"{runs} runs"
    return f"{execution.label}, {'test set' if execution.step else where}"


def _summary(executions: list[Execution], failed: list[Execution]) -> str:
    lines = [f"{len(executions) - len(failed)} of {len(executions)} executions have finished"]
    reasons = {execution.label: execution.status.get("reason", "") for execution in failed}
    lines += [f"failed: {label}: {for_terminal(reason)}" for label, reason in reasons.items()]
    changed = sum(bool(execution.changes) for execution in executions)
    if changed:
        lines.append(
            f"{changed} of them ran with changes, so that their figures are no measurement of the "
            f"report; each status.json says which"
        )
    return "\n".join(lines)


def _dry_run(executions: list[Execution]) -> str:
    """Write each execution's parameters, run nothing, and list what would run."""
    lines = []
    for execution in executions:
        execution.write_parameters()
        state = execution.status.get("state", "new")
        limit = f"at most {execution.row.limit_minutes:g} min"
        lines.append(f"{execution.label}  {state}, {limit}  {execution.changes}".rstrip())
        commands = [shlex.join(execution.command(step)) for step in range(len(execution.steps))]
        lines += [f"    python {command}" for command in commands]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 if a row failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.report.batch", description="Run the rows of reports again."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="such as experiments/r5.yaml")
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="names, such as 'scratch_*'")
    parser.add_argument("--jobs", type=int, default=1, help="executions at a time (1)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes",
                        help="another value for all rows; may be given several times")  # fmt: skip
    parser.add_argument(
        "--dataset", default="", help="other data for all rows, such as tiny_nature"
    )
    parser.add_argument("--runs-root", default="runs", help="where all results go (runs)")
    parser.add_argument("--dry-run", action="store_true", help="list what would run")
    options = parser.parse_args(arguments)
    try:
        executions = _read(options)
        if options.dry_run:
            print(_dry_run(executions))
            return 0
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            failed = run(executions, options.jobs)
        finally:
            signal.signal(signal.SIGTERM, before)
    except (ExperimentError, ConfigError, FileNotFoundError, CannotWrite, DamagedFile) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    print(_summary(executions, failed))
    return 1 if failed else 0


def _read(options: argparse.Namespace) -> list[Execution]:
    """Read the files and options; raises ExperimentError in one sentence."""
    if options.jobs < 1:
        raise ExperimentError(f"--jobs {options.jobs} should be at least 1")
    changes = read_values(options.changes)
    known = [row for path in dict.fromkeys(options.files) for row in rows.load(path)]

    def fits(row: rows.Row, name: str) -> bool:
        return fnmatch(row.name, options.rows) or fnmatch(name, options.rows)

    wanted = [row for row in known if any(fits(row, name) for name in row.points)]
    if not wanted:
        names = ", ".join(row.name for row in known)
        raise ExperimentError(f"--rows {options.rows} fits none of {names}")
    executions = plan(wanted, options.dataset, changes, options.runs_root)
    return [execution for execution in executions if fits(execution.row, execution.name)]


if __name__ == "__main__":
    sys.exit(main())

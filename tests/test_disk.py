"""A disk that is full, data that changed, two processes at once: one sentence, and nothing lost."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from test_damage import SWEEP, make_config, result, write_images

from helpers import ROOT, data, detect, models, sweep
from helpers.data import images as decoding
from helpers.data.download import unpack
from helpers.detect.detectors import Detector
from helpers.detect.rules import Rules
from helpers.detect.tracking import Detections
from helpers.detect.video import Video, Writer
from helpers.evaluate.evaluation import open_test_set
from helpers.report import batch
from helpers.report.notebooks import write_pages
from helpers.report.page import write_report
from helpers.runs import files
from helpers.runs.config import Config, ConfigError
from helpers.runs.files import CannotWrite, lock, reserve, write_atomically
from helpers.runs.folder import Run, open_run
from helpers.train import train
from helpers.train.loop import fit

NOTHING = Detections(np.zeros((0, 4)), [], np.zeros(0))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "DECODED", tmp_path / "decoded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    write_images(tmp_path / "set")
    yield tmp_path
    torch.set_num_threads(threads)


@contextmanager
def largest_file(size):
    """Let no file grow beyond a size: the system then says what it says of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_stays_as_it_was_where_the_new_one_does_not_fit(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    with largest_file(1000), pytest.raises(CannotWrite, match="its disk is full: free some room"):
        write_atomically(path, b"x" * 2000)
    with largest_file(1000), pytest.raises(CannotWrite, match="is full"):
        reserve(tmp_path / "b", 2000)
    assert path.read_bytes() == b"old"
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.json", "b"}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_room_is_taken_where_the_file_system_cannot_take_it_itself(tmp_path, monkeypatch):
    take = os.posix_fallocate

    def as_glibc_does_without_the_call(descriptor, offset, length):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        take(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", as_glibc_does_without_the_call)
    (tmp_path / "begun").write_bytes(b"here")
    for name in ("begun", "new"):
        reserve(tmp_path / name, 2000)
        assert (tmp_path / name).stat().st_size == 2000
    assert (tmp_path / "begun").read_bytes().startswith(b"here")


def test_decoding_on_a_full_disk_stops_in_one_sentence_and_later_works(home):
    config = make_config(home)
    with largest_file(20_000), pytest.raises(CannotWrite, match=r"decoded.* its disk is full"):
        data.load(config)
    assert not [p for p in (home / "decoded").iterdir() if not p.name.endswith(".lock")]
    assert len(data.load(config).test) == 4


def test_training_on_a_full_disk_stops_in_one_sentence_and_continues_later(home):
    config = make_config(home)
    whole = train(config.replace(name="whole"))
    run = open_run(config.replace(name="stopped"))
    with largest_file(3000), pytest.raises(CannotWrite, match=r"best\.pt .* its disk is full"):
        train(config.replace(name="stopped"))
    assert run.status["state"] == "failed" and "full" in run.status["reason"]
    assert not list(run.folder.glob("*.unfinished"))
    run = train(config.replace(name="stopped"))
    assert result(run)[1:] == result(whole)[1:]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_run_whose_best_weights_were_lost_on_the_way_ends_as_if_they_had_not(home, damage):
    config = make_config(home).replace(epochs=3)
    whole = train(config.replace(name="whole"))
    config = config.replace(name="lost")
    with pytest.raises(KeyboardInterrupt):
        train(config, lambda row: _interrupt() if row["epoch"] == 2 else False)
    damage(home / "runs" / "lost" / "best.pt")
    assert result(train(config))[1:] == result(whole)[1:]


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("size", [400, 3000, 9000])
def test_a_sweep_on_a_full_disk_stops_in_one_sentence_and_continues_later(home, size, monkeypatch):
    """Where the sweep's journal fills the disk, or a run's file does."""
    (home / "grid.yaml").write_text(SWEEP)
    config = make_config(home).replace(runs_root=str(home / "runs"))
    whole = sweep.run(home / "grid.yaml", config.replace(runs_root=str(home / "whole")))
    with largest_file(size), pytest.raises(CannotWrite, match="its disk is full"):
        sweep.run(home / "grid.yaml", config)
    slept = []  # a trial whose worker is not known is waited for: the clock goes on, nobody waits
    monkeypatch.setattr(sweep.queue, "time", SimpleNamespace(
        time=time.time, monotonic=lambda: time.monotonic() + sum(slept)))  # fmt: skip
    monkeypatch.setattr(sweep.runner, "time", SimpleNamespace(
        sleep=slept.append, time=time.time, perf_counter=time.perf_counter))  # fmt: skip
    done = sweep.run(home / "grid.yaml", config)
    assert not done.failed
    assert [(run.name, result(run)[1:]) for run in done.runs] == [
        (run.name, result(run)[1:]) for run in whole.runs
    ]


def test_a_report_on_a_full_disk_leaves_the_one_before(home):
    train(make_config(home).replace(name="one"))
    page = write_report(str(home / "runs"))
    before = page.read_bytes()
    train(make_config(home).replace(name="two"))
    with largest_file(1000), pytest.raises(CannotWrite, match=r"ledger\.csv .* its disk is full"):
        write_report(str(home / "runs"))
    assert page.read_bytes() == before and not list(page.parent.glob("*.unfinished"))
    assert write_report(str(home / "runs")).read_bytes() != before


def test_a_film_on_a_full_disk_stops_in_one_sentence(home):
    with Writer(home / "street.mp4", 64, 48, 25) as writer:
        for number in range(20):
            image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            writer.write(image, number / 25)
    detector = Detector(["car"], lambda images: [NOTHING] * len(images), .5)
    video = Video(home / "street.mp4")
    for size in (10, 2000):
        moments = detect.process(video, detector, Rules())
        with largest_file(size), pytest.raises(CannotWrite, match="its disk is full"):
            detect.record(moments, video, Rules(), home / "film")


def test_a_batch_on_a_full_disk_stops_in_one_sentence_and_continues_later(home, capsys):
    arguments = [str(ROOT / "experiments/r5.yaml"), "--rows", "count*",
                 "--runs-root", str(home / "runs")]  # fmt: skip
    for size in (0, 64, 300):
        with largest_file(size):
            assert batch.main(arguments) == 2
        said = capsys.readouterr().err
        assert "its disk is full" in said and said.count("\n") == 1
    assert batch.main(arguments) == 0


def test_a_batch_on_a_read_only_disk_says_so(home, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    arguments = [str(ROOT / "experiments/r5.yaml"), "--rows", "count*",
                 "--runs-root", str(home / "runs")]  # fmt: skip
    assert batch.main(arguments) == 2
    assert "its disk does not allow it (Read-only file system)" in capsys.readouterr().err


def test_a_page_on_a_full_disk_leaves_the_one_before(home):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("first")])
    nbformat.write(notebook, home / "a.ipynb")
    (page,) = write_pages([home / "a.ipynb"])
    before = page.read_bytes()
    notebook.cells[0].source = "second"
    nbformat.write(notebook, home / "a.ipynb")
    with largest_file(1000), pytest.raises(CannotWrite, match=r"a\.html .* its disk is full"):
        write_pages([home / "a.ipynb"])
    assert page.read_bytes() == before


def test_unpacking_on_a_full_disk_leaves_the_archive_and_nothing_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr("set/1.txt", bytes(5000))
    with largest_file(1000), pytest.raises(CannotWrite, match="full"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zip"]


def test_of_two_trainings_of_one_run_one_works_and_the_other_waits(home, monkeypatch):
    config = make_config(home).replace(name="one", epochs=3)
    alone = train(config.replace(name="alone"))
    splits, seen, runs, said = data.load(config), [], [], []
    monkeypatch.setattr(files, "print", lambda text, **_: said.append(text), raising=False)

    def work(model):
        runs.append(fit(model, splits, config, lambda row: bool(seen.append(row["epoch"]))))

    networks = [models.build(config, 2) for _ in range(2)]  # threads share the random numbers
    threads = [threading.Thread(target=work, args=(network,)) for network in networks]
    with lock(home / "runs" / "one" / "training", "testing"):  # both come to a closed door
        for thread in threads:
            thread.start()
        while len(said) < 2 and all(thread.is_alive() for thread in threads):
            time.sleep(0.05)
    assert said == ["waiting for another process, which is training one"] * 2
    for thread in threads:
        thread.join()
    assert sorted(seen) == [1, 2, 3]
    assert [result(run)[1:] for run in runs] == [result(alone)[1:]] * 2


def test_a_run_is_tied_to_the_content_of_its_images_wherever_they_lie(home):
    config = make_config(home).replace(name="mine")
    first = result(train(config))
    shutil.copytree(home / "set", home / "moved" / "set")
    moved = train(config.replace(name="moved", dataset=f"folder:{home / 'moved' / 'set'}"))
    assert result(moved)[1:] == first[1:]
    shutil.move(home / "set", home / "away")
    assert result(train(config)) == first  # the images need not be here any more
    shutil.move(home / "away", home / "set")
    ant, bee = (home / "set" / "train" / name / "0.png" for name in ("ant", "bee"))
    one, other = ant.read_bytes(), bee.read_bytes()
    ant.write_bytes(other)
    bee.write_bytes(one)
    for work in (lambda: train(config), lambda: open_test_set(Run(home / "runs/mine"),
                                                              data.load(config))):  # fmt: skip
        with pytest.raises(ConfigError, match="trained on other images .* other files") as error:
            work()
        assert len(str(error.value)) <= 300
    ant.write_bytes(one)
    bee.write_bytes(other)
    assert result(train(config)) == first
    for split in ("train", "test"):
        (home / "set" / split / "ant").rename(home / "set" / split / "wasp")
    with pytest.raises(ConfigError, match="without ant, with wasp"):
        train(config)


def test_two_folders_of_one_name_and_equal_names_sizes_and_times_are_two(home):
    """Only their pixels differ: what is decoded of the one is not the other's."""
    for place, seed in (("here", 1), ("there", 2)):
        folder = write_images(home / place / "set", seed=seed)
        for path in folder.rglob("*.png"):
            os.utime(path, (1, 1))
    configs = [make_config(home).replace(dataset=f"folder:{home / place / 'set'}")
               for place in ("here", "there")]  # fmt: skip
    here, there = (data.load(config) for config in configs)
    assert here.fingerprint != there.fingerprint
    assert not np.array_equal(here.test.take([0]), there.test.take([0]))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_without_proc_one_sentence_says_what_is_missing():
    work = "from pathlib import Path; Path.exists = lambda path: False; import helpers"
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, text=True, capture_output=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("OSError: /proc is not")


def test_leftovers_of_the_dead_are_removed(home):
    config = make_config(home)
    folder = data.load(config).train.decoded.filename
    name = os.path.basename(os.path.dirname(folder))
    (home / "decoded" / f".{name}.1.unfinished").mkdir()
    shutil.rmtree(home / "decoded" / name)
    data.load(config)
    run = open_run(config)
    (run.folder / ".best.pt.999999999.unfinished").write_bytes(b"half")
    open_run(config)
    for place in (home / "decoded", run.folder):
        assert not list(place.glob("*.unfinished"))


@pytest.mark.parametrize(
    "name", ["../up", "/up", "a/b", "x" * 300, "a?b", "a#b", ".", "..", "a\nb"]
)
def test_a_name_is_no_path_and_fit_for_wandb(name):
    with pytest.raises(ConfigError, match="cannot be a run's") as error:
        Config(name=name)
    assert len(str(error.value)) <= 300 and "\n" not in str(error.value)


@pytest.mark.parametrize("more", [{"filters": 200_000}, {"dense": [900_000, 900_000]},
                                  {"model": "resnet18", "dense": [900_000] * 2, "head": "dense"}])
def test_what_no_memory_can_hold_is_refused_before_it_is_built(more):
    with pytest.raises(ConfigError, match="GB in training, and there are .* GB here"):
        models.build(Config(**more), 10)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"seed": 2**32}, "seed = 4294967296 is not possible: it should be less than"),
        ({"stages": [{"epochs": 3, "lrr": 1}]}, "unknown field 'lrr' in stages, did you mean"),
        ({"stages": [{"epochs": 0}]}, "epochs in stages = 0 is not possible"),
        ({"filters": 10**30}, "at most 1,000,000"),
    ],
)
def test_wrong_values_are_named_where_they_are(parameters, words):
    with pytest.raises(ConfigError) as error:
        Config(**parameters)
    assert words in str(error.value)


VALUES = [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**40, -1e300, 1e-300, float("nan"), float("inf"),
          "", "x", "[1,2]", "\x1b[31m", "../..", "x" * 5000, "\udcff", [], [0], [[1]], {}, {"a": 1},
          [1, 2, 3, 4, 5], ["horizontal_flip=9"], [None], b"x", 1j, object, "all_but_last_0_blocks",
          "folder:", "folder:\0", "timm:", [{"epochs": 1}, 3]]  # fmt: skip


@pytest.mark.parametrize("field", Config.model_fields)
def test_whatever_is_given_is_a_configuration_or_refused_in_one_sentence(field):
    for value in VALUES:
        try:
            Config(**{field: value})
        except ConfigError as error:
            assert "\n" not in str(error) and len(str(error)) <= 300, (field, value)

"""No key, no token, no home folder and no absolute path gets into what a run or a report leaves."""

import os
import re
import subprocess
import sys
import zipfile

import pytest
from test_damage import SWEEP, write_images

from helpers import ROOT

WORK = """
import sys
import torch
from helpers import data
from helpers.runs.config import Config
from helpers.data import images
from helpers.evaluate.evaluation import open_test_set
from helpers.report import page
from helpers.sweep import runner
from helpers.train import train
torch.set_num_threads(1)
home = sys.argv[1]
images.DECODED = images.ROOT / home / "decoded"
config = Config(dataset=f"folder:{home}/set", image_size=32, filters=2, dense=2, epochs=1,
                augment=[], batch_size=8, val_fraction=0.25, runs_root=f"{home}/runs")
open_test_set(train(config), data.load(config))
try:
    train(config.replace(name="broken", lr=100.0, optimizer="sgd", epochs=9, batch_norm=False))
except RuntimeError as error:
    print(error)
runner.run(f"{home}/grid.yaml", config)
page.write_report(f"{home}/runs")
"""
SECRETS = {"WANDB_API_KEY": "wandbsecret" * 4, "HF_TOKEN": "hfsecret12345",
           "GITHUB_TOKEN": "ghsecret12345", "KAGGLE_KEY": "kagglesecret1"}  # fmt: skip
ABSOLUTE = re.compile(rb"(?<![\w./:])/(?:tmp|home|root|work|Users|usr|opt|mnt)/\w+")


REPORT = """
report: R9
title: A report
rows:
  - name: tracked
    section: Part A
    notebook: 02_train_from_scratch
    parameters: {dataset: "folder:SET", image_size: 32, filters: 2, dense: 2, epochs: 1,
                 val_fraction: 0.25, batch_size: 8, tracking: offline}
    test: true
"""


@pytest.fixture
def private(tmp_path):
    """A data set, and an environment with keys and somebody's home."""
    write_images(tmp_path / "set")
    (tmp_path / "somebodys_home").mkdir()
    return {**os.environ, **SECRETS, "HOME": str(tmp_path / "somebodys_home"),
            "USER": "somebody_private", "OMP_NUM_THREADS": "1"}  # fmt: skip


def test_what_is_left_holds_no_secret_and_no_absolute_path(tmp_path, private):
    (tmp_path / "grid.yaml").write_text(SWEEP)
    place = os.path.relpath(tmp_path, ROOT)
    subprocess.run([sys.executable, "-c", WORK, place], cwd=ROOT, env=private, check=True,
                   capture_output=True, timeout=300)  # fmt: skip
    files = [path for name in ("runs", "decoded") for path in (tmp_path / name).rglob("*")
             if path.is_file() and path.suffix != ".npy"]  # fmt: skip
    names = {path.name for path in files}
    assert {"config.json", "journal.log", "report.html", "ledger.md", "best.pt"} <= names
    check(files)


def test_what_a_batch_with_tracking_leaves_holds_no_secret_and_no_absolute_path(tmp_path, private):
    place = os.path.relpath(tmp_path, ROOT)
    (tmp_path / "r9.yaml").write_text(REPORT.replace("SET", f"{place}/set"))
    command = [sys.executable, "-m", "helpers.report.batch", str(tmp_path / "r9.yaml"),
               "--runs-root", f"{place}/runs"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=private, capture_output=True, timeout=300,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"notebook.ipynb", "test.ipynb", "log.txt", "status.json", "config.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    check(files)


def check(files):
    """Look for secrets, and for absolute paths where they are not a chance of base64."""
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as pack:
                content = b"".join(pack.read(name) for name in pack.namelist() if "pkl" in name)
        for secret in (*SECRETS.values(), "somebodys_home", "somebody_private"):
            assert secret.encode() not in content, path
        if path.suffix == ".ipynb":  # pictures, as in pages
            content = re.sub(rb'"image/png": "[^"]*"', b"", content)
        if path.suffix != ".html":
            assert not ABSOLUTE.search(content), (path, ABSOLUTE.search(content))

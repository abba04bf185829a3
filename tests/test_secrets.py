"""No key, no token, no home folder and no absolute path gets into what a run or a report leaves."""

import os
import re
import zipfile

import pytest
from test_damage import SWEEP, write_images

from helpers import ROOT, data
from helpers.data import images
from helpers.evaluate.evaluation import open_test_set
from helpers.report import batch, page
from helpers.runs.config import Config
from helpers.sweep import runner
from helpers.train import train

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
def private(tmp_path, monkeypatch):
    """Make a data set, and an environment with keys and somebody's home; returns its folder."""
    write_images(tmp_path / "set")
    (tmp_path / "somebodys_home").mkdir()
    environment = {**SECRETS, "HOME": str(tmp_path / "somebodys_home"), "USER": "somebody_private",
                   "OMP_NUM_THREADS": "1"}  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    return os.path.relpath(tmp_path, ROOT)


def test_what_is_left_holds_no_secret_and_no_absolute_path(tmp_path, private, monkeypatch):
    (tmp_path / "grid.yaml").write_text(SWEEP)
    monkeypatch.setattr(images, "DECODED", ROOT / private / "decoded")
    config = Config(dataset=f"folder:{private}/set", image_size=32, filters=2, dense=2, epochs=1,
                    augment=[], batch_size=8, val_fraction=0.25,
                    runs_root=f"{private}/runs")  # fmt: skip
    open_test_set(train(config), data.load(config))
    with pytest.raises(RuntimeError):
        train(config.replace(name="broken", lr=100.0, optimizer="sgd", epochs=9, batch_norm=False))
    runner.run(f"{private}/grid.yaml", config)
    page.write_report(f"{private}/runs")
    files = [path for name in ("runs", "decoded") for path in (tmp_path / name).rglob("*")
             if path.is_file() and path.suffix != ".npy"]  # fmt: skip
    names = {path.name for path in files}
    assert {"config.json", "journal.log", "report.html", "ledger.md", "best.pt"} <= names
    check(files)


def test_what_a_batch_with_tracking_leaves_holds_no_secret_and_no_absolute_path(tmp_path, private):
    (tmp_path / "r9.yaml").write_text(REPORT.replace("SET", f"{private}/set"))
    assert batch.main([str(tmp_path / "r9.yaml"), "--runs-root", f"{private}/runs"]) == 0
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

"""Tracking works without an account, asks nothing, and leaves no key behind."""

import sys
from types import SimpleNamespace

import pytest
from test_train import SMALL, fit, image_set

from helpers.data.images import Splits
from helpers.runs.config import Config, ConfigError


# First, since wandb remembers a key that it has seen once in a process.
def test_online_without_a_key_stops_with_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    config = Config(**SMALL, runs_root=str(tmp_path), tracking="online")
    with pytest.raises(ConfigError, match="wandb login"):
        fit(Splits(image_set(48, 0), image_set(24, 1), image_set(9, 2)), config)


def test_a_finished_run_tracked_offline_leaves_no_key(tmp_path, monkeypatch):
    """The key of whoever is logged in is in no file of the run's folder."""
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    config = Config(**{**SMALL, "epochs": 1}, runs_root=str(tmp_path), tracking="offline")
    run = fit(Splits(image_set(48, 0), image_set(24, 1), image_set(9, 2)), config)
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_a_run_that_an_agent_began_is_used_and_left_open(tmp_path, monkeypatch):
    logged = []
    begun = SimpleNamespace(log=lambda row, step: logged.append((step, row["val_accuracy"])))
    wandb = SimpleNamespace(login=lambda prompt, verify: True, run=begun)  # without init and finish
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = Config(**SMALL, runs_root=str(tmp_path), tracking="online")
    run = fit(Splits(image_set(48, 0), image_set(24, 1), image_set(9, 2)), config)
    assert logged == [(row["epoch"], row["val_accuracy"]) for row in run.history]

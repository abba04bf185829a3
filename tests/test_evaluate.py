"""What is reported of a network is what scikit-learn and statistics books say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from test_train import SMALL, fit, image_set

from helpers import data
from helpers.data.images import Splits
from helpers.evaluate.evaluation import evaluate, load_images, open_test_set, predict
from helpers.evaluate.figures import choose_stratified
from helpers.models import build
from helpers.runs.config import Config


@pytest.fixture
def config(tmp_path):
    return Config(**SMALL, runs_root=str(tmp_path))


@pytest.fixture
def images():
    return image_set(50, 0)


@pytest.fixture
def result(images, config):
    return evaluate(build(config, 3), images, config)


def test_figures_are_those_of_scikit_learn(result):
    labels, predicted = result.labels, result.predicted
    assert result.accuracy == metrics.accuracy_score(labels, predicted)
    assert result.loss == pytest.approx(metrics.log_loss(labels, result.probabilities), rel=1e-5)
    assert result.confusion.tolist() == metrics.confusion_matrix(labels, predicted).tolist()
    recall = metrics.recall_score(labels, predicted, average=None)
    precision = metrics.precision_score(labels, predicted, average=None, zero_division=0)
    assert [row["recall"] for row in result.per_class()] == pytest.approx(recall.tolist())
    assert [row["precision"] for row in result.per_class()] == pytest.approx(precision.tolist())


def test_top5_is_that_of_scikit_learn(config):
    images = image_set(60, 0)
    images.labels[:] = np.arange(60) % 9
    images.classes[:] = [str(label) for label in range(9)]
    seen = evaluate(build(config, 9), images, config)
    expected = metrics.top_k_accuracy_score(images.labels, seen.probabilities, k=5)
    assert seen.top5 == pytest.approx(expected)


def test_batches_do_not_change_the_logits(images, config):
    """Also not an incomplete last one, nor the mode that the model was in."""
    model = build(config, 3).train()
    one = predict(model, images, config.replace(batch_size=50))
    assert model.training
    torch.testing.assert_close(predict(model, images, config.replace(batch_size=7)), one)


def test_opening_the_test_set_is_counted_and_dated(config):
    splits = Splits(image_set(48, 0), image_set(24, 1), image_set(30, 2))
    run = fit(splits, config)
    assert "test" not in run.metrics and "test_opened" not in run.metrics
    first = open_test_set(run, splits)
    open_test_set(run, splits)
    opened = run.metrics["test_opened"]
    assert opened["count"] == 2 and opened["first"] <= opened["last"]
    assert run.metrics["test"]["accuracy"] == first.accuracy
    assert {row["split"] for row in run.predictions} == {"val", "test"}
    assert sum(row["split"] == "test" for row in run.predictions) == 30


def test_a_runs_images_are_looked_for_where_it_found_them(config, tmp_path, monkeypatch):
    splits = Splits(image_set(48, 0), image_set(24, 1), image_set(30, 2))
    run = fit(splits, config.replace(data_root=str(tmp_path / "images")))
    asked = []
    monkeypatch.setattr(data, "load", lambda config: asked.append(config.data_root) or splits)
    load_images(run)  # that folder is no more
    (tmp_path / "images").mkdir()
    load_images(run)
    load_images(run, "elsewhere")
    assert asked == ["", str(tmp_path / "images"), "elsewhere"]


def test_an_empty_split_is_one_sentence(images, config):
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate(build(config, 3), images.subset(np.arange(0)), config)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=12),
    count=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_the_grid_is_chosen_evenly_over_the_classes(sizes, count, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    chosen = choose_stratified(labels, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(labels))
    shares = np.bincount(labels[chosen], minlength=len(sizes))
    most = shares.max()
    assert all(share >= min(most - 1, size) for share, size in zip(shares, sizes, strict=True))
    assert chosen.tolist() == choose_stratified(labels, count, seed).tolist()


@pytest.mark.parametrize("damage", ["split,path\n", None])
def test_lost_predictions_are_made_again_and_the_test_set_s_openings_are_kept(config, damage):
    splits = Splits(image_set(48, 1), image_set(24, 2), image_set(30, 3))
    run = fit(splits, config)
    open_test_set(run, splits)
    before = [row for row in run.predictions if row["split"] == "val"]
    weights = (run.folder / "best.pt").read_bytes()
    if damage:
        (run.folder / "predictions.csv").write_text(damage)
    else:
        (run.folder / "predictions.csv").unlink()
    assert not run.usable
    assert fit(splits, config).usable and run.predictions == before
    assert run.metrics["test_opened"]["count"] == 1
    assert (run.folder / "best.pt").read_bytes() == weights


def test_a_kill_between_the_figures_and_the_rows_of_the_test_set_opens_it_again(
    config, monkeypatch
):
    splits = Splits(image_set(48, 1), image_set(24, 2), image_set(30, 3))
    run = fit(splits, config)
    monkeypatch.setattr(type(run), "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_test_set(run, splits)
    assert "test" not in run.metrics  # what has figures has rows, too
    assert sum(row["split"] == "test" for row in run.predictions) == 30

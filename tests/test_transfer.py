"""Fine-tuning is compared on equal terms, and its costs and gains are counted right."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from test_train import SMALL, image_set

from helpers import data, models
from helpers.data.images import Splits
from helpers.evaluate import ensembles, evaluate, measure, tradeoff
from helpers.runs.config import Config, ConfigError
from helpers.runs.folder import Run
from helpers.train import fine_tune, train


@pytest.fixture
def images():
    return Splits(image_set(48, 0), image_set(24, 1), image_set(9, 2))


@pytest.fixture
def config(tmp_path, monkeypatch, images):
    monkeypatch.setattr(data, "load", lambda config: images)
    return Config(**{**SMALL, "epochs": 1}, runs_root=str(tmp_path))


def write_run(folder, name, config, val, params=100, trainable=100, seconds=1.0):
    run = Run(folder / name)
    run.folder.mkdir()
    run.write_json("config.json", config.model_dump())
    metrics = {"val": {"accuracy": val}, "params": params, "trainable": trainable}
    run.write_json("metrics.json", {**metrics, "train_seconds": seconds})
    return run


def test_ways_differ_in_weights_and_freezing_alone(config):
    source = fine_tune.pretrain(config, "tiny_nature", epochs=1)
    assert source.config.filters == config.filters and source.config.dataset == "tiny_nature"
    config = config.replace(weights=str(source.folder), name="x", lr=0.01)
    runs = fine_tune.compare(config, ["scratch", "all_but_head", "nothing"], seeds=2)
    assert [run.name for run in runs["all_but_head"]] == ["x-all_but_head-0", "x-all_but_head-1"]
    for way, group in runs.items():
        assert [run.config.seed for run in group] == [0, 1]
        for run in group:
            same = {"weights": run.config.weights, "freeze": run.config.freeze}
            expected = config.replace(**same, seed=run.config.seed, name=run.name)
            assert run.config == expected
            assert (run.config.weights == "none") == (way == "scratch")
    begun = models.build(runs["all_but_head"][0].config, 3).state_dict()
    body = {n: t for n, t in begun.items() if not n.startswith("head.classifier")}
    learned = source.read_checkpoint("best.pt")["model"]
    frozen = runs["all_but_head"][0].read_checkpoint("best.pt")["model"]
    scratch = runs["scratch"][0].read_checkpoint("best.pt")["model"]
    assert all(torch.equal(tensor, learned[name]) for name, tensor in body.items())
    assert all(torch.equal(frozen[name], learned[name]) for name in body)
    assert not torch.equal(scratch["blocks.0.conv.weight"], learned["blocks.0.conv.weight"])


def test_way_that_is_unknown_or_no_list_stops_before_training(config):
    for ways, message in (["scratch", "al_but_head"], "did you mean"), ("scratch", "is no list"):
        with pytest.raises(ValueError, match=message):
            fine_tune.compare(config, ways)
    assert not list(Path(config.runs_root).iterdir())


def test_a_way_of_many_words_is_a_name_for_its_run(config):
    stages = [{"epochs": 10}, {"epochs": 10, "freeze": "nothing"}, {"epochs": 3, "lr": 0.001}]
    (way,) = fine_tune.ways_of(config.replace(name="x"), [{"stages": stages}]).values()
    assert way.name.startswith("x-stages-") and len(way.stages) == 3


def test_a_way_that_the_stages_would_overrule_stops(config):
    config = config.replace(stages=[{"epochs": 1, "freeze": "nothing"}])
    with pytest.raises(ConfigError, match="stages with their own freeze"):
        fine_tune.compare(config, ["all_but_head"])
    (way,) = fine_tune.ways_of(config, [config.freeze]).values()  # its own
    assert way.stages == config.stages


@pytest.mark.parametrize(("best", "epochs"), [(2, [2]), (4, [3, 1])])
def test_once_more_takes_each_stage_up_to_the_best_epoch(config, monkeypatch, best, epochs):
    config = config.replace(early_stopping=2, stages=[{"epochs": 5}, {"epochs": 6, "lr": 0.01}])
    history = [{"stage": stage} for stage in (1, 1, 1, 2, 2, 2)]  # the first was ended early
    run = SimpleNamespace(config=config, metrics={"best_epoch": best}, history=history)
    monkeypatch.setattr(fine_tune, "train", lambda config: config)
    again = fine_tune.retrain(run)
    assert [stage.epochs for stage in again.stages] == epochs
    assert [stage.lr for stage in again.stages] == [None, 0.01][: len(epochs)]


def test_once_more_with_every_image(config, images, monkeypatch):
    config = config.replace(early_stopping=1, epochs=4, schedule="plateau", name="first")
    run = train(config)
    loaded = []
    monkeypatch.setattr(data, "load", lambda c: loaded.append(c) or
                        Splits(image_set(72, 0), image_set(0, 1), images.test))  # fmt: skip
    last = fine_tune.retrain(run)
    assert loaded[0].val_fraction == 0 and last.name == "first-final"
    assert last.metrics["epochs"] == run.metrics["best_epoch"]
    assert "val" not in last.metrics and last.history[0]["images"] == 72


def votes_of(runs, images):
    """Return each run's probabilities, (runs, N, C), computed without the project's own loop."""
    pixels = images.take(np.arange(len(images))).float() / 255
    pixels = ((pixels - 0.5) / 0.5).double()
    with torch.no_grad():
        return torch.stack([models.rebuild(run).double()(pixels).softmax(1) for run in runs])


def test_vote_is_the_mean_of_probabilities(config, images):
    runs = [train(config.replace(seed=seed)) for seed in (0, 1)]
    results = [evaluate(models.rebuild(run), images.val, run.config) for run in runs]
    result = ensembles.vote(results)
    expected = votes_of(runs, images.val).mean(0)
    np.testing.assert_allclose(result.probabilities, expected.numpy(), atol=1e-4)
    assert result.accuracy == (result.predicted == images.val.labels).mean()
    with pytest.raises(ValueError, match="same images and classes"):
        ensembles.vote([results[0], replace(results[1], paths=results[1].paths[::-1])])
    classes = images.val.classes
    images.val.classes[:] = [f"other {name}" for name in classes]
    with pytest.raises(ValueError, match="knows other classes"):
        ensembles.compare_joined(runs, images.val)


def test_stacking_learns_whom_to_trust(images):
    """A run that is always right and one that says nothing: the first decides, in every fold."""
    labels = torch.from_numpy(images.val.labels)
    right = torch.nn.functional.one_hot(labels, 3).float() * 0.5 + 0.5 / 3
    says = {"good": right, "random": torch.rand(24, 3).softmax(1), "wrong": right.roll(1, 1)}
    good, random, wrong = (measure(p.log(), images.val) for p in says.values())
    assert ensembles.stack([good, random]).accuracy == 1
    assert ensembles.stack([wrong]).accuracy == 1  # wrong in a way to learn from
    assert ensembles.vote([wrong]).accuracy == 0
    noise = measure(torch.rand(24, 3), images.val)
    assert ensembles.stack([noise]).accuracy < 0.8  # what it is measured on it has not learned
    images.val.labels[:] = [0, *[1] * 23]
    with pytest.raises(ValueError, match="two images of each class"):
        ensembles.stack([measure(torch.rand(24, 3), images.val)])


def test_ensembles_are_compared_with_the_best_alone(config, images, monkeypatch):
    """Of four runs the worst has no vote; the three best are joined and compared with the first."""
    labels = images.val.labels
    right = [16, 12, 20, 0]  # of 24
    said = {}
    for index, count in enumerate(right):
        sure = torch.nn.functional.one_hot(torch.from_numpy((labels + 1) % 3), 3).float()
        sure[:count] = torch.nn.functional.one_hot(torch.from_numpy(labels[:count]), 3).float()
        said[f"run {index}"] = sure * 0.5 + 0.5 / 3
    runs = [
        SimpleNamespace(name=name, metrics={"val": {"accuracy": count / 24}})
        for name, count in zip(said, right, strict=True)
    ]
    asked = set()

    def ask(run, part):
        asked.add(run.name)
        return measure(said[run.name].log(), part)

    monkeypatch.setattr(ensembles, "_ask", ask)
    alone, joined = ensembles.compare_joined(runs, images.val)
    assert alone == pytest.approx(20 / 24) and asked == {"run 0", "run 1", "run 2"}
    accuracy, gain = joined["soft voting"]  # two of the three are right on the first 16
    assert accuracy == pytest.approx(16 / 24) and gain.mean == pytest.approx(-4 / 24)
    assert gain.low < gain.mean < gain.high and gain.seeds == 0
    accuracy, gain = joined["stacking"]
    assert gain.mean == pytest.approx(accuracy - 20 / 24)


def test_bag_asks_only_runs_that_have_not_seen_an_image(images, monkeypatch):
    """Runs a, b, c left out images 0-2, 1-3 and 3-4 of the array: 1, 2 and 3 are in two."""
    parts = {"a": [0, 1, 2], "b": [1, 2, 3], "c": [3, 4]}
    whole = images.val
    truth = {row: int(whole.labels[i]) for i, row in enumerate(whole.rows)}
    wrong = {row: (label + 1) % 3 for row, label in truth.items()}
    says = {("a", 1): truth[1], ("b", 1): truth[1], ("a", 2): wrong[2], ("b", 2): truth[2],
            ("b", 3): wrong[3], ("c", 3): wrong[3]}  # fmt: skip

    class FakeRun(str):
        config = property(lambda self: self)

    def ask(run, part):
        sure = 0.9 if run == "b" else 0.6
        rows = [torch.full((3,), (1 - sure) / 2) for _ in part.rows]
        for place, row in enumerate(part.rows):
            rows[place][says.get((str(run), int(row)), 0)] = sure
        return measure(torch.stack(rows).log(), part)

    monkeypatch.setattr(data, "load", lambda run: Splits(whole, whole.subset(
        np.array(parts[run])), whole))  # fmt: skip
    monkeypatch.setattr(ensembles, "_ask", ask)
    result, gain = ensembles.bag([FakeRun(name) for name in "abc"])
    assert sorted(result.paths) == sorted(whole.paths[i] for i in (1, 2, 3))
    assert result.accuracy == pytest.approx(2 / 3)  # 1: both right; 2: b is surer; 3: both wrong
    assert gain.mean == pytest.approx(2 / 3 - 3 / 6)  # by image: 1 - 1, 1 - 1/2, 0 - 0
    reach = 4.3027 * np.std([0, 0.5, 0], ddof=1) / 3**0.5  # t with 2 degrees of freedom
    assert (gain.low, gain.high) == pytest.approx((gain.mean - reach, gain.mean + reach), abs=1e-4)
    assert ensembles.bag([FakeRun("a"), FakeRun("c")]) is None  # no image by both
    assert ensembles.bag([FakeRun("a"), FakeRun("a")]) is None  # one training list, not two


def test_what_votes_has_a_folder_of_its_own_however_many_vote(tmp_path):
    runs = [Run(tmp_path / place / f"caltech101-efficientnet_lite0-{n:08x}")
            for n in range(9) for place in "ab"]  # fmt: skip
    folders = {ensembles.folder_of(chosen) for chosen in (runs, runs[::2], runs[1::2])}
    assert len(folders) == 3 and all(len(folder.name) < 255 for folder in folders)


def test_from_scratch_has_the_epochs_of_all_stages(config):
    config = config.replace(stages=[{"epochs": 2}, {"epochs": 3}], weights="earlier")
    scratch = fine_tune.ways_of(config, ["scratch"])["scratch"]
    assert (scratch.epochs, scratch.stages, scratch.weights) == (5, [], "none")


def test_two_ways_that_are_one_training_are_one(config, capsys):
    ways = ["scratch", "nothing", "all_but_head"]
    found = fine_tune.ways_of(config.replace(weights="none"), ways)
    assert list(found) == ["scratch", "all_but_head"]


def test_any_parameters_are_compared(config):
    ways = [{"optimizer": "sgd", "lr": 0.01}, {"dropout": 0.5}, "nothing"]
    found = fine_tune.ways_of(config.replace(name="x"), ways)
    assert list(found) == ["optimizer sgd, lr 0.01", "dropout 0.5", "nothing"]
    first = found["optimizer sgd, lr 0.01"]
    assert first == config.replace(optimizer="sgd", lr=0.01, name="x-optimizer-sgd-lr-0.01")
    runs = fine_tune.compare(config, ways[:2], seeds=2)
    assert [run.config.seed for run in runs["dropout 0.5"]] == [0, 1]
    assert {run.config.dropout for run in runs["dropout 0.5"]} == {0.5}
    for way, message in (
        ({"val_fraction": 0.5}, "val_fraction is the same in all ways"),
        ({"optimiser": "sgd"}, "unknown parameter 'optimiser', did you mean 'optimizer'"),
    ):
        with pytest.raises(ConfigError, match=message):
            fine_tune.ways_of(config, [way])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
def test_front_holds_exactly_what_nothing_beats(points):
    front = [points[index] for index in tradeoff.pareto(points)]

    def beaten(point):
        return any(c <= point[0] and v >= point[1] and (c, v) != point for c, v in points)

    assert front == sorted(point for point in points if not beaten(point))


def test_table_has_means_and_the_front(tmp_path):
    frozen = Config(weights="imagenet", model="resnet18", freeze="all_but_last_1_stages")
    runs = [
        write_run(tmp_path, "a", Config(), 0.5, params=10, trainable=10, seconds=4.0),
        write_run(tmp_path, "b", Config(seed=1), 0.7, params=10, trainable=10, seconds=2.0),
        write_run(tmp_path, "c", frozen, 0.6, params=20, trainable=5, seconds=5.0),
    ]
    first, second = tradeoff.tradeoff_table(runs)
    assert first["setting"] == "resnet18, all but last 1 stages frozen"
    assert tradeoff.tradeoff_table(runs, "test") == []
    assert first["best"] == ["trainable"] and first["std"] is None
    assert second["setting"] == "five_blocks, from scratch" and second["runs"] == 2
    assert second["accuracy"] == pytest.approx(0.6) and second["train_seconds"] == 3
    assert second["std"] == pytest.approx(0.2 / 2**0.5)
    assert second["best"] == ["params", "train_seconds"]
    larger = write_run(tmp_path, "d", Config(filters=64), 0.5, params=30, trainable=30)
    assert list(tradeoff.settings([*runs, larger]))[1:] == [
        "five_blocks, from scratch, filters 16, 32, 64, 128, 256",
        "five_blocks, from scratch, filters 64",
    ]
    assert isinstance(tradeoff.draw_tradeoff(runs), Figure)
    assert isinstance(tradeoff.draw_tradeoff(runs[:1]), Figure)


def test_ways_are_tabulated_best_first(tmp_path):
    runs = [write_run(tmp_path, str(n), Config(seed=n), a, seconds=s)
            for n, (a, s) in enumerate([(0.5, 1.0), (0.75, 2.0), (0.7, 9.0)])]  # fmt: skip
    for run in runs:
        metrics = run.metrics
        metrics["val"]["images"] = 20
        run.write_json("metrics.json", metrics)
    assert tradeoff.table({"two": runs[:2], "one": runs[2:]}).splitlines()[2:] == [
        "| one | 70.0% | 14 of 20 | 9.0 |",
        "| two | 62.5% ± 17.7% | 10, 15 of 20 | 1.5 |",
    ]


def test_no_setting_is_lost_where_three_read_the_same(tmp_path):
    rates = {"a": 0.001, "b": 0.0010001, "c": 0.0010002}
    runs = [write_run(tmp_path, name, Config(lr=lr), 0.5) for name, lr in rates.items()]
    assert list(tradeoff.settings(runs)) == [
        "five_blocks, from scratch, lr 0.001",
        "five_blocks, from scratch, lr 0.001 (b: 100 of 100)",
        "five_blocks, from scratch, lr 0.001 (c: 100 of 100)",
    ]


def test_settings_differ_in_anything_but_the_seed(tmp_path):
    """Dropout, schedule and activation are settings of their own, by validation and by test."""
    base = dict(weights="imagenet", model="resnet18", freeze="all_but_head")
    chosen = [
        {}, {"seed": 1}, {"dropout": 0.5}, {"schedule": "step"}, {"logits_activation": "relu"},
    ]  # fmt: skip
    runs = []
    for number, more in enumerate(chosen):
        run = write_run(tmp_path, f"r{number}", Config(**base, **more), 0.5)
        run.write_json("metrics.json", {**run.metrics, "test": {"accuracy": number / 10}})
        runs.append(run)
    found = tradeoff.settings(runs)
    assert [len(group) for group in found.values()] == [2, 1, 1, 1]
    assert len(set(found)) == 4
    assert all("dropout" in name and "schedule" in name for name in found)
    by_test = tradeoff.tradeoff_table(runs, "test")
    assert sorted(row["accuracy"] for row in by_test) == pytest.approx([0.05, 0.2, 0.3, 0.4])
    assert tradeoff.draw_tradeoff(runs, "test").axes[0].get_ylabel() == "test accuracy"


def test_stages_are_named_in_turn(tmp_path):
    stages = [{"epochs": 1}, {"epochs": 1, "freeze": "nothing"}]
    config = Config(weights="x", freeze="all_but_head", stages=stages)
    run = write_run(tmp_path, "s", config, 0.5)
    assert tradeoff.setting_of(run) == "five_blocks, all but head frozen, then everything trained"
    config = Config(freeze="all_but_head")
    run = write_run(tmp_path, "r", config, 0.5)
    assert tradeoff.setting_of(run) == "five_blocks, random weights, all but head frozen"


def test_image_sizes_are_drawn_with_the_places_of_the_last_map():
    image = np.zeros((64, 96, 3), np.uint8)
    figure = tradeoff.draw_image_sizes(image, 64, stride=32)
    assert [axes.get_title() for axes in figure.axes] == [
        "squash", "crop", "pad", "fully convolutional",
    ]  # fmt: skip
    assert len(figure.axes[3].patches) == 2 * 3
    assert "64 × 96: the mean of 2 × 3 places" in figure.axes[3].get_xlabel()

"""Both training lists are of one length, one of them holds half of the test images, no more."""

from collections import Counter
from types import SimpleNamespace

from helpers.data import sources
from helpers.report import leakage


def test_lists_are_alike_in_number_and_leak_what_they_say(monkeypatch, tmp_path):
    finished = SimpleNamespace(metrics={"test": {}})
    configs = {}
    monkeypatch.setattr(
        leakage, "train", lambda config: configs.update({config.name: config}) or finished
    )
    monkeypatch.setattr(leakage, "ROOT", tmp_path)  # copies made before are not taken
    monkeypatch.chdir(tmp_path)
    leakage.demonstrate()
    assert configs["clean"].dataset == "folder:data/leak/clean"
    lists, tests = {}, {}
    for kind, config in configs.items():
        source = sources.find(config.dataset)
        assert source.val is None  # validation images come from the training list, as usual
        for found, entries in (lists, source.train), (tests, source.test):
            found[kind] = {(source.folder / path).read_bytes(): label for path, label in entries}
    assert tests["clean"] == tests["leaking"]  # 400 different images
    assert {kind: Counter(images.values()) for kind, images in lists.items()} == {
        kind: dict.fromkeys(range(10), leakage.TRAINED) for kind in ("clean", "leaking")
    }
    assert not lists["clean"].keys() & tests["clean"].keys()
    leaked = lists["leaking"].keys() & tests["leaking"].keys()
    assert Counter(tests["leaking"][image] for image in leaked) == dict.fromkeys(range(10), 20)
    source = sources.find(configs["leaking"].dataset)
    marked = {(source.folder / path).read_bytes() for path, _ in source.test if "/leaked" in path}
    assert marked == leaked

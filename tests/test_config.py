"""Every mistake in a parameter stops before any work, with one sentence that names it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from helpers.runs.config import AUGMENTATIONS, Config, ConfigError, parse_freeze, read_values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lrr": 0.1}, ["'lrr'", "did you mean 'lr'"]),
        ({"xyzzy": 1}, ["'xyzzy'", "helpers/runs/config.py"]),
        ({"lr": "fast"}, ["lr", "'fast'", "number"]),
        ({"lr": 0.0}, ["lr", "0.0", "greater than 0"]),
        ({"epochs": 2.5}, ["epochs", "2.5", "integer"]),
        ({"epochs": True}, ["epochs", "True"]),
        ({"batch_norm": 1}, ["batch_norm", "1", "boolean"]),
        ({"filters": "[32, 64]"}, ["filters", "-y"]),
        ({"filters": [8, 8]}, ["filters", "2 values"]),
        ({"filters": 0}, ["filters", "at least 1"]),
        ({"activation": "relo"}, ["activation", "did you mean 'relu'"]),
        ({"dataset": "tiny_natur"}, ["dataset", "did you mean 'tiny_nature'"]),
        ({"augment": ["horizontal_flop"]}, ["augment", "did you mean 'horizontal_flip'"]),
        ({"augment": ["rotation=much"]}, ["rotation=much", "not a number"]),
        ({"augment": ["zoom=3"]}, ["zoom=3", "0.9"]),
        ({"image_size": 16}, ["image_size 16", "block 5", "32"]),
        ({"image_size": 40, "padding": "valid", "kernel_size": 11}, ["kernel_size 11", "block 3"]),
        ({"val_fraction": 0.0, "early_stopping": 2}, ["early_stopping", "val_fraction"]),
        ({"val_fraction": 0.0, "schedule": "plateau"}, ["plateau", "val_fraction"]),
        ({"start_image_size": 128}, ["start_image_size 128", "image_size 64"]),
        ({"start_image_size": 16}, ["image_size 16", "32"]),
        ({"norm_after_pool": True, "batch_norm": False}, ["norm_after_pool", "batch_norm"]),
        ({"nesterov": True, "optimizer": "adam"}, ["nesterov", "sgd"]),
        ({"model": "resnet18", "head": "dense", "dense": [8, -5]}, ["dense", "at least 1"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(values, words):
    with pytest.raises(ConfigError) as error:
        Config(**values)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@given(
    kernel=st.integers(1, 9), padding=st.sampled_from(["same", "valid"]), size=st.integers(8, 300)
)
def test_the_smallest_image_size_named_works_and_one_less_does_not(kernel, padding, size):
    values = {"kernel_size": kernel, "padding": padding}
    try:
        Config(image_size=size, **values)
    except ConfigError as error:
        if "smallest that works" in str(error):
            smallest = int(str(error).split("; ")[1].split()[0])
            assert smallest > size
            Config(image_size=smallest, **values)
            with pytest.raises(ConfigError):
                Config(image_size=smallest - 1, **values)


def test_json_round_trip(tmp_path):
    config = Config(filters=64, filter_organization="half", augment=["rotation=10"])
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert Config.load(tmp_path / "config.json") == config


def test_only_parameters_that_change_a_result_change_the_id():
    config = Config()
    assert config.id == config.replace(name="other", runs_root="elsewhere", data_root="x").id
    assert config.id != config.replace(seed=1).id


def test_a_run_is_the_same_by_name_and_by_any_path():
    by_name = Config(weights="earlier")
    for path in "runs/earlier", "runs/earlier/best.pt", str(ROOT / "runs" / "earlier"):
        assert Config(weights=path).id == by_name.id
    assert Config(weights="elsewhere/earlier").id != by_name.id


def test_yaml_s_trap_is_explained():
    with pytest.raises(ConfigError, match=r"number \(YAML takes 1e-3 for text: write 1.0e-03\)$"):
        Config(**read_values(["lr=1e-3"]))
    with pytest.raises(ConfigError, match="should be number$"):
        Config(lr="fast")


def test_filters_by_organization():
    assert Config(filters=32, filter_organization="double").filter_list == [32, 64, 128, 256, 512]
    assert Config(filters=64, filter_organization="half").filter_list == [64, 32, 16, 8, 4]
    assert Config(filters=[1, 2, 3, 4, 5]).filter_list == [1, 2, 3, 4, 5]


def test_feature_maps_of_the_cs6910_report():
    config = Config(image_size=274, kernel_size=3, padding="valid")
    assert [convolved for convolved, _ in config.feature_sizes] == [272, 134, 65, 30, 13]
    assert config.feature_sizes[-1][1] ** 2 * 64 == 2304


def test_augmentation_without_strength_takes_its_default():
    assert Config(augment=list(AUGMENTATIONS)).augmentations == [
        (name, default) for name, (default, *_) in AUGMENTATIONS.items()
    ]


def notebook(*cells: str) -> dict:
    """Execute cells the way IPython does: `In` holds their sources."""
    namespace: dict = {"In": [""], "Out": {}}
    for cell in cells:
        namespace["In"].append(cell)
        if not cell.startswith("%"):
            exec(cell, namespace)  # noqa: S102
    return namespace


def test_parameters_are_read_from_the_last_parameters_cell():
    namespace = notebook(
        "import sys\nroot = 'somewhere'",
        "lr: float = 0.1  # step\nepochs: int = 3\nrows: int = 9",
        "# Parameters\nlr = 0.2\n",
        "%matplotlib inline\nother = 5",
        "accuracy = 3",
    )
    config = Config.from_parameters(namespace, also=("rows",))
    assert (config.lr, config.epochs) == (0.2, 3)


@pytest.mark.parametrize("magic", ["%%time", "%load_ext autoreload", "!pip install -q timm"])
def test_a_line_of_magic_does_not_hide_the_parameters_below_it(magic):
    namespace = notebook("lr: float = 0.1")
    namespace["In"] = ["", f"{magic}\nlr: float = 0.1"]
    assert Config.from_parameters(namespace).lr == 0.1


def test_an_unknown_parameter_injected_by_papermill_stops():
    namespace = notebook("lr: float = 0.1", "# Parameters\nbatchsize = 32\n")
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        Config.from_parameters(namespace)


def test_a_corrected_typo_does_not_stop_the_second_try():
    namespace = notebook("lr: float = 0.1\ndropuot = 0.1", "lr: float = 0.1\ndropout = 0.1")
    assert Config.from_parameters(namespace).dropout == 0.1


def test_a_second_parameters_cell_adds_to_the_first():
    first = "dataset: str = 'caltech101'\nlr: float = 0.1\nepochs: int = 9"
    config = Config.from_parameters(notebook(first, "# Parameters\nseed = 5", "lr: float = 0.2"))
    assert (config.dataset, config.lr, config.epochs, config.seed) == ("caltech101", 0.2, 9, 5)
    edited = notebook(first, "dataset: str = 'caltech101'\nlr: float = 0.1")  # a line less
    assert Config.from_parameters(edited).epochs == Config().epochs


@pytest.mark.parametrize(
    ("strategy", "form", "k"),
    [
        ("all_but_last_60_layers", "all_but_last_K_layers", 60),
        ("all_but_last_1_blocks", "all_but_last_K_blocks", 1),
        ("nothing", "nothing", 0),
    ],
)
def test_freezing_strategies_name_their_unit_and_number(strategy, form, k):
    assert parse_freeze(strategy) == (form, k)


@pytest.mark.parametrize(
    "strategy", ["all_but_last_K_layers", "all_but_last_0_layers", "all_but_last_3", "everything"]
)
def test_unknown_freezing_stops_with_the_known_ones(strategy):
    with pytest.raises(ConfigError, match=rf"freeze '{strategy}' is not known.*all_but_head"):
        Config(stages=[{"epochs": 1, "freeze": strategy}])

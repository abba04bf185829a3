"""The drawn detector: a small network trained from scratch on drawn scenes within a minute.

It shows the pipeline without a download; it knows nothing but the drawn roads.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from helpers.detect.detectors import Detector, as_detector
from helpers.detect.drawn import traffic
from helpers.models.device import choose_device, choose_dtype, keep_memory
from helpers.runs.config import Config
from helpers.runs.contents import OPEN
from helpers.runs.files import DamagedFile, whole
from helpers.runs.folder import read_checkpoint
from helpers.runs.progress import tqdm

SCENES = 320


class Kept(TypedDict):
    """What is kept of a drawn detector, and of what it came from."""

    __pydantic_config__ = OPEN
    model: dict[str, torch.Tensor]
    names: list[str]
    image_size: tuple[int, int]  # height, width
    steps: int
    seed: int


def drawn_detector(path: Path, steps: int, seed: int, score_threshold: float = .5) -> Detector:
    """Train a detector on drawn scenes, or load it from a file that has one of `steps` and `seed`.

    The scenes are drawn from the seed; clips are of another stream of random numbers.
    """
    kept: dict = {}
    try:
        kept = read_checkpoint(path, Kept)
    except FileNotFoundError:
        pass
    except DamagedFile:
        print(f"{path.name} is damaged: the detector is trained again")
    if (kept.get("steps"), kept.get("seed")) != (steps, seed):
        images, targets = traffic.draw_scenes(SCENES, seed)
        model, names = train_detector(images, targets, steps, seed)
        kept = {"model": model.state_dict(), "names": names, "image_size": images.shape[1:3],
                "steps": steps, "seed": seed}  # fmt: skip
        with whole(path) as temporary:
            torch.save(kept, temporary)
    model = build_small_fcos(len(kept["names"]), kept["image_size"])
    model.load_state_dict(kept["model"])
    return as_detector(model, kept["names"], score_threshold)


def build_small_fcos(num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Build a small one-stage detector (FCOS, arXiv:1904.01355) for images of (height, width).

    About .45 M parameters; class 0 is the background as everywhere in torchvision.
    """
    def step(wide: int, wider: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(wide, wider, 3, stride, 1, bias=False),
                             nn.BatchNorm2d(wider), nn.ReLU(inplace=True))

    body = nn.Sequential()
    body.stem = nn.Sequential(step(3, 16, 2), step(16, 32, 2), step(32, 32, 1))
    body.stride8 = nn.Sequential(step(32, 64, 2), step(64, 64, 1))
    body.stride16 = nn.Sequential(step(64, 96, 2), step(96, 96, 1))
    backbone = BackboneWithFPN(body, {"stride8": "0", "stride16": "1"}, [64, 96], 64)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return detection.FCOS(backbone, num_classes, min_size=min(image_size), max_size=max(image_size),
                          anchor_generator=anchors,
                          head=FCOSHead(64, 1, num_classes, num_convs=2))


def train_detector(images: np.ndarray, targets: list[dict], steps: int, seed: int,
                   batch_size: int = 12, lr: float = 3e-3) -> tuple[nn.Module, list[str]]:
    """Train a small network from scratch on images (N, H, W, 3) uint8; `as_detector` wraps it.

    Each target holds "boxes" (K, 4) in pixels and "labels", K class names. Images are mirrored
    and their brightness varied at random. Returns the network and the name of each label.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    keep_memory()
    device = choose_device()
    dtype = choose_dtype(Config(), device)
    names = ["background", *sorted({label for target in targets for label in target["labels"]})]
    width = images.shape[2]
    model = build_small_fcos(len(names), images.shape[1:3]).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=max(steps, 10), pct_start=.2)
    for _ in tqdm(range(steps), "training", disable=None):
        batch, answers = [], []
        for i in rng.choice(len(images), batch_size):
            image = torch.from_numpy(images[i]).to(device).permute(2, 0, 1).float() / 255
            boxes = torch.as_tensor(targets[i]["boxes"], dtype=torch.float32).clone()
            if rng.random() < .5:
                image, boxes[:, [0, 2]] = image.flip(2), width - boxes[:, [2, 0]]
            batch.append((image * rng.uniform(.8, 1.2)).clamp(0, 1))
            labels = torch.tensor([names.index(n) for n in targets[i]["labels"]], dtype=torch.int64)
            answers.append({"boxes": boxes.to(device), "labels": labels.to(device)})
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = sum(model(batch, answers).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model, names

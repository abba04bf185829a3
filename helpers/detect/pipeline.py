"""Detect vehicles in a video with a pretrained network as it is, and report who breaks the rules.

`process` turns any video into an annotated one, a table of events and the counts of each road.
"""

import csv
import difflib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from tqdm.auto import tqdm

from helpers.config import Config
from helpers.detect.tracking import Event, Judge, Rules, Track, Tracker, check_classes
from helpers.detect.video import Annotator, Video, Writer, draw_rules, draw_summary
from helpers.models.device import choose_device, choose_dtype, keep_memory

VEHICLES = ["bicycle", "car", "motorcycle", "bus", "truck"]  # what COCO's detectors are asked for
EVENT_SECONDS = 2.0  # how long an event is written on the video
COLUMNS = ["frame", "time", "track", "label", "event", "zone", "x0", "y0", "x1", "y1"]
GRID = (48, 80)  # rows and columns of the heat map
PICTURE = {"dpi": 120, "pil_kwargs": {"compress_level": 1}}  # larger files, written much faster


@dataclass
class Detections:
    """Hold what was found on one image: boxes (N, 4) in pixels, class names, scores (N,)."""

    boxes: np.ndarray
    labels: list[str]
    scores: np.ndarray


@dataclass
class Detector:
    """Find things on images (N, H, W, 3) uint8: `predict` returns one Detections for each.

    It returns weak detections too, from half of `score_threshold` on: they may continue a track
    but never start one.
    """

    names: list[str]
    predict: Callable[[np.ndarray], list[Detections]]
    score_threshold: float


def load_detector(name: str, score_threshold: float = .5, weights: str | None = "DEFAULT"
                  ) -> Detector:
    """Load a pretrained detector: one of torchvision's, or a YOLO through ultralytics.

    Args:
        name: such as "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn_v2",
            "fcos_resnet50_fpn" or "ssdlite320_mobilenet_v3_large"; or "yolov5nu.pt",
            "yolov3u.pt", if `ultralytics` is installed (its licence is the AGPL-3.0).
        score_threshold: the score from which a detection starts a track, between 0 and 1.
        weights: torchvision's name of the weights; None builds the network with random ones.

    Raises:
        ValueError: there is no such detector, or the threshold is no share.
        ConnectionError: its weights are not here yet and cannot be downloaded.
    """
    if not 0 < score_threshold < 1:
        raise ValueError(f"score_threshold is {score_threshold}; it must lie between 0 and 1.")
    if name.startswith("yolo"):
        return _load_ultralytics(name, score_threshold)
    known = torchvision.models.list_models(module=detection)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}."
        raise ValueError(f"There is no detector {name!r}; {hint}")
    names = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    threshold = "box_score_thresh" if "rcnn" in name else "score_thresh"
    try:
        model = torchvision.models.get_model(name, weights=weights, weights_backbone=None,
                                             num_classes=len(names),
                                             **{threshold: score_threshold / 2})
    except (URLError, ConnectionError) as error:
        raise ConnectionError(f"The weights of {name} cannot be downloaded ({error}); connect to "
                              "the internet once, or use detector = \"drawn\".") from None
    return as_detector(model, names, score_threshold)


def as_detector(model: nn.Module, names: list[str], score_threshold: float) -> Detector:
    """Wrap a model with torchvision's detection interface; `names[i]` is the class of label i."""
    device = choose_device()
    model = model.to(device).eval()

    @torch.inference_mode()
    def predict(images: np.ndarray) -> list[Detections]:
        batch = torch.tensor(images).to(device).permute(0, 3, 1, 2).float().div_(255)
        found = []
        for output in model(list(batch)):
            keep = output["scores"] >= score_threshold / 2
            boxes, scores = output["boxes"][keep], output["scores"][keep]
            # the networks remove doubled boxes within a class; one vehicle has one class only
            best = torchvision.ops.nms(boxes, scores, .6)
            labels = output["labels"][keep][best].tolist()
            found.append(Detections(boxes[best].cpu().numpy(), [names[i] for i in labels],
                                    scores[best].cpu().numpy()))
        return found

    return Detector(names, predict, score_threshold)


def _load_ultralytics(name: str, score_threshold: float) -> Detector:
    try:
        from ultralytics import YOLO
    except ImportError:
        raise ValueError(f"{name} needs the package ultralytics (licence: AGPL-3.0); install it if "
                         "that suits you, or choose a detector of torchvision.") from None
    model = YOLO(name)
    names = [model.names[i] for i in sorted(model.names)]

    def predict(images: np.ndarray) -> list[Detections]:
        found = []
        for image in images:
            boxes = model.predict(np.ascontiguousarray(image[..., ::-1]), verbose=False,
                                  conf=score_threshold / 2, agnostic_nms=True)[0].boxes.cpu()
            found.append(Detections(boxes.xyxy.numpy(), [names[int(i)] for i in boxes.cls],
                                    boxes.conf.numpy()))
        return found

    return Detector(names, predict, score_threshold)


def build_small_fcos(num_classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Build a small one-stage detector (FCOS, arXiv:1904.01355) for images of (height, width).

    About .7 M parameters; class 0 is the background as everywhere in torchvision.
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


def train_detector(images: np.ndarray, targets: list[dict], steps: int = 150, seed: int = 0,
                   batch_size: int = 16, lr: float = 3e-3, score_threshold: float = .5
                   ) -> Detector:
    """Train a small detector from scratch on images (N, H, W, 3) uint8.

    Each target holds "boxes" (K, 4) in pixels and "labels", K class names. Images are mirrored
    and their brightness varied at random.
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
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=.2)
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
    return as_detector(model, names, score_threshold)


def keep_classes(found: Detections, classes: list[str]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return boxes, labels and scores of the detections of some classes."""
    keep = [i for i, label in enumerate(found.labels) if label in classes]
    return found.boxes[keep], [found.labels[i] for i in keep], found.scores[keep]


@dataclass
class Summary:
    """Hold what `process` found: all times in seconds of the video, boxes in pixels."""

    first_frame: np.ndarray  # as in the video
    events: list[Event]
    counts: dict[str, Counter]  # road -> class -> number of vehicles
    heat: np.ndarray  # GRID: how many times a truck stood there
    key_frames: list[tuple[float, np.ndarray]]  # up to three annotated frames and their times
    frames: int
    warning: str  # what was wrong with the file, or empty
    duration: float
    speed: float  # frames per second of computing


def process(path: str | Path, detector: Detector, rules: Rules, folder: str | Path,
            classes: list[str] | None = None, batch_size: int = 4) -> Summary:
    """Detect, track and judge the vehicles of a video, frame by frame.

    Writes into `folder`: annotated.mp4, events.csv (a row as soon as it happens), rules.png and
    summary.png. `classes` are followed, by default vehicles; `batch_size` frames are in memory.

    Raises:
        FileNotFoundError, ValueError: as `Video`, or a class that the detector does not know.
    """
    if classes is None:
        classes = [name for name in VEHICLES if name in detector.names]
    check_classes(classes, detector.names, "classes")
    for zone in rules.zones:
        check_classes(zone.forbidden, detector.names, f"zone {zone.name!r}")
    video, folder = Video(path), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker(detector.score_threshold)
    judge = Judge(rules, video.width, video.height)
    annotator = Annotator(rules, video.width, video.height)
    tracks: dict[int, Track] = {}
    events, keys, heat, opening = [], [], np.zeros(GRID), None
    started, number, frames = time.perf_counter(), 0, iter(video)
    bar = tqdm(total=round(video.duration * video.fps), unit="frame", disable=None)
    with (bar, Writer(folder / "annotated.mp4", video.width, video.height, video.fps) as writer,
          open(folder / "events.csv", "w", newline="", encoding="utf-8") as file):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        while batch := list(itertools.islice(frames, batch_size)):
            found = detector.predict(np.stack([image for _, image in batch]))
            for (moment, image), detections in zip(batch, found, strict=True):
                seen = tracker.update(*keep_classes(detections, classes))
                news = judge.update(seen, number, moment)
                for event in news:
                    table.writerow([event.frame, f"{event.time:.3f}", event.track, event.label,
                                    event.event, event.zone, *event.box.round(1).tolist()])
                    file.flush()
                events += news
                tracks |= {track.number: track for track in seen}
                for track in seen:
                    x, y = track.foot / (video.width, video.height)
                    if track.label == "truck" and 0 <= x < 1 and 0 <= y < .99:  # not cut below
                        heat[int(y * GRID[0]), int(x * GRID[1])] += 1
                recent = [event for event in events if moment - event.time < EVENT_SECONDS]
                picture = annotator.draw(image, seen, recent)
                writer.write(picture, moment)
                if opening is None:
                    first, opening = image, (moment, picture)
                    draw_rules(first, rules).savefig(folder / "rules.png", **PICTURE)
                if news and len(keys) < 3 and (not keys or moment - keys[-1][0] >= .4):
                    keys.append((moment, picture))
                number += 1
                bar.update()
    for extra in ((moment, picture), opening):
        if len(keys) < 3 and extra[0] not in [when for when, _ in keys]:
            keys.append(extra)
    counts = {zone.name: Counter(t.label for t in tracks.values() if zone.name in t.zones)
              for zone in rules.zones}
    speed = number / (time.perf_counter() - started)
    summary = Summary(first, events, counts, heat, sorted(keys, key=lambda key: key[0]), number,
                      video.warning, moment, speed)
    draw_summary(first, events, counts, heat, moment).savefig(folder / "summary.png", **PICTURE)
    return summary

"""Which network finds the vehicles: torchvision's, Darknet's YOLO, an ONNX file, ultralytics.

Each becomes a `Detector`, which takes images and speaks in names of classes.
"""

import ast
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection

from helpers import ROOT
from helpers.data.download import download
from helpers.detect.darknet import STRIDE, Darknet
from helpers.detect.tracking import Detections
from helpers.models.device import choose_device, keep_memory
from helpers.runs.config import did_you_mean
from helpers.runs.files import lock

BY_HAND = ROOT / "data" / "weights"  # downloads go here; files put here by hand are used, too
DARKNET = "https://raw.githubusercontent.com/pjreddie/darknet/master"
FILES = {  # the files of Darknet's detectors, as their authors publish them: address and sha256
    "yolov3.cfg": (f"{DARKNET}/cfg/yolov3.cfg",
                   "22489ea38575dfa36c67a90048e8759576416a79d32dc11e15d2217777b9a953"),
    "yolov3.weights": ("https://pjreddie.com/media/files/yolov3.weights",
                       "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"),
    "yolov3-tiny.cfg": (f"{DARKNET}/cfg/yolov3-tiny.cfg",
                        "84eb7a675ef87c906019ff5a6e0effe275d175adb75100dcb47f0727917dc2c7"),
    "yolov3-tiny.weights": ("https://pjreddie.com/media/files/yolov3-tiny.weights",
                            "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"),
    "coco.names": (f"{DARKNET}/data/coco.names",
                   "634a1132eb33f8091d60f2c346ababe8b905ae08387037aed883953b7329af84"),
}
SAME_BOX = 0.6  # from this IoU on, boxes of two classes are one thing
SAME_BOX_OF_CLASS = 0.45  # the same within a class; YOLO's authors' value
GREY = 0.5  # around an image that is narrower than the network's


@dataclass
class Detector:
    """A network that finds things on images (N, H, W, 3) uint8, all of one size.

    `predict` returns one Detections for each image. It holds weak detections too, from half of
    `score_threshold` on: they may continue a track but never start one.
    """

    names: list[str]
    predict: Callable[[np.ndarray], list[Detections]]
    score_threshold: float


def load_detector(name: str, score_threshold: float = .5, weights: str | None = "DEFAULT"
                  ) -> Detector:
    """Load a pretrained detector.

    Args:
        name: one of torchvision's, such as "fasterrcnn_mobilenet_v3_large_320_fpn",
            "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn" or "ssdlite320_mobilenet_v3_large";
            "yolov3" or "yolov3-tiny", Darknet's; the path of an ONNX file of a YOLO; or
            "yolov5nu.pt", "yolo11n.pt", if `ultralytics` is installed (its licence: AGPL-3.0).
        score_threshold: the score from which a detection starts a track, between 0 and 1.
        weights: torchvision's name of the weights; None builds the network with random ones.

    Raises:
        ValueError: there is no such detector, its files do not fit, or the threshold is no share.
        FileNotFoundError: there is no such ONNX file.
        ConnectionError: its weights are not here yet and cannot be downloaded.
    """
    if not 0 < score_threshold < 1:
        raise ValueError(f"score_threshold is {score_threshold}; it must lie between 0 and 1.")
    if name in ("yolov3", "yolov3-tiny"):
        cfg, numbers, names = _find([f"{name}.cfg", f"{name}.weights", "coco.names"])
        return darknet_detector(cfg, numbers, _read_names(names), score_threshold)
    if name.endswith(".onnx"):
        return _load_onnx(ROOT / Path(name).expanduser(), score_threshold)
    if name.startswith("yolo"):
        return _load_ultralytics(name, score_threshold)
    known = torchvision.models.list_models(module=detection)
    if name not in known:
        known += ["yolov3", "yolov3-tiny"]
        hint = did_you_mean(name, known) or f"; choose one of {', '.join(known)}"
        raise ValueError(f"There is no detector {name!r}{hint}")
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
        batch = _to_tensor(images, device)
        return [_detections(found["boxes"], found["labels"], found["scores"], names,
                            score_threshold) for found in model(list(batch))]

    return Detector(names, predict, score_threshold)


def _to_tensor(images: np.ndarray, device: torch.device) -> Tensor:
    """Return images (N, H, W, 3) uint8 as (N, 3, H, W), from 0 to 1."""
    return torch.tensor(images).to(device).permute(0, 3, 1, 2).float().div_(255)


def _detections(boxes: Tensor, labels: Tensor, scores: Tensor, names: list[str],
                score_threshold: float) -> Detections:
    """Return one image's detections that are sure enough; a thing has one box and one class."""
    keep = scores >= score_threshold / 2
    boxes, labels, scores = boxes[keep], labels[keep], scores[keep]
    best = torchvision.ops.nms(boxes, scores, SAME_BOX)
    return Detections(boxes[best].float().cpu().numpy(), [names[i] for i in labels[best].tolist()],
                      scores[best].float().cpu().numpy())


# YOLO: images of any shape, rows of boxes and scores


def letterbox(images: Tensor, size: tuple[int, int], fill: bool) -> tuple[Tensor, float, Tensor]:
    """Fit images (N, 3, H, W) into `size` (height, width), their shape kept, grey around them.

    Where `fill` is False only so much grey is added that the sides are multiples of the stride:
    the network has the less to look at. Returns the images, the scale, and the picture's left
    upper corner (x, y) in them.
    """
    height, width = images.shape[2:]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    outer = size if fill else tuple(-(-side // STRIDE) * STRIDE for side in inner)
    images = F.interpolate(images, inner, mode="bilinear", align_corners=False)
    top, left = ((outer[axis] - inner[axis]) // 2 for axis in (0, 1))
    images = F.pad(images, (left, outer[1] - inner[1] - left, top, outer[0] - inner[0] - top),
                   value=GREY)
    return images, scale, torch.tensor([left, top], device=images.device)


def _yolo(look: Callable[[Tensor], Iterable[tuple[Tensor, Tensor]]], names: list[str],
          score_threshold: float, size: tuple[int, int], fill: bool, device: torch.device
          ) -> Detector:
    """Return the detector of a YOLO that sees images as `letterbox` fits them into `size`.

    `look` says of each of such images (N, 3, H, W) where its boxes are (K, 4), as x and y of the
    middle, width and height in pixels, and their scores (K, classes).
    """
    @torch.inference_mode()
    def predict(images: np.ndarray) -> list[Detections]:
        batch, scale, corner = letterbox(_to_tensor(images, device), size, fill)
        found = []
        for middles, scores in look(batch):
            best, labels = scores.max(1)
            keep = best >= score_threshold / 2
            middles, best, labels = middles[keep], best[keep], labels[keep]
            boxes = torchvision.ops.box_convert(middles, "cxcywh", "xyxy")
            boxes = (boxes - corner.repeat(2)) / scale  # in the image's own pixels
            boxes = torchvision.ops.clip_boxes_to_image(boxes, images.shape[1:3])
            own = torchvision.ops.batched_nms(boxes, best, labels, SAME_BOX_OF_CLASS)
            found.append(_detections(boxes[own], labels[own], best[own], names, score_threshold))
        return found

    return Detector(names, predict, score_threshold)


def _read_names(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows' editor may add a mark
    return [line.strip() for line in lines if line.strip()]


def darknet_detector(cfg: Path, weights: Path, names: list[str], score_threshold: float
                     ) -> Detector:
    """Return the detector of a Darknet cfg file and its weights; `names` are its classes."""
    device = choose_device()
    keep_memory()
    model = Darknet(cfg)
    if model.num_classes != len(names):
        raise ValueError(f"{cfg.name} has {model.num_classes} classes, and {len(names)} names are "
                         "given.")
    model.load(weights)
    model = model.to(device, memory_format=torch.channels_last).eval()

    def look(batch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in model(batch.contiguous(memory_format=torch.channels_last)):
            yield rows[:, :4], rows[:, 5:]

    return _yolo(look, names, score_threshold, model.size, False, device)


def _find(names: list[str]) -> list[Path]:
    """Return some of Darknet's files: from data/weights, beside DATA_ROOT, or downloaded."""
    places = [BY_HAND]
    if root := os.environ.get("DATA_ROOT"):
        data = (ROOT / Path(root).expanduser()).resolve()
        places += [data, data / "detection", data.parent / "detection"]
    found = [next((place / name for place in places if (place / name).is_file()), BY_HAND / name)
             for name in names]
    missing = [path for path in found if not path.is_file()]
    if not missing:
        return found
    try:
        with lock(BY_HAND, "downloading a detector"):  # who waited only verifies
            for path in missing:
                download(FILES[path.name][0], path, FILES[path.name][1])
    except ConnectionError as error:
        missing = [path.name for path in missing]
        addresses = " ".join(FILES[name][0] for name in missing)
        raise ConnectionError(f"{' and '.join(missing)} cannot be downloaded; put what these "
                              f"addresses give into {BY_HAND}: {addresses}") from error
    return found


def _load_onnx(path: Path, score_threshold: float) -> Detector:
    """Read a YOLO's ONNX file by OpenCV; its classes from the file itself, or PATH.names."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no detector file {path}.")
    try:
        import cv2
    except ImportError:
        raise ValueError(f"{path.name} is read by OpenCV, which is missing here: "
                         "pip install opencv-python-headless") from None
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as error:
        raise ValueError(f"OpenCV {cv2.__version__} cannot read {path.name} ({error.err}); export "
                         "it anew with opset 12 and a fixed size.") from None
    size, embedded = describe_onnx(path.read_bytes())
    beside = path.with_suffix(".names")
    names = _read_names(beside) if beside.is_file() else embedded
    if not names:
        raise ValueError(f"{path.name} does not name its classes: write them into {beside}, one a "
                         "line.")

    def look(batch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for image in batch.numpy():
            network.setInput(image[None])
            rows = torch.from_numpy(network.forward())[0]
            yield _read_rows(rows, len(names), path.name)

    return _yolo(look, names, score_threshold, size, True, torch.device("cpu"))


def _read_rows(rows: Tensor, classes: int, file: str) -> tuple[Tensor, Tensor]:
    """Return boxes (K, 4) and scores (K, classes) of a YOLO's output, of either kind."""
    if rows.ndim == 2 and rows.shape[1] == 5 + classes:  # v3, v5, v7: with an object's score
        return rows[:, :4], rows[:, 4:5] * rows[:, 5:]
    if rows.ndim == 2 and rows.shape[0] == 4 + classes:  # v8 and later: without, transposed
        return rows[:4].T, rows[4:].T
    raise ValueError(f"{file} gives {tuple(rows.shape)} numbers, not the (boxes, {5 + classes}) or "
                     f"({4 + classes}, boxes) of a YOLO with {classes} classes; export it without "
                     "its own suppression, and check its names.")


def describe_onnx(data: bytes) -> tuple[tuple[int, int], list[str]]:
    """Return an ONNX file's image size (height, width) and the classes that it names, if any.

    OpenCV tells neither. The file is a protobuf message (ModelProto): 7 is its graph, 11 there the
    first input, whose type, tensor, shape and dimensions are 2, 1, 2, 1; 14 is a note with key 1
    and value 2, such as ultralytics' "names". A free size becomes 640, what YOLO exports assume.
    """
    shape = data
    for step in (7, 11, 2, 1, 2):
        shape = next((value for key, value in _fields(shape) if key == step), b"")
    sides = [dict(_fields(side)).get(1, 0) for key, side in _fields(shape) if key == 1]
    height, width = (side if isinstance(side, int) and side > 0 else 640
                     for side in (sides + [0] * 4)[2:4])
    notes = [dict(_fields(value)) for key, value in _fields(data) if key == 14]
    text = next((note[2].decode() for note in notes if note.get(1) == b"names"), "{}")
    names = ast.literal_eval(text)  # by their numbers; in older files of YOLOv5 a list
    return (height, width), list(names.values() if isinstance(names, dict) else names)


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """Return number and value of each field of a protobuf message."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key, kind = divmod(varint(), 8)
        if kind == 0:
            found.append((key, varint()))
        else:
            length = {1: 8, 5: 4}.get(kind) or varint()
            found.append((key, message[at : at + length]))
            at += length
    return found


def _load_ultralytics(name: str, score_threshold: float) -> Detector:
    try:
        from ultralytics import YOLO
    except ImportError:
        raise ValueError(f"{name} needs the package ultralytics (licence: AGPL-3.0); install it if "
                         "that suits you, or choose \"yolov3\", \"yolov3-tiny\" or a detector of "
                         "torchvision.") from None
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

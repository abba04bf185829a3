"""Measure the trucks-on-the-wrong-road pipeline on drawn clips of seeds never trained on.

    python -m benchmarks.detect [--clips 24] [--frames 200]

- events: the drawn detector, trained as in notebook 07, then tracking and rules. A found event is
  right when the vehicle whose exact box overlaps the event's box most (IoU of at least .5) broke
  that rule there, at most 3 seconds ago; each true event counts once, what is left over is false
- AP50 of trucks: all-point average precision at an overlap of .5 on every tenth frame of the clips;
  trucks hidden by more than half or narrower than 8 pixels are neither demanded nor false
- frames/s of tracking and rules, of drawing and encoding at 640x384, and of the whole pipeline with
  Faster R-CNN MobileNet 320 (random weights) against the bare detector on 640x352 frames

Writes runs/benchmarks/detect.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from helpers import ROOT
from helpers.detect.drawn.traffic import FPS, Clip, Frame, draw_scenes
from helpers.detect.pipeline import (
    VEHICLES,
    Detector,
    keep_classes,
    load_detector,
    process,
    train_detector,
)
from helpers.detect.tracking import Judge, Rules, Tracker, Zone, box_iou
from helpers.detect.video import Annotator, Writer
from helpers.models.device import environment

TRAINING_SEED, FIRST_CLIP = 7, 100  # as in notebook 07; its own clip is seed 7
WINDOW = 3 * FPS  # frames from a breach's first to its report


def average_precision(frames: list[Frame], found: list, name: str) -> float:
    """Return the area under the precision-recall curve of one class at an IoU of .5."""
    rows, total = [], 0
    for frame, detections in zip(frames, found, strict=True):
        of_class = np.array([label == name for label in frame.labels], bool)
        sides = (frame.boxes[:, 2:] - frame.boxes[:, :2]).min(1)
        demanded = of_class & (frame.visible >= 0.5) & (sides >= 8)
        total += demanded.sum()
        free = demanded.copy()
        order = np.argsort(-detections.scores, kind="stable")
        for i in [i for i in order if detections.labels[i] == name]:
            overlaps = box_iou(detections.boxes[[i]], frame.boxes)[0]
            best = int(np.where(free, overlaps, 0).argmax()) if len(overlaps) else 0
            if len(overlaps) and free[best] and overlaps[best] >= 0.5:
                free[best] = False
                rows.append((detections.scores[i], True))
            elif not (overlaps[of_class & ~demanded] >= 0.5).any():
                rows.append((detections.scores[i], False))
    rows.sort(key=lambda row: -row[0])
    hits = np.array([hit for _, hit in rows]).cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(hits / total, prepend=0) * precision).sum())


def match_events(events: list, clip: Clip) -> tuple[int, int]:
    """Return how many found events are right, and how many are false or doubled."""
    first = {(e.track, e.event, e.zone): e.frame for e in clip.events}
    right = 0
    for event in events:
        boxes = clip.boxes(event.frame)
        ids = list(boxes)
        if not ids:
            continue
        overlaps = box_iou(event.box[None], np.array(list(boxes.values())))[0]
        key = (ids[int(overlaps.argmax())], event.event, event.zone)
        if overlaps.max() >= 0.5 and 0 <= event.frame - first.get(key, np.inf) <= WINDOW:
            del first[key]
            right += 1
    return right, len(events) - right


def measure_events(detector: Detector, clips: int, frames: int) -> dict:
    """Run detection, tracking and rules over the clips and compare with the truth."""
    totals = {"true": 0, "right": 0, "false": 0}
    pictures, found, seconds = [], [], 0.0
    for seed in tqdm(range(FIRST_CLIP, FIRST_CLIP + clips), "clips", disable=None):
        clip = Clip(seed, frames)
        tracker = Tracker(detector.score_threshold)
        judge = Judge(clip.rules, *clip.frame(0).image.shape[1::-1])
        events = []
        for number, frame in enumerate(clip):
            (detections,) = detector.predict(frame.image[None])
            start = time.perf_counter()
            seen = tracker.update(*keep_classes(detections, VEHICLES))
            events += judge.update(seen, number, number / FPS)
            seconds += time.perf_counter() - start
            if number % 10 == 0:
                pictures.append(frame)
                found.append(detections)
        right, wrong = match_events(events, clip)
        totals["true"] += len(clip.events)
        totals["right"] += right
        totals["false"] += wrong
    return {
        **totals,
        "found_share": totals["right"] / totals["true"],
        "false_share": totals["false"] / max(1, totals["right"] + totals["false"]),
        "truck_ap50": average_precision(pictures, found, "truck"),
        "car_ap50": average_precision(pictures, found, "car"),
        "tracking_frames_per_second": clips * frames / seconds,
    }


def measure_drawing(clip: Clip) -> float:
    """Return the frames/s of annotating and encoding a clip, with its true boxes as tracks."""
    tracker, frames, seconds = Tracker(), list(clip), 0.0
    height, width = frames[0].image.shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        annotator = Annotator(clip.rules, width, height)
        with Writer(Path(folder) / "out.mp4", width, height, FPS) as writer:
            for number, frame in enumerate(frames):
                tracks = tracker.update(frame.boxes, frame.labels, np.ones(len(frame.labels)))
                start = time.perf_counter()
                writer.write(annotator.draw(frame.image, tracks, []), number / FPS)
                seconds += time.perf_counter() - start
    return len(frames) / seconds


def measure_overhead(clip: Clip, rounds: int = 3) -> dict:
    """Return the share of the bare Faster R-CNN's speed that the whole pipeline reaches."""
    detector = load_detector("fasterrcnn_mobilenet_v3_large_320_fpn", weights=None)
    images = [np.asarray(Image.fromarray(f.image).crop((0, 0, 640, 352))) for f in clip]
    rules = Rules(zones=[Zone(name="road", polygon=[(0, 0), (1, 0), (1, 1)], forbidden=["truck"])])
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        with Writer(video, 640, 352, FPS) as writer:
            for number, image in enumerate(images):
                writer.write(image, number / FPS)
        detector.predict(np.stack(images[:4]))
        for _ in range(rounds):
            start = time.perf_counter()
            for first in range(0, len(images), 4):
                detector.predict(np.stack(images[first : first + 4]))
            bare.append(len(images) / (time.perf_counter() - start))
            start = time.perf_counter()
            process(video, detector, rules, Path(folder) / "results")
            whole.append(len(images) / (time.perf_counter() - start))
    bare, whole = statistics.median(bare), statistics.median(whole)
    return {"bare_frames_per_second": bare, "pipeline_frames_per_second": whole,
            "pipeline_share": whole / bare}  # fmt: skip


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    images, targets = draw_scenes(400, TRAINING_SEED)
    start = time.perf_counter()
    detector = train_detector(images, targets, steps=300, seed=TRAINING_SEED)
    results = {"training_seconds": time.perf_counter() - start}
    results |= measure_events(detector, options.clips, options.frames)
    clip = Clip(FIRST_CLIP, options.frames)
    results["drawing_frames_per_second"] = measure_drawing(clip)
    results |= measure_overhead(clip)
    print("| figure | measured |\n| --- | --- |")
    for name, value in results.items():
        shown = f"{value:.1%}" if name.endswith("share") else f"{value:,.3g}"
        print(f"| {name.replace('_', ' ')} | {shown} |")
    output = ROOT / "runs" / "benchmarks" / "detect.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {**results, "environment": environment(), **vars(options)}
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Measure the trucks-on-the-wrong-road pipeline on drawn clips of seeds never trained on.

    python -m benchmarks.detect [--clips 24] [--frames 200] [--only events|film|overhead]

- events: the drawn detector, trained as in notebook 07, then tracking and rules, on the same
  traffic drawn at 10, 25 and 60 frames/s. A found event is right when the vehicle whose exact box
  overlaps the event's box most (IoU of at least .5) broke that rule there, at most 3 seconds and a
  frame ago; each true event counts once, what is left over is false. Same events: the clips whose
  right events are the same at all three rates
- AP50 of trucks: all-point average precision at an overlap of .5 on every tenth frame of the clips;
  trucks hidden by more than half or narrower than 8 pixels are neither demanded nor false
- film: Darknet's YOLOv3-tiny on car-detection.mp4 (CC BY 4.0, Intel IoT DevKit sample videos),
  looked for in data/ and, with the weights, beside DATA_ROOT, against the four cars that pass,
  written down by hand in car_park.csv: the seconds in which each is seen at all and seen whole, and
  where its middle is, in fractions of the width
- overhead: what reading, tracking, rules and writing add to the time of the detector alone, for
  Faster R-CNN MobileNet 320 (random weights, on drawn frames), YOLOv3-tiny and YOLOv3 (on the film;
  the second with random weights and the first one's boxes, so that there is something to follow)

Writes runs/benchmarks/detect.json.
"""

import argparse
import csv
import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.measured import keep
from helpers import ROOT
from helpers.detect import process, record
from helpers.detect.darknet import Darknet
from helpers.detect.detectors import Detector, as_detector, darknet_detector, load_detector
from helpers.detect.drawn.detector import SCENES, train_detector
from helpers.detect.drawn.traffic import FPS, Clip, Frame, draw_scenes
from helpers.detect.pipeline import VEHICLES
from helpers.detect.rules import Judge, Rules, Zone
from helpers.detect.tracking import Detections, Tracker, box_iou
from helpers.detect.video import Video, Writer
from helpers.runs.text import markdown_table

STEPS, TRAINING_SEED, FIRST_CLIP = 300, 7, 100  # as in notebook 07; its own clip is seed 7
WINDOW = 3.0  # seconds from a breach's first frame to its report
RATES = (FPS, 10, 60)  # frames/s, the first is that of the reported shares
THRESHOLDS = (0.3, 0.5)  # on the film
CARS = Path(__file__).with_name("car_park.csv")


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


def match_events(events: list, clip: Clip) -> set[tuple[int, str, str]]:
    """Return the true events (vehicle, event, zone) that were found."""
    open_events = {(e.track, e.event, e.zone): e.time for e in clip.events}
    right = set()
    for event in events:
        boxes = clip.boxes(event.frame)
        ids = list(boxes)
        if not ids:
            continue
        overlaps = box_iou(event.box[None], np.array(list(boxes.values())))[0]
        key = (ids[int(overlaps.argmax())], event.event, event.zone)
        late = event.time - open_events.get(key, np.inf)
        latest = WINDOW + 1 / clip.fps + 1e-6  # frame rates differ by up to a frame's time
        if overlaps.max() >= 0.5 and 0 <= late <= latest and key not in right:
            right.add(key)
    return right


def measure_events(detector: Detector, clips: int, frames: int) -> dict:
    """Run detection, tracking and rules over the clips at each rate and compare with the truth."""
    totals = {rate: Counter() for rate in RATES}
    pictures, found, seconds, same = [], [], 0.0, 0
    for seed in tqdm(range(FIRST_CLIP, FIRST_CLIP + clips), "clips", disable=None):
        rights = []
        for rate in RATES:
            clip = Clip(seed, frames).resample(rate)
            tracker = Tracker(VEHICLES, detector.score_threshold)
            judge = Judge(clip.rules, *clip.frame(0).image.shape[1::-1])
            events = []
            for number, frame in enumerate(clip):
                (detections,) = detector.predict(frame.image[None])
                start = time.perf_counter()
                seen = tracker.update(detections, number / rate)
                events += judge.update(seen, number, number / rate)
                seconds += time.perf_counter() - start
                if rate == FPS and number % 10 == 0:
                    pictures.append(frame)
                    found.append(detections)
            right = match_events(events, clip)
            rights.append(right)
            totals[rate] += Counter(true=len(clip.events), right=len(right),
                                    false=len(events) - len(right), frames=clip.frame_count)
        same += all(right == rights[0] for right in rights)
    results = {}
    for rate, total in totals.items():
        results[f"found_at_{rate}"] = f"{total['right']} of {total['true']}"
        results[f"false_at_{rate}"] = total["false"]
    first = totals[FPS]
    return {
        **results,
        "found_share": first["right"] / first["true"],
        "false_share": first["false"] / max(1, first["right"] + first["false"]),
        "same_events_at_all_rates": f"{same} of {clips} clips",
        "truck_ap50": average_precision(pictures, found, "truck"),
        "car_ap50": average_precision(pictures, found, "car"),
        "tracking_frames_per_second": sum(t["frames"] for t in totals.values()) / seconds,
    }


def find_film() -> Path | None:
    """Return the real film where it lies beside DATA_ROOT, or in data/."""
    places = [ROOT / "data"]
    if root := os.environ.get("DATA_ROOT"):
        places += [Path(root), Path(root) / "detection", Path(root).parent / "detection"]
    films = [place / "car-detection.mp4" for place in places]
    return next((film for film in films if film.is_file()), None)


def measure_film(film: Path) -> dict:
    """Count the cars of the real film and compare with what was seen by eye."""
    with CARS.open(encoding="utf-8") as file:
        cars = [{key: value if key in ("vehicle", "way") else float(value)
                 for key, value in row.items()} for row in csv.DictReader(file)]
    whole = Zone(name="car park", polygon=[(0, 0), (1, 0), (1, 1), (0, 1)], forbidden=["car"])
    video, results = Video(film), {}
    network = load_detector("yolov3-tiny", min(THRESHOLDS))
    found = [network.predict(image[None])[0] for _, image in video]  # once: it is the slow part
    for threshold in THRESHOLDS:
        for name, classes in (("vehicles", None), ("cars alone", ["car"])):
            detector = replay(found, network.names, threshold)
            seen, events = {}, Counter()
            for moment in process(video, detector, Rules(zones=[whole]), classes=classes):
                for track in moment.tracks:
                    seen.setdefault(track.number, []).append((moment.time, track.foot[0]))
                events.update(event.track for event in moment.events)
            owners = {}
            for number, way in seen.items():
                times, middles = np.array(way).T
                owners[number] = [car["vehicle"] for car in cars
                                  if times[0] <= car["last_seen"] and times[-1] >= car["first_seen"]
                                  and car["left"] <= middles.mean() / video.width <= car["right"]]
            counted = Counter(owner for own in owners.values() for owner in own)
            results[f"{name}, threshold {threshold}"] = {
                "passed": len(cars), "found": len(counted),
                "missed": [car["vehicle"] for car in cars if not counted[car["vehicle"]]],
                "doubled": sum(count - 1 for count in counted.values()),
                "false": sum(not own for own in owners.values()),
                "zone events of each car": sorted(Counter(
                    owner for number, count in events.items()
                    for owner in owners[number] * count).items()),
            }
    return results


def replay(found: list[Detections], names: list[str], threshold: float) -> Detector:
    """Return a detector that repeats what was found on a film's frames, one after the other."""
    rest = iter(found)

    def predict(images: np.ndarray) -> list[Detections]:
        kept = []
        for one in itertools.islice(rest, len(images)):
            keep = np.flatnonzero(one.scores >= threshold / 2)
            kept.append(Detections(one.boxes[keep], [one.labels[i] for i in keep],
                                   one.scores[keep]))
        return kept

    return Detector(names, predict, threshold)


def measure_overhead(detector: Detector, film: Path, rules: Rules, rounds: int = 3) -> dict:
    """Return the frames/s of the bare detector and of everything, and what the latter costs."""
    video = Video(film)
    images = [image for _, image in video]
    bare, whole = [], []
    detector.predict(np.stack(images[:4]))
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            for first in range(0, len(images), 4):
                detector.predict(np.stack(images[first : first + 4]))
            bare.append(time.perf_counter() - start)
            start = time.perf_counter()
            record(process(video, detector, rules), video, rules, folder)
            whole.append(time.perf_counter() - start)
    bare, whole = statistics.median(bare), statistics.median(whole)
    return {"bare_frames_per_second": len(images) / bare,
            "pipeline_frames_per_second": len(images) / whole, "overhead_share": whole / bare - 1}


def write_yolov3(folder: Path) -> tuple[Path, Path]:
    """Write YOLOv3's cfg file and random weights (arXiv:1804.02767, table 1 and section 2.3)."""
    text = "[net]\nwidth=416\nheight=416\n"

    def add(kind: str, **values) -> None:
        nonlocal text
        text += f"[{kind}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())

    def convolve(filters: int, size: int, stride: int = 1, normed: int = 1) -> None:
        add("convolutional", batch_normalize=normed, filters=filters, size=size, stride=stride,
            pad=1, activation="leaky" if normed else "linear")

    convolve(32, 3)
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        convolve(filters, 3, 2)
        for _ in range(blocks):
            convolve(filters // 2, 1)
            convolve(filters, 3)
            add("shortcut", **{"from": -3})
    for filters, mask, source in ((512, "6,7,8", 0), (256, "3,4,5", 61), (128, "0,1,2", 36)):
        if source:
            add("route", layers=-4)
            convolve(filters, 1)
            add("upsample", stride=2)
            add("route", layers=f"-1,{source}")
        for _ in range(3):
            convolve(filters, 1)
            convolve(2 * filters, 3)
        convolve(255, 1, normed=0)
        add("yolo", mask=mask, classes=80, num=9, anchors="10,13, 16,30, 33,23, 30,61, 62,45, "
            "59,119, 116,90, 156,198, 373,326")
    cfg, weights = folder / "yolov3.cfg", folder / "yolov3.weights"
    cfg.write_text(text)
    network = Darknet(cfg)
    with weights.open("wb") as file:
        file.write(np.array([0, 2, 0, 0, 0], np.int32).tobytes())
        for number, convolution in network.convolutions.items():
            bias = np.zeros(convolution.out_channels, np.float32)
            normed = network.layers[int(number)]["batch_normalize"] == "1"
            for part in [bias, bias + 1, bias, bias + 1] if normed else [bias]:
                file.write(part.tobytes())
            file.write(convolution.weight.detach().numpy().tobytes())
    return cfg, weights


def measure_overheads(film: Path | None, frames: int) -> dict:
    """Measure the overhead on drawn frames and, where it is here, on the real film."""
    rules = Rules(zones=[Zone(name="road", polygon=[(0, 0), (1, 0), (1, 1)], forbidden=["truck"])])
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn.mp4"
        with Writer(drawn, 640, 352, FPS) as writer:
            for number, frame in enumerate(Clip(FIRST_CLIP, frames)):
                image = Image.fromarray(frame.image).crop((0, 0, 640, 352))
                writer.write(np.asarray(image), number / FPS)
        name = "fasterrcnn_mobilenet_v3_large_320_fpn"
        results = {name: measure_overhead(load_detector(name, weights=None), drawn, rules)}
    if film:
        tiny = load_detector("yolov3-tiny", .3)
        results["yolov3-tiny"] = measure_overhead(tiny, film, rules)
        found = itertools.cycle(tiny.predict(image[None])[0] for _, image in Video(film))
        with tempfile.TemporaryDirectory() as folder:
            network = darknet_detector(*write_yolov3(Path(folder)), tiny.names, .3)

        def predict(images: np.ndarray) -> list[Detections]:
            network.predict(images)
            return list(itertools.islice(found, len(images)))

        results["yolov3"] = measure_overhead(Detector(tiny.names, predict, .3), film, rules, 1)
    return results


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--only", choices=("events", "film", "overhead"))
    options = parser.parse_args()
    results, film = {}, find_film()
    if options.only in (None, "events"):
        images, targets = draw_scenes(SCENES, TRAINING_SEED)
        start = time.perf_counter()
        network, names = train_detector(images, targets, STEPS, TRAINING_SEED)
        detector = as_detector(network, names, 0.5)
        results["training_seconds"] = time.perf_counter() - start
        results |= measure_events(detector, options.clips, options.frames)
    if film and options.only in (None, "film"):
        results["film"] = measure_film(film)
    if options.only in (None, "overhead"):
        results["overhead"] = measure_overheads(film, options.frames)
    rows = []
    for name, value in flatten(results):
        shown = value
        if isinstance(value, float):
            shown = f"{value:.1%}" if name.endswith("share") else f"{value:,.3g}"
        rows.append((name.replace("_", " "), shown))
    print(markdown_table(("figure", "measured"), rows))
    keep("detect", **results, **vars(options))


def flatten(results: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Return names and values of a dict of dicts, as lines."""
    lines = []
    for name, value in results.items():
        lines += (flatten(value, f"{prefix}{name}: ") if isinstance(value, dict)
                  else [(prefix + name, value)])
    return lines


if __name__ == "__main__":
    main()

import csv
import itertools
import wave
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw

from helpers import ROOT, detect
from helpers.detect.detectors import Detector, as_detector
from helpers.detect.drawn import detector as drawn
from helpers.detect.drawn import traffic
from helpers.detect.drawn.detector import train_detector
from helpers.detect.drawn.scene import FAR, NEAR, SIZE, Camera, Scene, build_bus, build_truck, stand
from helpers.detect.rules import (
    FORBIDDEN,
    WRONG_DIRECTION,
    Event,
    Judge,
    Lane,
    Rules,
    Zone,
    read_rules,
)
from helpers.detect.tracking import Detections, Settings, Tracker, box_iou
from helpers.detect.video import Video, Writer

VEHICLES = ["car", "bus", "truck"]
NO_RULES = Rules()
STREET = Rules.model_validate({
    "zones": [{"name": "street", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]],
               "forbidden": ["truck"]}],
    "lanes": [{"name": "upwards", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]],
               "directions": [[[0.5, 1], [0.5, 0]]]}]})


def says_one_sentence(error):
    text = str(error.value)
    return "\n" not in text and text.endswith((".", "?")) and len(text) < 300


def follow(boxes, rules=STREET, labels=None, size=(400, 400), times=None):
    """Send lists of boxes, one list a frame, through tracker and judge; return all events."""
    tracker, judge, events = Tracker(VEHICLES), Judge(rules, *size), []
    for frame, found in enumerate(boxes):
        names = labels[frame] if labels else ["car"] * len(found)
        time = times[frame] if times is not None else frame / 25
        seen = tracker.update(detections(found, names), time)
        events += judge.update(seen, frame, time)
    return events, tracker


def detections(boxes, labels, scores=.9):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Detections(boxes, labels, np.broadcast_to(np.array(scores, float), len(boxes)))


def watch(path, detector, rules, folder, **more):
    """Process a film and write everything down."""
    video = Video(path)
    return detect.record(detect.process(video, detector, rules, **more), video, rules, folder)


def moving(start, step, frames, size=40):
    return [[[start[0] + i * step[0], start[1] + i * step[1], start[0] + i * step[0] + size,
              start[1] + i * step[1] + size]] for i in range(frames)]


# --- the drawn truth ----------------------------------------------------------------------------


def test_camera_keeps_straight_lines_and_the_optical_axis():
    camera = Camera()
    ahead = camera.position + camera.axes[2] * np.array([[5.0], [50.0]])
    assert np.allclose(camera.project(ahead), np.array(SIZE) / 2)
    line = camera.project(np.array([[3, 20, 0], [3, 35, 0], [3, 60, 0]], float))
    (ax, ay), (bx, by) = line[1] - line[0], line[2] - line[0]
    assert abs(ax * by - ay * bx) < 1e-6


@pytest.mark.parametrize("place", [(3.0, 30.0), (-6.6, 50.0), (18.0, 14.5)], ids=str)
@pytest.mark.parametrize("build", [build_truck, build_bus])
def test_box_is_where_the_vehicle_is_painted(build, place):
    rng = np.random.default_rng(0)
    scene, model = Scene(rng, Camera()), build(rng)
    before, after = scene.image, scene.image.copy()
    scene.draw_model(ImageDraw.Draw(after, "RGBA"), model, np.array(place), np.pi / 2)
    changed = (np.asarray(before) != np.asarray(after)).any(2)
    ys, xs = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    painted = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]) / 2
    points = scene.camera.project(stand(model, np.array(place), np.pi / 2)[1])
    assert np.abs(traffic.frame_box(points) - painted).max() <= 1.5


def test_frame_is_drawn_alike_for_a_seed_and_differs_between_seeds():
    one, same, other = (traffic.Clip(seed, frames=2).frame(1) for seed in (5, 5, 6))
    assert np.array_equal(one.image, same.image) and np.array_equal(one.boxes, same.boxes)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (SIZE[1], SIZE[0], 3) and one.image.dtype == np.uint8
    assert len(one.boxes) == len(one.labels) == len(one.ids) == len(one.visible) > 3
    assert (one.boxes[:, 2:] > one.boxes[:, :2]).all() and (one.visible <= 1).all()


@pytest.mark.parametrize(("label", "x", "way", "expected"), [
    ("truck", 18, 1, {(FORBIDDEN, "residential street")}),
    ("truck", 18, -1, {(FORBIDDEN, "residential street"), (WRONG_DIRECTION, "one-way street")}),
    ("car", 18, 1, set()), ("truck", 3, 1, set()), ("bus", -3, -1, set()),
    ("bus", 3, -1, {(WRONG_DIRECTION, "northbound")}),
    ("car", -3, 1, {(WRONG_DIRECTION, "southbound")})])
def test_clip_knows_its_breaches(monkeypatch, label, x, way, expected):
    def plan(rng, frames):
        path = np.array([[x, NEAR], [x, FAR]], float)[::way]
        return traffic.drive(rng, path, 12, [label], (60, 90), frames)

    monkeypatch.setattr(traffic, "plan_traffic", plan)
    events = [e for seed in range(3) for e in traffic.Clip(seed, frames=150).events]
    assert {(e.event, e.zone) for e in events} == expected


def test_training_scenes_fit_their_pictures():
    images, targets = traffic.draw_scenes(3, 0, moments=2)
    assert images.shape == (3, SIZE[1] // 2, SIZE[0] // 2, 3) and len(targets) == 3
    for target in targets:
        assert len(target["boxes"]) == len(target["labels"]) > 0
        assert (target["boxes"] >= 0).all() and (target["boxes"][:, 2] <= SIZE[0] / 2).all()


def test_events_are_marked_against_the_truth():
    clip = next(c for c in (traffic.Clip(s, frames=60) for s in range(20)) if c.events)
    true = clip.events[0]
    others = [i for i in clip.boxes(true.frame) if i != true.track]
    wrong = Event(**{**vars(true), "box": clip.boxes(true.frame)[others[0]]})
    assert traffic.score_events([true], clip) == (1, 0, len(clip.events) - 1)
    assert traffic.score_events([true, true], clip) == (1, 1, len(clip.events) - 1)
    assert traffic.score_events([wrong], clip) == (0, 1, len(clip.events))
    assert traffic.score_events(clip.events, clip) == (len(clip.events), 0, 0)


# --- tracking and rules -------------------------------------------------------------------------


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_iou_equals_torchvision(seed):
    corner = np.random.default_rng(seed).uniform(0, 50, (7, 2))
    boxes = np.concatenate([corner, corner + np.random.default_rng(seed).uniform(1, 40, (7, 2))], 1)
    expected = torchvision.ops.box_iou(*[torch.tensor(b) for b in (boxes[:3], boxes[3:])])
    assert np.allclose(box_iou(boxes[:3], boxes[3:]), expected)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_one_event_for_one_vehicle_however_the_detector_trembles(seed):
    rng = np.random.default_rng(seed)
    boxes = [np.array(b) + rng.normal(0, 2, 4) for b in moving((180, 20), (0, 4), 80)]
    for i in range(80):
        if rng.random() < .2 or 35 <= i < 47:  # single losses and a long one
            boxes[i] = []
    labels = [[str(rng.choice(["truck", "bus"], p=[.75, .25]))] * len(b) for b in boxes]
    events, tracker = follow(boxes, labels=labels)
    assert sorted(e.event for e in events) == [FORBIDDEN, WRONG_DIRECTION]
    assert len({e.track for e in events}) == 1


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_standing_or_rightly_driving_vehicle_is_no_event(seed):
    rng = np.random.default_rng(seed)
    for step in ((0, 0), (0, -3), (2.5, -2)):
        boxes = [np.array(b) + rng.normal(0, 2, 4) for b in moving((100, 280), step, 80)]
        assert follow(boxes)[0] == []


def test_short_visit_and_short_false_class_are_no_events():
    path = moving((100, 300), (0, -4), 60)
    labels = [["truck"] if i in (20, 21, 40) else ["car"] for i in range(60)]
    assert follow(path, labels=labels)[0] == []
    assert follow(path[:5], labels=[["truck"]] * 5)[0] == []


def test_vehicles_that_pass_each_other_keep_their_numbers():
    up, down = moving((100, 300), (0, -5), 55), moving((145, 20), (0, 5), 55)
    events, tracker = follow([a + b for a, b in zip(up, down, strict=True)])
    assert tracker.count == 2
    assert [(e.event, e.track) for e in events] == [(WRONG_DIRECTION, 2)]


def test_part_of_a_vehicle_is_no_second_offender():
    """A cab seen as a vehicle of its own moves with its truck; the truck alone is reported."""
    rules = Rules(zones=[Zone(name="road", polygon=[(0, 0), (1, 0), (1, 1), (0, 1)],
                              forbidden=["truck"])])
    tracker, judge, events = Tracker(["truck"]), Judge(rules, 640, 384), []
    for i in range(30):
        x = 4 * i
        boxes = np.array([[100 + x, 100, 200 + x, 180], [165 + x, 130, 200 + x, 180]], float)
        count = 1 if i < 3 else 2
        seen = tracker.update(detections(boxes[:count], ["truck"] * count), i / 25)
        events += judge.update(seen, i, i / 25)
    assert [event.box[2] - event.box[0] for event in events] == [100]


def test_jump_to_the_next_vehicle_is_no_driving_backwards():
    lane = Lane(name="lane", polygon=[(0, 0), (1, 0), (1, 1), (0, 1)],
                directions=[((0.1, 0.5), (0.9, 0.5))])
    tracker = Tracker(["car"], settings=Settings(min_overlap=.05))
    judge, events = Judge(Rules(lanes=[lane]), 640, 384), []
    for i in range(60):
        x = 6 * i if i < 30 else 6 * i - 60  # one leaves, the follower takes over its track
        box = np.array([[x, 100, x + 80, 180]], float)
        events += judge.update(tracker.update(detections(box, ["car"]), i / 25), i, i / 25)
    assert events == []


def test_weak_detection_continues_a_track_but_starts_none():
    tracker = Tracker(["car"], start_score=.5)
    box, other = np.array([[10.0, 10, 50, 50]]), np.array([[200.0, 200, 240, 240]])
    for i in range(6):
        tracker.update(detections(box, ["car"]), i / 25)
    seen = tracker.update(detections(np.r_[box, other], ["car", "car"], .3), 6 / 25)
    assert [track.number for track in seen] == [1] and tracker.count == 1


def test_zone_and_lane_end_where_their_polygons_end():
    half = Rules.model_validate({"zones": [{"name": "left", "forbidden": ["truck"],
                                            "polygon": [[0, 0], [.5, 0], [.5, 1], [0, 1]]}]})
    labels = [["truck"]] * 30
    assert follow(moving((165, 300), (0, -4), 30), half, labels)[0] != []  # foot at x = 185
    assert follow(moving((195, 300), (0, -4), 30), half, labels)[0] == []  # foot at x = 215


@pytest.mark.parametrize("seed", range(4))
def test_true_boxes_with_noise_give_the_true_events(seed):
    clip, rng = traffic.Clip(seed, frames=150), np.random.default_rng(seed)
    frames = [{i: b for i, b in clip.boxes(n).items() if rng.random() > .08} for n in range(150)]
    boxes = [[b + rng.normal(0, .02, 4) * (b[2:] - b[:2]).mean() for b in f.values()]
             for f in frames]
    labels = [[clip.vehicles[i].label for i in f] for f in frames]
    events, _ = follow(boxes, clip.rules, labels, SIZE)
    right, wrong, missed = traffic.score_events(events, clip)
    assert (wrong, missed) == (0, 0) and right == len(clip.events)


def test_a_box_within_a_box_is_the_same_vehicle():
    """In whatever order they come, and when one of them is missing now and then."""
    outer, inner = [100.0, 100, 200, 250], [130.0, 110, 175, 220]
    for first in ([outer], [inner], [outer, inner], [inner, outer]):
        tracker = Tracker(["car"])
        for i in range(50):
            boxes = first if i < 5 else [[outer, inner], [inner], [outer], [inner, outer]][i % 4]
            moved = np.array(boxes) + [0, i, 0, i]
            seen = tracker.update(detections(moved, ["car"] * len(boxes), [.9, .6][:len(boxes)]),
                                  i / 25)
        assert tracker.count == 1 and len(seen) == 1


def test_a_car_that_comes_out_from_behind_a_truck_is_a_vehicle():
    tracker = Tracker(["car", "truck"])
    for i in range(60):
        truck, car = [200, 100, 320, 220], [220 - 4 * i, 150, 270 - 4 * i, 200]
        seen = tracker.update(detections([truck, car], ["truck", "car"]), i / 25)
    assert sorted(track.label for track in seen) == ["car", "truck"] and tracker.count == 2


def test_another_name_for_a_while_makes_no_other_vehicle():
    tracker = Tracker(["car", "bus"])
    for i, boxes in enumerate(moving((100, 350), (0, -3), 90)):
        name = "car" if i < 20 else "cell phone" if i < 60 else "bus" if i < 70 else "car"
        seen = tracker.update(detections(boxes, [name]), i / 25)
    assert [(track.number, track.label) for track in seen] == [(1, "car")] and tracker.count == 1


def test_what_is_hardly_ever_called_a_vehicle_is_none():
    tracker = Tracker(["car"])
    for i, boxes in enumerate(moving((100, 350), (0, -3), 90)):
        name = "car" if i in (20, 50) else "person"
        assert tracker.update(detections(boxes, [name]), i / 25) == []


@pytest.mark.parametrize("seed", [100, 106])
def test_events_are_the_same_at_any_frame_rate(seed):
    """The same traffic at 10, 25 and 60 frames/s and at uneven times, seen with trembling boxes."""
    slow = traffic.Clip(seed, frames=150)
    fast = slow.resample(60)
    every = np.arange(fast.frame_count)
    uneven = every[np.random.default_rng(0).random(len(every)) < .4]
    frames = {number: fast.boxes(number) for number in every}
    found = {}
    for rate, clip, numbers in ((25, slow, range(150)), (10, fast, every[::6]), (60, fast, every),
                                ("uneven", fast, uneven)):
        boxes, labels, ids = [], [], []
        for number in numbers:
            seen = frames[number] if clip is fast else clip.boxes(number)
            size = np.array([[(box[2:] - box[:2]).mean()] for box in seen.values()])
            phase = np.arange(4)[None] + np.array(list(seen))[:, None]
            tremble = .02 * size * np.sin(25 * number / clip.fps + phase)
            boxes.append(np.array(list(seen.values())) + tremble)
            labels.append([clip.vehicles[i].label for i in seen])
            ids.append(list(seen))
        events, _ = follow(boxes, clip.rules, labels, SIZE, np.array(numbers) / clip.fps)
        found[rate] = {}
        for event in events:
            owner = box_iou(event.box[None], boxes[event.frame])[0].argmax()
            found[rate][ids[event.frame][owner], event.event, event.zone] = event.time
        assert len(found[rate]) == len(events)
    assert len(found[25]) == len(slow.events) > 0
    for rate, events in found.items():
        assert events.keys() == found[25].keys(), rate
        for key, time in events.items():
            assert abs(time - found[25][key]) <= .1 + 1e-6, (rate, key)


def test_resampled_traffic_is_the_same_traffic():
    clip = traffic.Clip(100, frames=60)
    fast = clip.resample(75)
    assert fast.frame_count == 3 * 59 + 1
    for number in (0, 17, 59):
        boxes, same = clip.boxes(number), fast.boxes(3 * number)
        assert boxes.keys() == same.keys()
        assert all(np.allclose(boxes[i], same[i], atol=.1) for i in boxes)
    assert {(e.track, e.event) for e in fast.events} == {(e.track, e.event) for e in clip.events}


@pytest.mark.parametrize(("values", "message"), [
    ({"patience_seconds": -1.0}, "patience_seconds is -1.0"), ({"min_overlap": 2}, "min_overlap")])
def test_bad_setting_ends_in_one_sentence(values, message):
    with pytest.raises(ValueError, match=message) as error:
        Settings.from_parameters({**values, "other": 1})
    assert says_one_sentence(error)
    assert Settings.from_parameters({"breach_seconds": 2}) == Settings(breach_seconds=2)


def test_rules_file_of_the_notebook_fits_the_default_camera():
    assert read_rules(ROOT / "notebooks" / "road_rules.yaml") == traffic.road_rules(Camera())


@pytest.mark.parametrize(("text", "message"), [
    ("zones: [{name: a, polygon: [[0, 0], [1.2, 0], [1, 1]]}]", r"\(1.2, 0\) is outside"),
    ("zones: [{name: a, polygon: [[0, 0], [1, 1]]}]", "zones 1 polygon"),
    ("zones: [{name: a, polygons: [[0, 0], [1, 0], [1, 1]]}]", "zones 1"),
    ("lanes: [{name: a, polygon: [[0, 0], [1, 0], [1, 1]]}]", "lanes 1 directions"),
    ("lanes: [{name: a, polygon: [[0, 0], [1, 0], [1, 1]], directions: [[[0, 1], [0, 1]]]}]",
     "starts where it ends"),
    ("zones: [{name: a, polygon: &p [[0, 0], [1, 0], [1, 1]]}, {name: a, polygon: *p}]", "twice"),
    ("zones: [{name: a", "not valid YAML at line 1"), ("just words", "as a whole"),
    ("- 1", "as a whole")])
def test_bad_rules_end_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_rules(path)
    assert says_one_sentence(error) and str(error.value).startswith("rules.yaml")


def test_missing_rules_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        read_rules(tmp_path / "nothing.yaml")


# --- video files --------------------------------------------------------------------------------


def write_film(path, codec="libx264", frames=50, size=(96, 64), times=None, pix_fmt="yuv420p"):
    """Write a film whose frame i has the grey level 4 i, without the project's own writer."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        container.start_encoding()  # writes a header even where no frame follows
        for i in range(frames):
            image = np.full((size[1], size[0], 3), 4 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def find_nothing(images):
    return [Detections(np.zeros((0, 4), np.float32), [], np.zeros(0)) for _ in images]


BLIND = Detector(["car", "truck"], find_nothing, .5)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "mpeg4"),
                                             ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")])
def test_every_usual_format_is_read_in_full(tmp_path, name, codec):
    video = Video(write_film(tmp_path / name, codec))
    pairs = list(video)
    assert (video.width, video.height, video.fps, len(pairs)) == (96, 64, 25, 50)
    assert np.allclose([t for t, _ in pairs], np.arange(50) / 25, atol=2e-3)
    assert np.allclose([image.mean() for _, image in pairs], 4 * np.arange(50), atol=6)
    assert video.warning == ""


def test_uneven_frame_times_are_kept(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(.02, .2, 30)).tolist()
    source = write_film(tmp_path / "uneven.mp4", frames=30, times=times)
    summary = watch(source, BLIND, NO_RULES, tmp_path / "out")
    written = [t for t, _ in Video(tmp_path / "out" / "annotated.mp4")]
    assert np.allclose(written, np.array(times) - times[0], atol=3e-3)
    assert summary.frames == 30 and summary.warning == ""


@pytest.mark.parametrize("size", [(97, 65), (96, 65), (33, 17)], ids=str)
def test_odd_sizes_become_even_for_the_browser(tmp_path, size):
    source = write_film(tmp_path / "odd.webm", "libvpx-vp9", 5, size)
    watch(source, BLIND, NO_RULES, tmp_path)
    with av.open(str(tmp_path / "annotated.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "annotated.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")  # a browser can start before the end


def test_turned_phone_video_is_read_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    with Writer(path, 96, 64, 25) as writer:
        for i in range(5):
            image = np.zeros((64, 96, 3), np.uint8)
            image[:, :48] = 255  # white on the left
            writer.write(image, i / 25)
    one, minus = (1 << 16).to_bytes(4, "big"), (-1 << 16).to_bytes(4, "big", signed=True)
    zero, end = bytes(4), (1 << 30).to_bytes(4, "big")
    straight = one + zero * 3 + one + zero * 3 + end
    turned = zero + one + zero + minus + zero * 4 + end  # a quarter turn clockwise
    head, tail = path.read_bytes().split(straight + (96 << 16).to_bytes(4, "big"))
    path.write_bytes(head + turned + (96 << 16).to_bytes(4, "big") + tail)
    video = Video(path)
    assert (video.width, video.height) == (64, 96)
    _, image = next(iter(video))
    assert image[:40].mean() > 240 and image[56:].mean() < 15  # what was left is now above


def test_messages_of_ffmpeg_stay_out_of_python(tmp_path):
    """With them a damaged file, left half-read, waits for ever (torchvision 0.23 to 0.25)."""
    path = write_film(tmp_path / "a.mp4", frames=5)
    av.logging.set_level(av.logging.ERROR)
    video = Video(path)
    assert av.logging.get_level() is None
    av.logging.set_level(av.logging.ERROR)
    next(iter(video))
    assert av.logging.get_level() is None


def test_bad_files_end_in_one_sentence(tmp_path):
    text = tmp_path / "notes.mp4"
    text.write_text("This is no film. " * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 800, "NONE", ""))
        file.writeframes(bytes(1600))
    hollow = write_film(tmp_path / "hollow.avi", "mpeg4", frames=0)
    for path, message in [(text, "no video"), (empty, "no video"), (sound, "no picture stream"),
                          (hollow, "no frame|no video")]:
        with pytest.raises(ValueError, match=message) as error:
            Video(path)
        assert says_one_sentence(error) and path.name in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        Video(tmp_path / "gone.mp4")


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"),
                                             ("a.mp4", "faststart")])
def test_cut_off_file_keeps_and_says_what_was_processed(tmp_path, name, codec):
    path, noise = tmp_path / name, np.random.default_rng(0).integers(0, 255, (100, 64, 96, 3))
    if codec == "faststart":
        with Writer(path, 96, 64, 25) as writer:
            for i, image in enumerate(noise.astype(np.uint8)):
                writer.write(image, i / 25)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for image in noise.astype(np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    assert Video(path).duration == pytest.approx(4, abs=.1)
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 6 // 10])
    summary = watch(path, BLIND, NO_RULES, tmp_path / "out")
    assert 20 < summary.frames < 90
    assert "is damaged" in summary.warning and str(summary.frames) in summary.warning
    assert len(list(Video(tmp_path / "out" / "annotated.mp4"))) == summary.frames


@pytest.mark.parametrize(("name", "codecs"), [("a.webm", ("libvpx-vp9", "libopus")),
                                              ("a.mkv", ("libx264", "aac"))])
def test_sound_that_lasts_longer_than_the_picture_is_no_damage(tmp_path, name, codecs):
    with av.open(str(tmp_path / name), "w") as container:
        picture = container.add_stream(codecs[0], rate=25)
        picture.width, picture.height, picture.pix_fmt = 96, 64, "yuv420p"
        sound = container.add_stream(codecs[1], rate=48000, layout="mono")
        for i in range(50):
            image = np.full((64, 96, 3), 4 * i, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        kind = sound.codec_context.format.name
        for start in range(0, 4 * 48000, 960):
            silence = np.zeros((1, 960), np.float32 if kind.startswith("flt") else np.int16)
            frame = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(sound.encode(frame))
        container.mux(picture.encode())
        container.mux(sound.encode())
    video = Video(tmp_path / name)
    assert video.duration == pytest.approx(2, abs=.1) and len(list(video)) == 50
    assert video.warning == ""


def test_memory_holds_a_few_frames_only(tmp_path):
    held = []

    def look(images):
        held.append(len(images))
        return find_nothing(images)

    source = write_film(tmp_path / "a.mp4")
    watch(source, Detector(["car"], look, .5), NO_RULES, tmp_path, batch_size=7)
    assert held == [7] * 7 + [1]


# --- detectors and the whole pipeline -----------------------------------------------------------


def test_small_detector_learns_what_it_is_shown():
    images, targets = traffic.draw_scenes(4, 0, moments=4)
    network, names = train_detector(images, targets, steps=60, seed=0, batch_size=4, lr=4e-3)
    detector = as_detector(network, names, .5)
    assert detector.names == ["background", "bus", "car", "truck"]
    right = total = 0
    for found, target in zip(detector.predict(images), targets, strict=True):
        overlap = box_iou(target["boxes"], found.boxes)
        same = np.array(target["labels"])[:, None] == np.array(found.labels)[None]
        right += ((overlap > .5) & same).any(1).sum()
        total += len(target["labels"])
    assert right / total > .5


def test_the_drawn_detector_is_kept_and_trained_again_where_it_is_another_or_damaged(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(drawn, "SCENES", 4)
    path, scene = tmp_path / "detector.pt", traffic.draw_scenes(1, 9)[0]

    def found(steps):
        return drawn.drawn_detector(path, steps, 0, score_threshold=.02).predict(scene)[0].boxes

    first = found(2)
    monkeypatch.setattr(traffic, "draw_scenes", None)  # nothing more is drawn
    assert np.array_equal(found(2), first)
    with pytest.raises(TypeError):
        found(3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TypeError):
        found(2)


def test_unknown_classes_are_named(tmp_path):
    source = write_film(tmp_path / "a.mp4", frames=3)
    with pytest.raises(ValueError, match="'lorry'"):
        watch(source, BLIND, NO_RULES, tmp_path, classes=["lorry"])
    rules = Rules.model_validate({"zones": [{"name": "street", "forbidden": ["trucks"],
                                             "polygon": [[0, 0], [1, 0], [1, 1]]}]})
    with pytest.raises(ValueError, match="street.*did you mean 'truck'"):
        watch(source, BLIND, rules, tmp_path)


def test_detector_that_knows_no_usual_vehicle_finds_all_that_it_knows(tmp_path):
    """A network of one's own, with names of its own: else nothing would ever be followed."""
    found = Detections(np.array([[5.0, 5, 40, 40]]), ["lorry"], np.array([.9]))
    detector = Detector(["van", "lorry"], lambda images: [found] * len(images), .5)
    summary = watch(write_film(tmp_path / "a.mp4"), detector, NO_RULES, tmp_path / "out")
    assert summary.vehicles == {"lorry": 1}


def test_pipeline_reports_what_drove_where(tmp_path):
    """A truck goes up the forbidden left half; a car goes down the right half, against its lane."""
    rules = Rules.model_validate({
        "zones": [{"name": "left", "forbidden": ["truck"],
                   "polygon": [[0, 0], [.5, 0], [.5, 1], [0, 1]]},
                  {"name": "right", "polygon": [[.5, 0], [1, 0], [1, 1], [.5, 1]]}],
        "lanes": [{"name": "up", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]],
                   "directions": [[[.5, 1], [.5, 0]]]}]})
    counter = itertools.count()

    def predict(images):
        found = []
        for _ in images:
            i = next(counter)
            y = 2 * i
            boxes = np.array([[40, 150 - y, 70, 180 - y], [140, 10 + y, 165, 30 + y],
                              [5, 5, 15, 15]], float)
            found.append(Detections(boxes, ["truck", "car", "dog"], np.full(3, .9)))
        return found

    detector = Detector(["car", "truck", "dog"], predict, .5)
    source = write_film(tmp_path / "a.mp4", frames=60, size=(200, 200))
    summary = watch(source, detector, rules, tmp_path / "out")
    assert [(e.label, e.event, e.zone) for e in summary.events] == [
        ("truck", FORBIDDEN, "left"), ("car", WRONG_DIRECTION, "up")]
    assert summary.counts == {"left": {"truck": 1}, "right": {"car": 1}}
    assert summary.vehicles == {"truck": 1, "car": 1}
    assert summary.heat.sum() > 40 and summary.heat[:, 40:].sum() == 0
    assert len(summary.key_frames) == 3 and summary.first_frame.shape == (200, 200, 3)
    with open(tmp_path / "out" / "events.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["frame"]), r["label"], r["event"], r["zone"]) for r in rows] == [
        (e.frame, e.label, e.event, e.zone) for e in summary.events]
    for row, event in zip(rows, summary.events, strict=True):
        assert float(row["time"]) == pytest.approx(event.frame / 25, abs=2e-3)
        assert np.allclose([float(row[c]) for c in ("x0", "y0", "x1", "y1")], event.box, atol=.06)
    annotated = [image for _, image in Video(tmp_path / "out" / "annotated.mp4")]
    red = [((i[..., 0] > 180) & (i[..., 1] < 110)).sum() for i in annotated]
    assert red[3] < 60 < red[30]  # offenders are drawn in red
    for name in ("summary.png", "rules.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 300


def test_stream_is_read_while_it_comes(tmp_path):
    """`process` looks at a batch, yields its frames, and only then reads on."""
    read = []

    def look(images):
        read.append(len(images))
        return find_nothing(images)

    video = Video(write_film(tmp_path / "a.mp4", frames=9))
    for moment in detect.process(video, Detector(["car"], look, .5), NO_RULES, batch_size=3):
        assert sum(read) == 3 * (moment.frame // 3 + 1)
        assert moment.time == pytest.approx(moment.frame / 25, abs=2e-3)
        assert abs(moment.image.mean() - 4 * moment.frame) < 6


def test_names_in_figures_cover_no_other_and_may_hold_anything():
    from helpers.detect.figures import draw_rules, draw_summary

    square, low = [(.4, .4), (.6, .4), (.6, .6), (.4, .6)], [(.4, .41), (.6, .41), (.6, .61)]
    rules = Rules(zones=[Zone(name="$a_b$ {", polygon=square, forbidden=["truck"]),
                         Zone(name="road beside it", polygon=low)],
                  lanes=[Lane(name=f"lane {i}", polygon=square, directions=[((.5, .5), (.55, .5))])
                         for i in range(3)])
    frame = np.zeros((384, 640, 3), np.uint8)
    figure = draw_rules(frame, rules)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 5
    for one, other in itertools.combinations(boxes, 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    events = [Event(0, time, i, "car", FORBIDDEN, "$a_b$ {", np.zeros(4))
              for i, time in enumerate([1.0, 1.01, 1.02, 9.0])]
    counts = {"$a_b$ {": {"car": 3}, "road beside it": {"car": 0}}
    figure = draw_summary(frame, events, {k: Counter(v) for k, v in counts.items()},
                          np.zeros((48, 80)), ["bus", "truck"], 10.0)
    FigureCanvasAgg(figure).draw()
    assert figure.axes[1].get_title("left") == "where a bus or truck was"
    dots = [dot.get_window_extent() for dot in figure.axes[0].texts]
    middles = np.array([[(d.x0 + d.x1) / 2, (d.y0 + d.y1) / 2] for d in dots])
    gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(middles, 2)]
    assert len(gaps) == 6 and min(gaps) > 15  # a dot is 16 points = 22 pixels wide

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from helpers import ROOT
from helpers.detect import detectors
from helpers.detect.darknet import Darknet
from helpers.detect.detectors import as_detector, darknet_detector, load_detector

TINY = """[net]
width=96
height=64
channels=3

[convolutional]
batch_normalize=1
filters=6
size=3
stride=2
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
batch_normalize=1
filters=8
size=3
stride=1
pad=1
activation=leaky

[shortcut]
from=-2
activation=linear

[maxpool]
size=2
stride=2

[maxpool]
size=2
stride=1

[convolutional]
batch_normalize=1
filters=12
size=3
stride=2
pad=1
activation=leaky

[convolutional]
size=1
stride=1
pad=1
filters=24
activation=linear

[yolo]
mask = 2,3,4
anchors = 5,7,  9,12,  20,16, 30,34, 44,40
classes=3
num=5

[route]
layers = -3

[upsample]
stride=2

[route]
layers = -1, 6

[convolutional]
size=1
stride=1
pad=1
filters=16
activation=linear

[yolo]
mask = 0,1
anchors = 5,7,  9,12,  20,16, 30,34, 44,40
classes=3
num=5
"""
ANCHORS = [[(20, 16), (30, 34), (44, 40)], [(5, 7), (9, 12)]]  # of its two [yolo] layers
NAMES = ["car", "bus", "truck"]


def says_one_sentence(error):
    text = str(error.value)
    return "\n" not in text and len(text) < 500


def write_tiny(folder, seed=0):
    """Write a small Darknet network with random weights; return its cfg and weights files."""
    rng = np.random.default_rng(seed)
    cfg, weights = folder / "tiny.cfg", folder / "tiny.weights"
    cfg.write_text(TINY)
    numbers = []
    for inputs, outputs, size, is_normed in [(3, 6, 3, 1), (6, 8, 3, 1), (8, 8, 3, 1),
                                             (8, 12, 3, 1), (12, 24, 1, 0), (20, 16, 1, 0)]:
        numbers.append(rng.normal(0, .5, outputs))  # biases
        if is_normed:  # scales, means, variances
            numbers += [rng.uniform(.5, 2, outputs), rng.normal(0, .3, outputs),
                        rng.uniform(.2, 2, outputs)]
        numbers.append(rng.normal(0, 1.5 / np.sqrt(inputs * size ** 2),
                                  outputs * inputs * size ** 2))
    header = np.array([0, 2, 0], np.int32).tobytes() + np.array([1000], np.int64).tobytes()
    weights.write_bytes(header + np.concatenate(numbers).astype(np.float32).tobytes())
    return cfg, weights


def opencv_reads(cfg, weights):
    """Return OpenCV's network of Darknet files; its version 5 cannot read them."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip("OpenCV 5 no longer reads Darknet's files")
    network = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))

    def predict(images):
        network.setInput(images)
        return np.concatenate(network.forward(network.getUnconnectedOutLayersNames()))

    return predict


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# --- Darknet ------------------------------------------------------------------------------------


def test_yolo_boxes_are_those_of_the_paper(tmp_path):
    """Decode the last convolutions' outputs cell by cell, as section 2.1 of YOLOv3 says."""
    network = Darknet(write_tiny(tmp_path)[0])
    network.load(tmp_path / "tiny.weights")
    maps = []
    for convolution in list(network.convolutions.values())[-2:]:
        convolution.register_forward_hook(lambda _, __, output: maps.append(output[0].numpy()))
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = network(image)[0].numpy()
    expected = []
    for outputs, anchors in zip(maps, ANCHORS, strict=True):
        _, height, width = outputs.shape
        for row in range(height):
            for column in range(width):
                for number, (wide, tall) in enumerate(anchors):
                    t = outputs[8 * number : 8 * number + 8, row, column]
                    expected.append([
                        96 / width * (column + sigmoid(t[0])), 64 / height * (row + sigmoid(t[1])),
                        wide * np.exp(t[2]), tall * np.exp(t[3]), sigmoid(t[4]),
                        *(sigmoid(t[4]) * sigmoid(t[5:]))])
    assert rows.shape == (2 * 3 * 3 + 4 * 6 * 2, 8)
    assert np.allclose(rows, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_darknet_equals_opencv(tmp_path, seed):
    """OpenCV has its own reader, convolutions and decoding; it gives fractions of the image."""
    cfg, weights = write_tiny(tmp_path, seed)
    other = opencv_reads(cfg, weights)
    network = Darknet(cfg)
    network.load(weights)
    image = np.random.default_rng(seed).random((1, 3, 64, 96), np.float32)
    with torch.inference_mode():
        rows = network(torch.from_numpy(image))[0].numpy()
    expected = other(image) * [96, 64, 96, 64, 1, 1, 1, 1]
    assert np.allclose(rows[:, :5], expected[:, :5], rtol=1e-3, atol=1e-2)
    sure = expected[:, 5:] > 0  # OpenCV leaves out weak ones
    assert sure.any() and np.allclose(rows[:, 5:][sure], expected[:, 5:][sure], atol=1e-3)
    assert (rows[:, 5:][~sure] < .21).all()


def test_real_yolo_equals_opencv_on_a_real_film():
    """Letterbox, network and way back, against OpenCV and numpy, where the files are at hand."""
    folder = Path(os.environ.get("DATA_ROOT", "")).parent / "detection"
    film, weights = folder / "car-detection.mp4", folder / "yolov3-tiny.weights"
    if not os.environ.get("DATA_ROOT") or not film.is_file() or not weights.is_file():
        pytest.skip("the real film and weights lie beside no DATA_ROOT")
    from helpers.detect.video import Video

    other = opencv_reads(folder / "yolov3-tiny.cfg", weights)
    detector, total = load_detector("yolov3-tiny", .5), 0
    for number, (_, image) in enumerate(Video(film)):
        if number not in (85, 225, 345):
            continue
        import cv2

        small = cv2.resize(image, (416, 234), interpolation=cv2.INTER_LINEAR)
        boxed = np.full((256, 416, 3), 127.5, np.float32)
        boxed[11:245] = small
        rows = other(np.ascontiguousarray(boxed.transpose(2, 0, 1)[None] / 255))
        x, y, w, h = (rows[:, :4] * [416, 256, 416, 256]).T
        boxes = np.stack([x - w / 2, y - h / 2 - 11, x + w / 2, y + h / 2 - 11], 1) * 768 / 416
        boxes = boxes.clip(0, [768, 432, 768, 432])
        (found,) = detector.predict(image[None])
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            column = 5 + detector.names.index(label)
            near = np.abs(boxes - box).max(1).argmin()
            assert np.abs(boxes[near] - box).max() < 6  # pixels of 768; the resizing differs a bit
            assert rows[near, column] == pytest.approx(score, abs=.08)
            total += 1
    assert total >= 3


def test_darknet_detector_gives_boxes_in_the_pixels_of_any_image(tmp_path):
    detector = darknet_detector(*write_tiny(tmp_path), NAMES, .3)
    for width, height in ((203, 121), (64, 300), (96, 64)):
        images = np.random.default_rng(0).integers(0, 255, (2, height, width, 3), np.uint8)
        found = detector.predict(images)
        assert len(found) == 2 and sum(len(one.labels) for one in found) > 0
        for one in found:
            assert (one.boxes >= 0).all()
            assert (one.boxes <= [width, height, width, height]).all()
            assert set(one.labels) <= set(NAMES) and (one.scores >= .15).all()


def test_letterbox_keeps_the_shape_and_leads_back():
    images = torch.zeros(1, 3, 100, 200)
    images[:, :, 40:60, 50:100] = 1
    for fill, size in ((True, (416, 416)), (False, (224, 416))):
        boxed, scale, corner = detectors.letterbox(images, (416, 416), fill)
        assert tuple(boxed.shape[2:]) == size and scale == pytest.approx(2.08)
        ys, xs = np.nonzero(boxed[0, 0].numpy() > .9)
        left, top = corner.tolist()
        assert boxed[0, 0, top + 3, left + 3] == 0 and boxed[0, 0, 0, 0] == (.5 if top else 0)
        edges = np.array([xs.min() - left, ys.min() - top, xs.max() - left, ys.max() - top])
        assert np.abs(edges / scale - [50, 40, 100, 60]).max() < 1.5


@pytest.mark.parametrize(("text", "message"), [
    ("hello", "no Darknet cfg file"), ("[convolutional]\nsize=3\n", "does not begin with"),
    ("[net]\nwidth=32\n[lstm]\nsize=3\n", r"layer \[lstm\]"),
    (TINY.replace("leaky", "mish", 1), "activation 'mish'")])
def test_bad_cfg_ends_in_one_sentence(tmp_path, text, message):
    cfg, weights = write_tiny(tmp_path)
    cfg.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        darknet_detector(cfg, weights, NAMES, .5)
    assert says_one_sentence(error) and "tiny.cfg" in str(error.value)


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: data[:-40], "or the file is cut"), (lambda data: data[:-41], "the file is cut"),
    (lambda data: b"", "holds 0 numbers"), (lambda data: data + bytes(8), "asks for")])
def test_weights_that_do_not_fit_end_in_one_sentence(tmp_path, change, message):
    cfg, weights = write_tiny(tmp_path)
    weights.write_bytes(change(weights.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        darknet_detector(cfg, weights, NAMES, .5)
    assert says_one_sentence(error)


# --- where the files come from ------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def publisher(tmp_path, monkeypatch):
    """Serve a tiny network as YOLOv3's files, which are neither in data/weights nor elsewhere."""
    served = tmp_path / "served"
    served.mkdir()
    cfg, weights = write_tiny(served)
    names = served / "coco.names"
    names.write_text("car\nbus\ntruck\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, args=(.01,))
    thread.start()
    files = {"yolov3.cfg": cfg, "yolov3.weights": weights, "coco.names": names}
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(detectors, "FILES", {
        name: (f"{address}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest())
        for name, path in files.items()})
    monkeypatch.setattr(detectors, "BY_HAND", tmp_path / "weights")
    monkeypatch.delenv("DATA_ROOT", raising=False)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_yolo_is_downloaded_once_and_its_checksum_compared(publisher, tmp_path):
    assert load_detector("yolov3", .3).names == NAMES
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "coco.names", "yolov3.cfg", "yolov3.weights"]
    (publisher / "tiny.weights").write_bytes(b"something else")
    assert load_detector("yolov3", .3).names == NAMES  # from data/weights
    (tmp_path / "weights" / "yolov3.weights").unlink()
    with pytest.raises(ValueError, match=r"yolov3\.weights is cut or corrupt"):
        load_detector("yolov3", .3)


def test_two_at_once_download_yolo_once(publisher, monkeypatch):
    alone, most = 0, 0

    def download(url, path, checksum):
        nonlocal alone, most
        alone += 1
        most = max(most, alone)
        if not path.exists():
            time.sleep(.02)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((publisher / url.rpartition("/")[2]).read_bytes())
        alone -= 1

    monkeypatch.setattr(detectors, "download", download)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: load_detector("yolov3", .3).names, range(2)))
    assert found == [NAMES] * 2 and most == 1


def test_yolo_is_found_beside_the_data(publisher, tmp_path, monkeypatch):
    beside = tmp_path / "shelf" / "detection"
    beside.mkdir(parents=True)
    (tmp_path / "shelf" / "datasets").mkdir()
    for name, (address, _) in detectors.FILES.items():
        (beside / name).write_bytes((publisher / address.rpartition("/")[2]).read_bytes())
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "shelf" / "datasets"))
    assert load_detector("yolov3", .3).names == NAMES
    assert not (tmp_path / "weights").exists()


def test_yolo_without_network_names_files_addresses_and_folder(publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "FILES", {
        name: ("http://127.0.0.1:9/" + name, checksum)
        for name, (_, checksum) in detectors.FILES.items()})
    with pytest.raises(ConnectionError) as error:
        load_detector("yolov3")
    assert says_one_sentence(error)
    for part in ("yolov3.cfg and yolov3.weights and coco.names", str(tmp_path / "weights"),
                 "http://127.0.0.1:9/yolov3.weights"):
        assert part in str(error.value)


# --- ONNX ---------------------------------------------------------------------------------------


def write_onnx(path, output, size=(64, 96), names=None):
    """Write a network that answers any image (1, 3, H, W) with one array."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    constants = {"shape": np.ones(3, np.int64), "nothing": np.zeros((1, 1, 1), np.float32),
                 "answer": np.array(output, np.float32)[None]}
    nodes = [helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=1),
             helper.make_node("Reshape", ["mean", "shape"], ["flat"]),
             helper.make_node("Mul", ["flat", "nothing"], ["zero"]),
             helper.make_node("Add", ["zero", "answer"], ["output0"])]
    value = partial(helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes, "fixed", [value("images", shape=[1, 3, *size])],
        [value("output0", shape=list(constants["answer"].shape))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if names:
        helper.set_model_props(model, {"stride": "32", "names": str(names)})
    onnx.save(model, str(path))
    return path


ROWS = [[48, 32, 20, 10, .9, .1, .8, .05], [48, 33, 20, 10, .8, .1, .7, 0],  # one bus, seen twice
        [10, 12, 12, 8, .95, 1, 0, 0], [80, 20, 8, 8, .3, .3, .2, .9], [20, 50, 8, 8, .2, 1, 0, 0]]


@pytest.mark.parametrize("kind", ["with the score of an object (v5)", "without it (v8)"])
def test_onnx_detector_reads_both_kinds_of_yolo(tmp_path, kind):
    pytest.importorskip("cv2")
    rows = np.array(ROWS)
    if "v8" in kind:
        rows = np.concatenate([rows[:, :4], rows[:, 4:5] * rows[:, 5:]], 1).T
    names = dict(enumerate(NAMES)) if "v8" in kind else NAMES  # older files have a list
    write_onnx(tmp_path / "own.onnx", rows, names=names)
    detector = load_detector(str(tmp_path / "own.onnx"), .5)
    assert detector.names == NAMES
    # an image of 192 x 256 is drawn a quarter as large, with a grey edge of 5 1/3 left and right
    (found,) = detector.predict(np.zeros((1, 256, 192, 3), np.uint8))
    order = np.argsort(-found.scores)
    assert [found.labels[i] for i in order] == ["car", "bus", "truck"]
    assert np.allclose(found.scores[order], [.95, .72, .27], atol=1e-5)
    corner = (96 - 48) / 2
    expected = [[(10 - 6 - corner) * 4, (12 - 4) * 4, (16 - corner) * 4, 16 * 4],
                [(38 - corner) * 4, 27 * 4, (58 - corner) * 4, 37 * 4],
                [(76 - corner) * 4, 16 * 4, (84 - corner) * 4, 24 * 4]]
    assert np.allclose(found.boxes[order], np.clip(expected, 0, [192, 256, 192, 256]), atol=1e-3)


def test_onnx_detector_takes_the_names_beside_it(tmp_path):
    pytest.importorskip("cv2")
    write_onnx(tmp_path / "own.onnx", ROWS)
    with pytest.raises(ValueError, match=r"does not name its classes.*own\.names") as error:
        load_detector(str(tmp_path / "own.onnx"))
    assert says_one_sentence(error)
    (tmp_path / "own.names").write_text("van\nbus\nlorry\n")
    assert load_detector(str(tmp_path / "own.onnx")).names == ["van", "bus", "lorry"]
    (tmp_path / "own.names").write_text("van\nbus\nlorry\n", encoding="utf-8-sig")  # on Windows
    assert load_detector(str(tmp_path / "own.onnx")).names == ["van", "bus", "lorry"]
    (tmp_path / "own.names").write_text("van\nbus\n")
    with pytest.raises(ValueError, match="2 classes") as error:
        load_detector(str(tmp_path / "own.onnx")).predict(np.zeros((1, 64, 96, 3), np.uint8))
    assert says_one_sentence(error)


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b"version https://git-lfs\noid 1"])
def test_a_file_that_is_no_onnx_is_opencv_s_to_refuse(tmp_path, content):
    pytest.importorskip("cv2")
    (tmp_path / "own.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"OpenCV .* cannot read own\.onnx") as error:
        load_detector(str(tmp_path / "own.onnx"))
    assert says_one_sentence(error)


def test_onnx_size_is_read_from_the_file_and_a_free_one_is_640(tmp_path):
    for size, expected in (((64, 96), (64, 96)), (("height", "width"), (640, 640))):
        data = write_onnx(tmp_path / "own.onnx", ROWS, size, dict(enumerate(NAMES))).read_bytes()
        assert detectors.describe_onnx(data) == (expected, NAMES)


def test_onnx_without_opencv_or_file_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone\.onnx"):
        load_detector(str(tmp_path / "gone.onnx"))
    (tmp_path / "own.onnx").write_bytes(b"no network")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ValueError, match="pip install opencv-python-headless") as error:
        load_detector(str(tmp_path / "own.onnx"))
    assert says_one_sentence(error)


def test_opencv_is_imported_only_where_it_is_asked_for():
    for path in (ROOT / "helpers").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.startswith(("import cv2", "from cv2"))], path


# --- torchvision and ultralytics ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large",
                                  "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_torchvision_detector_speaks_in_names(name):
    torch.manual_seed(0)
    detector = load_detector(name, .02, weights=None)
    assert {"car", "bus", "truck"} < set(detector.names)
    images = np.random.default_rng(0).integers(0, 255, (2, 121, 203, 3), np.uint8)
    found = detector.predict(images)
    assert len(found) == 2
    for one in found:
        assert one.boxes.shape == (len(one.labels), 4) and one.scores.shape == (len(one.labels),)
        assert set(one.labels) <= set(detector.names) and (one.scores >= .01).all()
        assert (one.boxes >= 0).all() and (one.boxes <= [203, 121, 203, 121]).all()


def test_number_of_truck_differs_but_its_name_does_not():
    answer = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.tensor([.9])}

    class Fixed(torch.nn.Module):
        def forward(self, images):
            return [{**answer, "labels": torch.tensor([self.number])}] * len(images)

    fixed, images = Fixed(), np.zeros((1, 8, 8, 3), np.uint8)
    names = torchvision.models.get_model_weights("ssdlite320_mobilenet_v3_large")
    for fixed.number, known in ((8, names.DEFAULT.meta["categories"]), (1, ["car", "truck"])):
        assert as_detector(fixed, known, .5).predict(images)[0].labels == ["truck"]


def test_one_vehicle_with_two_classes_is_found_once():
    class Doubled(torch.nn.Module):
        def forward(self, images):
            boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [40, 40, 60, 60], [0, 0, 5, 5]])
            return [{"boxes": boxes, "labels": torch.tensor([0, 1, 0, 1]),
                     "scores": torch.tensor([.6, .8, .3, .2])}]

    found = as_detector(Doubled(), ["bus", "truck"], .5).predict(
        np.zeros((1, 64, 64, 3), np.uint8))[0]
    assert list(zip(found.labels, found.scores.round(1), strict=True)) == [
        ("truck", np.float32(.8)), ("bus", np.float32(.3))]


@pytest.mark.parametrize(("arguments", "message"), [
    (("fasterrcnn_resnet50_fnp",), "did you mean 'fasterrcnn_resnet50_fpn'"),
    (("resnet18",), "There is no detector"),
    (("ssdlite320_mobilenet_v3_large", 1.5), "between 0 and 1")])
def test_bad_detector_ends_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        load_detector(*arguments)
    assert "\n" not in str(error.value)


def test_weights_that_cannot_be_downloaded_end_in_one_sentence(monkeypatch, tmp_path):
    def fail(*arguments, **more):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(ConnectionError, match="cannot be downloaded") as error:
        load_detector("ssdlite320_mobilenet_v3_large")
    assert says_one_sentence(error)


def test_yolo_without_its_package_names_the_licence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ultralytics", None)
    with pytest.raises(ValueError, match=r"ultralytics.*AGPL-3\.0") as error:
        load_detector("yolov5nu.pt")
    assert says_one_sentence(error)


@pytest.mark.parametrize("name", ["yolov5n.yaml", "yolov3-tiny.yaml"])
def test_yolo_built_from_its_yaml_finds_things(name):
    pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    detector = load_detector(name, 2e-6)
    assert len(detector.names) == 80
    found = detector.predict(np.random.default_rng(0).integers(0, 255, (2, 96, 160, 3), np.uint8))
    for one in found:
        assert set(one.labels) <= set(detector.names)
        assert one.boxes.shape == (len(one.labels), 4) and (one.scores >= 1e-6).all()
        assert (one.boxes >= 0).all() and (one.boxes <= [160, 96, 160, 96]).all()
    assert len(found) == 2 and len(found[0].labels) > 0

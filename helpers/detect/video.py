"""How a video is read, frame by frame, and written as an mp4 that browsers play."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def _open(path: Path) -> av.container.InputContainer:
    """Open a video to read.

    FFmpeg's messages must not come back into Python: a damaged file, read by several threads and
    left half-read, would wait for ever. torchvision 0.23 to 0.25 switch them on when imported.
    """
    av.logging.set_level(None)
    return av.open(str(path))


class Video:
    """Read a video as (seconds, image (H, W, 3) uint8) pairs, one frame in memory at a time.

    After the reading, `warning` says in one sentence what was wrong with the file, or is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no video, has no picture stream, or not one frame of it can be decoded.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.warning = ""
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no video file {path}.")
        try:
            with _open(self.path) as container:
                if not container.streams.video:
                    raise ValueError(f"{self.path.name} has no picture stream; give a video.")
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or 25)
                length = stream.duration and float(stream.duration * stream.time_base)
                tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
                if tag:  # of webm and mkv, as "00:01:02.3"
                    length = float(np.dot(np.array(tag.groups(), float), [3600, 60, 1]))
                if container.format.name == "avi":  # a cut file's header still counts all frames
                    length = stream.frames / self.fps
                self.duration = length or (container.duration or 0) / 1e6  # seconds, 0: unknown
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path.name} is no video that can be read "
                             f"({error.strerror}); give an mp4, avi, webm or mov file.") from None
        _, first = next(iter(self), (0, None))
        if first is None:
            raise ValueError(f"{self.path.name} holds no frame that can be decoded.")
        self.height, self.width = first.shape[:2]
        self.warning = ""

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        start, size, time, count, bad = None, {}, 0.0, 0, 0
        with _open(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            packets = container.demux(stream)
            while True:
                try:
                    if (packet := next(packets, None)) is None:
                        break
                    frames = packet.decode()
                except av.error.EOFError:
                    break
                except av.error.FFmpegError:
                    bad += 1
                    if bad > 1000:
                        break
                    continue
                for frame in frames:
                    size = size or {"width": frame.width, "height": frame.height}
                    if start is None:
                        start = frame.time or 0.0
                    time = count / self.fps if frame.time is None else frame.time - start
                    count += 1
                    image = frame.to_ndarray(format="rgb24", **size)
                    yield time, np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
        seen = time + 1 / self.fps if count else 0.0
        if bad or seen < self.duration - max(.5, 2 / self.fps):
            self.warning = (f"{self.path.name} is damaged: {count} frames, {seen:.1f} s of "
                            f"{self.duration:.1f} s, could be read, and these were processed.")


class Writer(AbstractContextManager):
    """Write frames and their times as H.264 in an mp4 that browsers play; use it with `with`."""

    def __init__(self, path: str | Path, width: int, height: int, fps: float):
        self.container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001),
            options={"crf": "24", "preset": "ultrafast"})  # a third of the time, twice the size
        self.pad = ((0, height % 2), (0, width % 2), (0, 0))  # H.264 wants even sides
        self.stream.width, self.stream.height = width + width % 2, height + height % 2
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, 90000)
        self.last = -1

    def write(self, image: np.ndarray, time: float) -> None:
        """Add an image (H, W, 3) uint8 shown from `time` (seconds) on."""
        frame = av.VideoFrame.from_ndarray(np.pad(image, self.pad, mode="edge"), format="rgb24")
        self.last = max(self.last + 1, round(time * 90000))
        frame.pts, frame.time_base = self.last, Fraction(1, 90000)
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, *exception) -> None:
        """Write what is still to be written."""
        self.container.mux(self.stream.encode())
        self.container.close()

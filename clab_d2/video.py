"""Video in and out: frames of a file, a folder or a camera in, detections and an MP4 out.

:func:`open_video` gives frames by number from any of these, :class:`VideoDetector` detects in them
as they come, :class:`VideoWriter` and :class:`FrameFolderWriter` write what is drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from clab_d2.data.catalog import register_datasets_from_config
from clab_d2.data.dataset_mapper import ClipImages, ReferenceSampling
from clab_d2.data.frame_files import natural_key
from clab_d2.data.frames import ClipAugmentation, read_frame
from clab_d2.data.prefetch import Background
from clab_d2.data.video_frames import VideoFrameReader
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import atomic_write

logger = logging.getLogger(__name__)

__all__ = [
    "CameraSource",
    "DetectionWriter",
    "FileSource",
    "FolderSource",
    "FrameFolderWriter",
    "SequenceSource",
    "VideoDetector",
    "VideoSource",
    "VideoWriter",
    "class_names",
    "open_video",
    "open_writer",
]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
_DEFAULT_FPS = 25.0


# ---------------------------------------------------------------------------------------------
# Frames in
# ---------------------------------------------------------------------------------------------


class VideoSource(ABC):
    """Frames by number, from 0.

    Attributes:
        name: what messages call it.
        num_frames: how many frames there are; None for a stream, whose end shows when it comes.
        fps: frames per second.
        height, width: size of the frames in pixels, or None before a stream's first frame.
    """

    name: str
    num_frames: int | None = None
    fps: float = _DEFAULT_FPS
    height: int | None = None
    width: int | None = None

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """Return frame ``index`` as RGB, uint8 (H, W, 3).

        A stream (``num_frames`` None) can only be read in order. While a :class:`VideoDetector`
        detects in any other, it reads ahead, in a thread.

        Raises:
            IndexError: past the last frame.
            DataError: if the frame is damaged; the others may still be read.
        """

    def close(self) -> None:
        """Let go of files and devices."""
        return

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FileSource(VideoSource):
    """A video file; see :class:`clab_d2.data.video_frames.VideoFrameReader`.

    Several threads may read, one at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        # Threads of FFmpeg's own: here, unlike in loading for training, one video is decoded.
        self._reader = VideoFrameReader(path, threads=0)
        self.num_frames = len(self._reader)
        self.fps = self._reader.fps
        self.height, self.width = self._reader.height, self._reader.width
        self._lock = threading.Lock()

    def read(self, index: int) -> np.ndarray:
        with self._lock:
            return self._reader.read(index)

    def close(self) -> None:
        self._reader.close()


class FolderSource(VideoSource):
    """A folder of pictures, in natural order (``2.jpg`` before ``10.jpg``)."""

    def __init__(self, path: str | os.PathLike[str], fps: float = _DEFAULT_FPS) -> None:
        self.name = os.fspath(path)
        self.fps = fps
        self._files = _pictures_of(Path(path))
        self.num_frames = len(self._files)
        for index in range(self.num_frames):
            try:
                self.height, self.width = self.read(index).shape[:2]
                return
            except DataError:
                continue
        raise DataError(f"{self.name}: none of its {self.num_frames} pictures can be read")

    def read(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self._files):
            raise IndexError(f"{self.name}: no frame {index}; it has {len(self._files)} pictures")
        return read_frame(str(self._files[index]))


class SequenceSource(VideoSource):
    """Frames that a program holds or makes: RGB uint8 arrays (H, W, 3).

    Args:
        frames: a sequence (random access, length known) or any iterable (a stream).
    """

    def __init__(
        self, frames: Iterable[np.ndarray], fps: float = _DEFAULT_FPS, name: str = "frames"
    ) -> None:
        self.name = name
        self.fps = fps
        self._next = 0
        self._sequence: Sequence[np.ndarray] | None = None
        self._stream: Iterator[np.ndarray] = iter(())
        if isinstance(frames, Sequence) or (isinstance(frames, np.ndarray) and frames.ndim == 4):
            self._sequence = frames
            self.num_frames = len(frames)
            if not self.num_frames:
                raise DataError(f"{name}: no frames were given")
            self.height, self.width = frames[0].shape[:2]
        else:
            self._stream = iter(frames)

    def read(self, index: int) -> np.ndarray:
        if self._sequence is not None:
            if not 0 <= index < len(self._sequence):
                raise IndexError(f"{self.name}: no frame {index}")
            return np.asarray(self._sequence[index])
        if index != self._next:
            raise RuntimeError(f"{self.name}: a stream gives frame {self._next} now, not {index}")
        frame = next(self._stream, None)
        if frame is None:
            raise IndexError(f"{self.name}: the stream ended after {index} frames")
        self._next += 1
        self.height, self.width = frame.shape[:2]
        return np.asarray(frame)


class CameraSource(SequenceSource):
    """A camera, by number or device file: an endless stream.

    Detection is slower than most cameras, so each read gives the newest frame: a thread takes them
    in, and those that nobody asked for in time are dropped.

    Raises:
        DataError: if the camera cannot be opened.
    """

    def __init__(self, camera: int | str) -> None:
        index = int(re.sub(r"^/dev/video", "", str(camera)))
        self._capture = cv2.VideoCapture(index)
        name = f"camera {index}"
        if not self._capture.isOpened():
            raise DataError(f"{name}: cannot be opened; check that it is there and not in use")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        super().__init__(iter(()), self._capture.get(cv2.CAP_PROP_FPS) or 30.0, name)
        self._newest: Background[np.ndarray] | None = None
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH)) or None
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) or None

    def read(self, index: int) -> np.ndarray:
        if self._newest is None:
            self._stream = self._newest = Background(self._frames(), newest=True)
        return super().read(index)

    def _frames(self) -> Iterator[np.ndarray]:
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        if self._newest is not None:
            self._newest.close()
        self._capture.release()


def open_video(source: str | int | os.PathLike[str] | VideoSource) -> VideoSource:
    """Open a video file, a folder of frames, a picture, or a camera (``0`` or ``/dev/video0``).

    Raises:
        DataError: if it is missing or is none of these; one line that names it.
    """
    if isinstance(source, VideoSource):
        return source
    name = os.fspath(source) if not isinstance(source, int) else str(source)
    path = Path(name)
    if re.fullmatch(r"\d+|/dev/video\d+", name) and not path.is_dir() and not path.is_file():
        return CameraSource(name)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise DataError(f"{name}: no such video, folder or camera; check the path")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return FolderSource(path)
    return FileSource(path)


def _pictures_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
    files = [p for p in files if not p.name.startswith(".")]
    if not files:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{path}: the folder holds no pictures ({kinds})")
    return sorted(files, key=lambda path: natural_key(path.name))


# ---------------------------------------------------------------------------------------------
# Frames out
# ---------------------------------------------------------------------------------------------


class VideoWriter:
    """Writes RGB frames as H.264 in an MP4 that browsers play.

    The size is that of the first frame, rounded up to even numbers (the last row or column is
    repeated), because 4:2:0 video has no odd sizes; a later frame of another size is scaled into
    it, with black bars. The file appears under its name only once it is closed; if the ``with``
    block raises, it does not appear at all.

    Without PyAV, OpenCV writes MPEG-4 part 2, which not every browser plays.

    Args:
        path: the file to write, ``.mp4``, ``.mov`` or ``.mkv``; its folder is made if missing.
        fps: frames per second.
        quality: x264's constant rate factor: 0 is lossless, 18 looks so, 51 is the worst.

    Raises:
        DataError: if the folder cannot be written to.
    """

    def __init__(
        self, path: str | os.PathLike[str], fps: float = _DEFAULT_FPS, quality: int = 20
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self._fps = fps if fps > 0 else _DEFAULT_FPS
        self._quality = quality
        self._size: tuple[int, int] | None = None
        self._encoder: _AvEncoder | _OpenCVEncoder | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(
                prefix=f".{self.path.stem}.", suffix=f".tmp{self.path.suffix}", dir=self.path.parent
            )
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        os.close(handle)
        # mkstemp makes private files; the video gets the permissions any new file would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        self._temporary = Path(temporary)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame: RGB, uint8 (H, W, 3)."""
        if self._encoder is None:
            height, width = frame.shape[:2]
            self._size = (height + height % 2, width + width % 2)
            self._encoder = _make_encoder(self._temporary, self._fps, self._size, self._quality)
        self._encoder.encode(_fit(frame, self._size))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name. Without a frame there is no file."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
            os.replace(self._temporary, self.path)
        self._temporary.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop, and leave no file."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class FrameFolderWriter:
    """Writes RGB frames as ``000000.jpg``, ``000001.jpg``, ... into a folder, made if missing.

    Raises:
        DataError: if the folder cannot be made, or holds such frames already: those of two videos
            would be mixed.
    """

    def __init__(self, path: str | os.PathLike[str], quality: int = 92) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self._quality = quality
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made a folder ({error.strerror})") from None
        if any(re.fullmatch(r"\d{6}\.jpg", file.name) for file in self.path.iterdir()):
            raise DataError(f"{self.path}: holds frames already; name a new folder, or empty it")

    def write(self, frame: np.ndarray) -> None:
        """Write the next frame: RGB, uint8 (H, W, 3)."""
        file = self.path / f"{self.num_frames:06d}.jpg"
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(file), bgr, [cv2.IMWRITE_JPEG_QUALITY, self._quality]):
            raise DataError(f"{file}: cannot be written; check the folder's rights and free space")
        self.num_frames += 1

    def close(self) -> None:
        """Nothing is left to do: each frame is a whole file already."""

    def __enter__(self) -> FrameFolderWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class DetectionWriter:
    """Writes detections as JSON, frame by frame, so that a long video takes no memory::

        {"video": ..., "fps": ..., "class_names": [...], "frames": [
          {"frame_id": 0, "detections": [
            {"bbox": [x, y, width, height], "category_id": 3, "category": "bus", "score": 0.9},
            ...]}, ...]}

    ``bbox`` is in pixels of the frame, ``category_id`` counts from 0. A ``with`` block that raises
    leaves no file.
    """

    def __init__(
        self, path: str | os.PathLike[str], source: VideoSource, names: Sequence[str]
    ) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self._names = names
        self._file = atomic_write(self.path)
        try:
            self._out = self._file.__enter__()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None
        header = {"video": source.name, "fps": source.fps, "class_names": list(names)}
        self._out.write(json.dumps(header)[:-1] + ', "frames": [')

    def write(self, instances: Instances) -> None:
        """Append a frame's detections: ``pred_boxes``, ``scores`` and ``pred_classes``."""
        boxes = instances.pred_boxes.tensor.tolist()
        rows = zip(boxes, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
        detections = [
            {
                "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                "category_id": index,
                "category": self._names[index],
                "score": round(score, 5),
            }
            for (x1, y1, x2, y2), index, score in rows
        ]
        separator = ",\n" if self.num_frames else "\n"
        frame = {"frame_id": self.num_frames, "detections": detections}
        self._out.write(separator + json.dumps(frame))
        self.num_frames += 1

    def __enter__(self) -> DetectionWriter:
        return self

    def __exit__(self, *exc: Any) -> None:
        if exc[0] is None:
            self._out.write("\n]}\n")
        self._file.__exit__(*exc)


def open_writer(
    path: str | os.PathLike[str], fps: float = _DEFAULT_FPS
) -> VideoWriter | FrameFolderWriter:
    """A writer for a name: ``.mp4``, ``.mov``, ``.mkv`` give a video, no suffix a folder of JPEGs.

    Raises:
        DataError: for any other suffix, or where nothing can be written.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return FrameFolderWriter(path)
    if path.suffix.lower() not in {".mp4", ".mov", ".mkv", ".m4v"}:
        raise DataError(f"{path}: cannot write {path.suffix}; name it .mp4, or a folder for JPEGs")
    return VideoWriter(path, fps)


def _fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a frame to ``size`` (height, width): pad by one pixel, or scale between black bars."""
    height, width = frame.shape[:2]
    below, beside = size[0] - height, size[1] - width
    if (below, beside) == (0, 0):
        return frame
    if 0 <= below <= 1 and 0 <= beside <= 1:
        return np.pad(frame, ((0, below), (0, beside), (0, 0)), mode="edge")
    scale = min(size[0] / height, size[1] / width)
    new = (max(1, round(height * scale)), max(1, round(width * scale)))
    inner = cv2.resize(frame, new[::-1], interpolation=cv2.INTER_AREA if scale < 1 else None)
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    canvas[top : top + new[0], left : left + new[1]] = inner
    return canvas


class _AvEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int], quality: int) -> None:
        import av

        # The index of the file goes to its front, so that a browser plays it while loading.
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": str(quality), "preset": "veryfast"}
        # Say which colours these are; untagged files come out differently from player to player.
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # 16..235, what every player expects

    def encode(self, frame: np.ndarray) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class _OpenCVEncoder:
    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        code = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(path), code, fps, size[::-1])
        if not self._writer.isOpened():
            raise DataError(f"{path}: OpenCV cannot write this video; pip install av")

    def encode(self, frame: np.ndarray) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


def _make_encoder(
    path: Path, fps: float, size: tuple[int, int], quality: int
) -> _AvEncoder | _OpenCVEncoder:
    try:
        import av

        av.Codec("libx264", "w")
    except (ImportError, ValueError) as error:  # av's UnknownCodecError is a ValueError
        logger.warning(
            "PyAV with x264 is missing (%s): OpenCV writes MPEG-4 part 2, which browsers may not "
            "play; pip install av",
            error,
        )
        return _OpenCVEncoder(path, fps, size)
    return _AvEncoder(path, fps, size, quality)


# ---------------------------------------------------------------------------------------------
# Detection
# ---------------------------------------------------------------------------------------------


# The model tells videos apart by these; unique, as several detectors may share a model.
_video_ids = itertools.count(1)


class VideoDetector:
    """Detects objects in a video, frame by frame, with what the rest of the video shows.

    The clips given to the model are those of the evaluation path (same reference frames, same
    resizing), so that detections are the same too.

    Args:
        cfg: the model's config; ``TEST.REFERENCES`` chooses the reference frames, ``INPUT`` the
            size at which frames go through the model.
        model: a model to use; None builds the config's and loads ``MODEL.WEIGHTS``.

    Attributes:
        unreadable_frames: numbers of the damaged frames met in the video detected last.

    Raises:
        ConfigError: if there is neither a model nor ``MODEL.WEIGHTS``.
        DataError: if the weights cannot be loaded.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module | None = None) -> None:
        self.cfg = cfg.clone()
        self.model = _load_model(self.cfg) if model is None else model
        self.model.eval()
        self.unreadable_frames: list[int] = []
        self._sampling = ReferenceSampling.from_config(self.cfg, is_train=False)
        self._transform = ClipAugmentation.from_config(self.cfg, is_train=False).sample()
        self._pins_memory = any(parameter.is_cuda for parameter in self.model.parameters())
        self._run = 0

    def detect(
        self,
        source: str | int | os.PathLike[str] | VideoSource | Iterable[np.ndarray],
        online: bool = False,
    ) -> Iterator[tuple[np.ndarray, Instances]]:
        """Detect in a video file, a folder, a camera, or frames that a program holds.

        A stream is read frame by frame as its turn comes, so that it may be endless. In all
        else, a thread reads and resizes the next frames while the model has the current ones; it
        ends with the generator. What is held is bounded by the reach of the reference frames, not
        by the video's length.

        A damaged frame keeps its place in time: the last good frame is given again (black before
        the first), with no detections, and its number goes to ``unreadable_frames``.

        Args:
            source: what :func:`open_video` takes, a source (left open at the end), or RGB uint8
                arrays (H, W, 3): a sequence, or an iterable as a stream.
            online: use frames of the past only, as a live stream must. Streams always do:
                ``TEST.REFERENCES.NUM`` of them, ``STRIDE`` apart, whatever ``SAMPLING`` says.

        Yields:
            ``(frame, instances)`` in order, none left out: the frame as read, RGB uint8
            (H, W, 3), and its detections on the CPU: ``pred_boxes`` in the frame's pixels,
            ``scores``, ``pred_classes``.

        Raises:
            DataError: if the source cannot be opened.
            RuntimeError: if another ``detect`` of this detector has begun meanwhile.
        """
        if isinstance(source, str | int | os.PathLike):
            with open_video(source) as opened:
                yield from self._detect(opened, online)
        elif isinstance(source, VideoSource):
            yield from self._detect(source, online)
        else:
            yield from self._detect(SequenceSource(source), online)

    def _detect(self, source: VideoSource, online: bool) -> Iterator[tuple[np.ndarray, Instances]]:
        run = self._run = next(_video_ids)
        self.unreadable_frames = []
        sampling = self._sampling
        if sampling.method != "none" and (online or source.num_frames is None):
            sampling = dataclasses.replace(sampling, method="causal")
        # Causal references lie behind, adaptive ones anywhere: these are read by their number.
        reach = sampling.num // 2 + 1 if sampling.method == "fixed" else 0
        frames = _Frames(source, reach * sampling.stride, self.unreadable_frames)
        clips = self._clips(sampling, frames, run)
        if source.num_frames is None:
            # Read ahead, a frame would be old when its turn comes; nor must it wait for the next.
            batch_size = 1
        else:
            batch_size = self.cfg.TEST.KEY_FRAMES_PER_BATCH
            clips = Background(clips, ahead=batch_size + 1)
        with contextlib.closing(clips):
            while batch := list(itertools.islice(clips, batch_size)):
                if run != self._run:
                    raise RuntimeError("a VideoDetector can detect in one video at a time")
                with torch.no_grad():
                    outputs = self.model([clip for _, clip in batch])
                instances = [output["instances"].to("cpu") for output in outputs]
                shown = [image for image, _ in batch]
                del batch
                yield from zip(shown, instances, strict=True)
        self.unreadable_frames.sort()
        if self.unreadable_frames:
            logger.warning(
                "%s: %d of %d frames are damaged; detection went on without them",
                source.name,
                len(self.unreadable_frames),
                frames.ended_at,
            )

    def _clips(
        self, sampling: ReferenceSampling, frames: _Frames, video_id: int
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Each frame as it is shown, and the clip that the model takes for it."""
        images = ClipImages(sampling)
        last_good: np.ndarray | None = None
        for key in itertools.count():
            image = frames.get(key)
            if frames.ended_at is not None and key >= frames.ended_at:
                return
            if image is None and last_good is None:
                source = frames.source
                last_good = np.zeros((source.height or 480, source.width or 640, 3), np.uint8)
            last_good = image if image is not None else last_good
            clip = self._clip(sampling, frames, key, image)
            clip["height"], clip["width"] = last_good.shape[:2]
            clip["video_id"] = video_id
            frames.forget_before(key + 1)
            yield last_good, images.complete(clip)

    def _clip(
        self, sampling: ReferenceSampling, frames: _Frames, key: int, image: np.ndarray | None
    ) -> dict[str, Any]:
        """What the model takes for one key frame, but for its size and video.

        The images of ``given_before`` are left to :class:`ClipImages`, so that each frame is
        resized once.
        """
        # A stream's length is unknown, but its references lie in the past.
        num_frames = frames.source.num_frames or key + 1
        window = sampling.frames(num_frames, key)
        entering = sampling.frames_to_read(num_frames, key, window)
        given_before = [i for i in (key, *entering) if sampling.given_before(num_frames, key, i)]
        return {
            "image": None if key in given_before else self._tensor(image),
            "dataset_name": "video",
            "frame_id": key,
            "image_id": key,
            "file_name": f"{frames.source.name}#{key}",
            "reference_frame_ids": window,
            "reference_images": {
                i: self._tensor(frames.get(i)) for i in entering if i not in given_before
            },
            "given_before": given_before,
        }

    def _tensor(self, image: np.ndarray | None) -> torch.Tensor | None:
        """Resize a frame as the evaluation path does: uint8 (3, H', W')."""
        if image is None:
            return None
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        resized = self._transform.for_size(*image.shape[:2]).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return tensor.pin_memory() if self._pins_memory else tensor


class _Frames:
    """Frames of a source for a reader that walks forwards and looks ahead.

    A frame up to ``reach`` ahead is read along with all before it, and these are held until
    :meth:`forget_before` lets them go, so that each is decoded once. One let go, or farther ahead,
    is read by its number and not held.
    """

    def __init__(self, source: VideoSource, reach: int, unreadable: list[int]) -> None:
        self.source = source
        self._reach = reach
        self._unreadable = unreadable
        self._held: dict[int, np.ndarray | None] = {}
        self._next = 0
        self.ended_at: int | None = source.num_frames

    def get(self, index: int) -> np.ndarray | None:
        """Frame ``index``; None if it is damaged, or past the end (see ``ended_at``)."""
        if index not in self._held:
            if not self._next <= index <= self._next + self._reach:
                return self._read(index)
            for i in range(self._next, index + 1):
                self._held[i] = self._read(i)
            self._next = index + 1
        return self._held[index]

    def forget_before(self, index: int) -> None:
        """Let go of the frames before ``index``."""
        for held in [i for i in self._held if i < index]:
            del self._held[held]

    def _read(self, index: int) -> np.ndarray | None:
        if self.ended_at is not None and index >= self.ended_at:
            return None
        try:
            return self.source.read(index)
        except IndexError:
            self.ended_at = index
        except DataError as error:
            if index not in self._unreadable:
                self._unreadable.append(index)
                logger.warning("left out: %s", error)
        return None


def _load_model(cfg: CfgNode) -> nn.Module:
    from clab_d2.engine.checkpointer import VIDCheckpointer
    from clab_d2.modeling import prepare_for_inference  # registers the models, too

    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "MODEL.WEIGHTS is empty: name the trained weights, e.g. --opts MODEL.WEIGHTS "
            "output/model_final.pth"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but there is no GPU: on CPU", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    VIDCheckpointer(model, trusted=cfg.MODEL.TRUST_WEIGHTS).load(cfg.MODEL.WEIGHTS)
    return prepare_for_inference(model, cfg)


def class_names(cfg: CfgNode) -> list[str]:
    """Names of the classes a config's model detects, as far as they can be known.

    They come from its datasets (those for evaluation first); a dataset that is not there, or has
    another number of classes, is passed over, and classes without a name are called by number.

    Returns:
        ``MODEL.ROI_HEADS.NUM_CLASSES`` names.
    """
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    try:
        register_datasets_from_config(cfg)
    except (DataError, OSError) as error:
        logger.warning("class names unknown: %s", error)
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        known = dataset in MetadataCatalog.list()  # asking for another would make it
        names = MetadataCatalog.get(dataset).get("thing_classes") if known else None
        if names and len(names) == count:
            return list(names)
    return [f"class {index}" for index in range(count)]

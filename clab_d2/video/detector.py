"""Detection in a video, frame by frame, with what its other frames show."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from clab_d2._requirements import check_requirements
from clab_d2.data.prefetcher import Prefetcher
from clab_d2.data.reference_schedule import ReferenceSchedule, StreamSchedule
from clab_d2.data.shot_finder import ShotFinder
from clab_d2.data.shot_references import ShotReferences, shot_number
from clab_d2.errors import ConfigError, DataError
from clab_d2.video.clip_model import ClipModel, Mode
from clab_d2.video.result import FrameResult
from clab_d2.video.shots import find_shots_of
from clab_d2.video.sources import Source, Videos, VideoSource, each_video, open_video
from clab_d2.video.tracks import Tracker

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

logger = logging.getLogger(__name__)

# The model tells videos apart by these; unique, as several detectors may share a model.
_video_ids = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class _Choices:
    """What :meth:`VideoDetector.detect` is asked for.

    Attributes:
        mode: "online" for a stream, too.
        tracking: the method; None: no tracks.
        appearance, find_shots: as there.
    """

    mode: Mode
    tracking: str | None
    appearance: bool
    find_shots: bool


class VideoDetector:
    """Detects objects in a video, frame by frame, with what the rest of the video shows.

    The clips given to the model are those of the evaluation path (same reference frames, same
    resizing), so that detections are the same too.

    Args:
        cfg: the model's config; ``TEST.REFERENCES`` chooses the reference frames, ``INPUT`` the
            size at which frames go through the model.
        model: a model to use; None builds the config's and loads ``MODEL.WEIGHTS``.
        class_names: by class number; None takes those that the file of weights says, else those of
            the config's datasets, else numbers.

    Attributes:
        cfg: the config.
        class_names: by class number.
        unreadable_frames: numbers of the damaged frames met in the video detected last.

    Raises:
        ConfigError: if there is neither a model nor ``MODEL.WEIGHTS``.
        DataError: if the weights cannot be loaded.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        check_requirements()
        from clab_d2.video.pytorch_model import PyTorchClipModel

        clip_model = PyTorchClipModel(cfg, model, class_names)
        self.cfg = clip_model.cfg
        self.model = clip_model.model
        self._take(clip_model)

    def _take(self, clip_model: ClipModel) -> None:
        self._clip_model = clip_model
        self.class_names = clip_model.class_names
        self.unreadable_frames: list[int] = []
        self._run = 0

    @classmethod
    def of(cls, clip_model: ClipModel) -> VideoDetector:
        """A detector by any model that takes clips, without ``cfg`` and ``model``."""
        detector = cls.__new__(cls)
        detector._take(clip_model)
        return detector

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        options: Sequence[str] = (),
        runtime: str | None = None,
    ) -> VideoDetector:
        """The detector in a file that a training wrote (``model_final.pth`` or ``.safetensors``),
        or in a folder that ``tools/export_model.py`` wrote.

        The file, or folder, is enough: no config, dataset or other file is read. It may come from a
        stranger: it can't run code, import a module or have another file read
        (docs/checkpoints.md, docs/export.md). A folder's needs neither PyTorch nor Detectron2, and
        its detections are arrays under the names of ``Instances``.

        Args:
            path: the file or folder.
            device: such as "cpu" or "cuda:1"; None takes a GPU where there is one (of a folder, the
                CPU).
            options: KEY, VALUE, KEY, VALUE, ...: config keys to change; a folder takes none.
            runtime: of a folder, "onnxruntime" or "openvino"; None takes the first installed.

        Raises:
            DataError: one line, where the file can't be read, says nothing of its config, or holds
                one that this version can't use.
            ConfigError: one of the options can't be used, or no runtime is installed.
        """
        if os.path.isdir(path):
            return cls._from_folder(path, device, options, runtime)
        if runtime is not None:
            raise ConfigError(
                f"runtime {runtime!r} is for exported models, and {path} is no folder of one; "
                "tools/export_model.py makes one"
            )
        check_requirements()
        from clab_d2.engine.model_loading import load_model, read_detector

        cfg, content, card = read_detector(path, device=device, options=options)
        model, _ = load_model(cfg, content)
        return cls(cfg, model, card.class_names)

    @classmethod
    def _from_folder(
        cls,
        path: str | os.PathLike[str],
        device: str | None,
        options: Sequence[str],
        runtime: str | None,
    ) -> VideoDetector:
        from clab_d2.runtime.model import ExportedModel
        from clab_d2.video.exported_model import ExportedClipModel

        if options:
            raise ConfigError(
                f"{path}: an exported model takes no options ({options[0]}); export it anew with "
                "them"
            )
        model = ExportedModel.load(path, runtime, device=device or "cpu")
        return cls.of(ExportedClipModel(model))

    def detect(
        self,
        source: Source | Videos,
        mode: Mode = "offline",
        track: bool | str = False,
        appearance: bool = False,
        shots: bool | None = None,
    ) -> Generator[FrameResult, None, None]:
        """Detect in a video file, a folder, a camera, frames that a program holds, or several.

        A stream is read frame by frame as its turn comes, so that it may be endless. In all
        else, a thread reads and resizes the next frames while the model has the current ones; it
        ends with the generator. What is held is bounded by the reach of the reference frames, not
        by the video's length.

        A damaged frame keeps its place in time: the last good frame is given again (black before
        the first), with no detections, and its number goes to ``unreadable_frames``.

        Where ``TEST.POSTPROCESS.NAME`` is set and the mode is not online, the whole video is
        detected in before the first result comes, and its frames are then read once more.

        Args:
            source: what :func:`open_video` takes, or a source, which is left open at the end.
                Several videos, as a list of paths, URLs or open sources, or as a folder of video
                files, are detected in one after the other: frames and tracks count anew in each,
                and ``FrameResult.video`` tells which it is.
            mode: which frames serve as references. "offline": as ``TEST.REFERENCES.SAMPLING``
                says, by default frames spread over the whole video. "windowed":
                ``TEST.REFERENCES.NUM`` frames around each, ``STRIDE`` apart. "online": so many
                of the past only. Streams are always online: they have nothing else.
            track: give detections the numbers of tracks, ``track_ids`` (see
                :class:`clab_d2.video.tracks.Tracker`): True for ByteTrack, or the name of a method.
            appearance: tracks go by what objects look like, too: by embeddings of the detections
                (their field ``appearance``), which a model has that was trained with
                ``MODEL.CONTRASTIVE.LOSS TrackContrast``.
            shots: find the video's cuts, and keep references, tracks and post-processing within
                shots; None: as ``TEST.REFERENCES.FIND_SHOTS`` says. Unless online, the whole video
                is read once for this before the first frame is detected in.

        Yields:
            A :class:`FrameResult` for each frame, in order, none left out, video by video.

        Raises:
            ConfigError: if there is no such mode or method of tracking, a library is missing that
                tracking or the search for cuts needs, or the model has no embeddings.
            DataError: if the source cannot be opened, or when its turn comes, one of several.
            RuntimeError: if another ``detect`` of this detector has begun meanwhile.
        """
        if mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode!r}; choose offline, windowed or online")
        method = (track if isinstance(track, str) else "bytetrack") if track else None
        if method is not None:
            Tracker(method, appearance=appearance)  # what is missing is told before the first frame
        if appearance:
            self._check_appearance(method)
        find_shots = self._clip_model.finds_shots if shots is None else shots
        if find_shots:
            ShotFinder()
        return self._open_and_detect(source, _Choices(mode, method, appearance, find_shots))

    def _check_appearance(self, method: str | None) -> None:
        if method is None:
            raise ConfigError("appearance serves tracks only: ask for these, too (--track)")
        if not self._clip_model.has_appearance:
            raise ConfigError(
                "the model has no embeddings that tell objects apart: track without appearance, or "
                "train it with MODEL.CONTRASTIVE.ENABLED True MODEL.CONTRASTIVE.LOSS TrackContrast"
            )

    async def detect_async(
        self,
        source: Source | Videos,
        mode: Mode = "offline",
        track: bool | str = False,
        appearance: bool = False,
        shots: bool | None = None,
    ) -> AsyncIterator[FrameResult]:
        """:meth:`detect` for ``async for``: the event loop goes on while the model works.

        All of the detection runs in one thread of its own, which ends with the loop over it, also
        when that is left early or cancelled.
        """
        results = self.detect(source, mode, track, appearance, shots)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="clab_d2 detector") as thread:
            following = functools.partial(loop.run_in_executor, thread, next, results, None)
            try:
                while (result := await following()) is not None:
                    yield result
            finally:
                # After a frame that may be on its way: the thread has one thing at a time to do.
                await loop.run_in_executor(thread, results.close)

    def _open_and_detect(
        self,
        source: Source | Videos,
        choices: _Choices,
    ) -> Generator[FrameResult, None, None]:
        for one in each_video(source):
            if isinstance(one, VideoSource):
                yield from self._results(one, choices)
            else:
                with open_video(one) as opened:
                    yield from self._results(opened, choices)

    def _results(
        self, source: VideoSource, choices: _Choices
    ) -> Generator[FrameResult, None, None]:
        """What is detected, with what is done to it after."""
        if source.num_frames is None:
            choices = dataclasses.replace(choices, mode="online")
        tracker = None
        if choices.tracking is not None:
            tracker = Tracker(choices.tracking, source.fps, choices.appearance)
        results = self._detect(source, choices)
        method = self._clip_model.postprocessing
        if method is not None and choices.mode != "online":
            results = self._postprocessed(source, results, method)
        shot = 0
        with contextlib.closing(results):
            for result in results:
                if tracker is not None:
                    if result.shot != shot:
                        shot = result.shot
                        tracker.begin_shot()
                    tracked = tracker.update(result.instances, result.image)
                    result = dataclasses.replace(result, instances=tracked)
                yield result

    def _postprocessed(
        self,
        source: VideoSource,
        results: Generator[FrameResult, None, None],
        method: Callable[[Sequence[Any]], list[Any]],
    ) -> Generator[FrameResult, None, None]:
        """Detect in all frames, then give them again; only detections are held meanwhile."""
        logger.info("%s: detecting in all frames before the first is given", source.name)
        no_image = np.zeros((0, 0, 3), np.uint8)
        with contextlib.closing(results):
            found = [dataclasses.replace(result, image=no_image) for result in results]
        processed = [
            instances
            for _, shot in itertools.groupby(found, key=lambda result: result.shot)
            for instances in method([result.instances for result in shot])
        ]
        frames = _LookAheadReader(source, 0, self.unreadable_frames)
        image: np.ndarray | None = None
        for result, instances in zip(found, processed, strict=True):
            image = _shown(source, frames.get(result.index), image)
            frames.forget_before(result.index + 1)
            yield dataclasses.replace(result, image=image, instances=instances)

    def _detect(
        self, source: VideoSource, choices: _Choices
    ) -> Generator[FrameResult, None, None]:
        run = self._run = next(_video_ids)
        self.unreadable_frames = []
        sampling = self._clip_model.sampling_for(choices.mode)
        finder: ShotFinder | None = None
        first_frames = [0]
        if choices.find_shots and choices.mode == "online":
            finder = ShotFinder(causal=True)
            first_frames = finder.first_frames  # grows
        elif choices.find_shots:
            logger.info("%s: looking for cuts in all frames first", source.name)
            first_frames = find_shots_of(source)
            logger.info("%s: %d shots", source.name, len(first_frames))
        if choices.find_shots and sampling is not None:
            sampling = ShotReferences(sampling, first_frames)
        schedule: ReferenceSchedule | StreamSchedule
        if source.num_frames is None or finder is not None:
            schedule = StreamSchedule(sampling)
        else:
            schedule = ReferenceSchedule(sampling, source.num_frames)
        # References that may lie anywhere are read by their number.
        ahead = sampling.reach[1] if sampling is not None and sampling.reach is not None else 0
        frames = _LookAheadReader(source, ahead, self.unreadable_frames)
        clips = self._clips(schedule, frames, run, finder)
        if choices.appearance:
            clips = ((image, {**clip, "appearance": True}) for image, clip in clips)
        if source.num_frames is None:
            # Read ahead, a frame would be old when its turn comes; nor must it wait for the next.
            batch_size = 1
        else:
            batch_size = self._clip_model.batch_size
            clips = Prefetcher(clips, ahead=batch_size + 1)
        with contextlib.closing(clips):
            while batch := list(itertools.islice(clips, batch_size)):
                if run != self._run:
                    raise RuntimeError("a VideoDetector can detect in one video at a time")
                detected = self._clip_model.detect([clip for _, clip in batch])
                results = [
                    self._result(source, image, clip["frame_id"], first_frames, instances)
                    for (image, clip), instances in zip(batch, detected, strict=True)
                ]
                del batch, detected
                yield from results
        self.unreadable_frames.sort()
        if self.unreadable_frames:
            logger.warning(
                "%s: %d of %d frames are damaged; detection went on without them",
                source.name,
                len(self.unreadable_frames),
                frames.ended_at,
            )

    def _result(
        self,
        source: VideoSource,
        image: np.ndarray,
        index: int,
        first_frames: Sequence[int],
        instances: Any,
    ) -> FrameResult:
        return FrameResult(
            image=image,
            index=index,
            timestamp=source.timestamp(index),
            instances=instances,
            class_names=self.class_names,
            video=source.name,
            shot=shot_number(first_frames, index),
        )

    def _clips(
        self,
        schedule: ReferenceSchedule | StreamSchedule,
        frames: _LookAheadReader,
        video_id: int,
        finder: ShotFinder | None,
    ) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Each frame as it is shown, and the clip that the model takes for it."""
        last_good: np.ndarray | None = None
        for key in itertools.count():
            image = frames.get(key)
            if frames.ended_at is not None and key >= frames.ended_at:
                return
            last_good = _shown(frames.source, image, last_good)
            if finder is not None:
                finder.see(image)
            scheduled = schedule.at(key)
            clip = {
                "dataset_name": "video",
                "video_id": video_id,
                "frame_id": key,
                "image_id": key,
                "file_name": f"{frames.source.name}#{key}",
                "height": last_good.shape[0],
                "width": last_good.shape[1],
                "images": {i: self._prepared(frames.get(i)) for i in scheduled.entering},
                "reference_frame_ids": scheduled.references,
                "kept_frame_ids": scheduled.kept,
            }
            frames.forget_before(key + 1)
            yield last_good, clip

    def _prepared(self, image: np.ndarray | None) -> Any:
        return None if image is None else self._clip_model.prepare(image)


def _shown(
    source: VideoSource, image: np.ndarray | None, last_good: np.ndarray | None
) -> np.ndarray:
    """A frame as it is given: the last good one for one that is damaged, before any a black one."""
    if image is not None:
        return image
    if last_good is not None:
        return last_good
    return np.zeros((source.height or 480, source.width or 640, 3), np.uint8)


class _LookAheadReader:
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

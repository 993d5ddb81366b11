"""An exported model: frames in, detections out, by two graphs and the memory between them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clab_d2.errors import DataError
from clab_d2.runtime.description import FRAME_GRAPH, KEY_FRAME_GRAPH, Description
from clab_d2.runtime.detections import no_detections, scale_detections, select_detections
from clab_d2.runtime.instances import ArrayInstances
from clab_d2.runtime.memory import FrameArrays, FrameMemory
from clab_d2.runtime.sessions import GraphSession, choose_runtime, open_graph


class ExportedModel:
    """Detects in the frames of videos, whose clips come in order.

    A clip is as :class:`clab_d2.modeling.temporal_detector.TemporalDetector` takes it at test, but
    for its images: arrays that :meth:`Preprocessing.resize` gave.

    Attributes:
        description: what the folder says.
        runtime: what runs the graphs.
    """

    def __init__(
        self,
        description: Description,
        frame: GraphSession,
        key_frame: GraphSession,
        runtime: str = "onnxruntime",
    ) -> None:
        """
        Args:
            description: what belongs to the graphs.
            frame: the frame's graph.
            key_frame: the key frame's.
            runtime: their name, for people.

        Raises:
            DataError: the graphs don't fit the description.
        """
        self.description = description
        self.runtime = runtime
        self._frame = frame
        self._key_frame = key_frame
        missing = {*description.own, *description.references} - set(frame.outputs)
        given = {*description.own, "counts"}
        given |= {f"reference_{name}" for name in description.references}
        unknown = set(key_frame.inputs) - given
        if missing or unknown or not {"boxes_of_classes", "scores"} <= set(key_frame.outputs):
            raise DataError(
                f"the graphs are of another model than their description "
                f"({sorted(missing | unknown)}); export the model anew"
            )
        self._memory = FrameMemory(description.references)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        runtime: str | None = None,
        threads: int = 0,
        device: str = "cpu",
    ) -> ExportedModel:
        """Read a folder that ``tools/export_model.py`` wrote.

        Args:
            folder: the folder; it may come from a stranger.
            runtime: "onnxruntime" or "openvino"; None takes the first that is installed.
            threads: of the runtime; 0 lets it choose.
            device: see :func:`clab_d2.runtime.sessions.open_graph`.

        Raises:
            ConfigError: no runtime is installed.
            DataError: the folder holds no exported model.
        """
        folder = Path(folder)
        description = Description.load(folder)
        runtime = choose_runtime(runtime)
        graphs = [
            open_graph(folder / name, runtime, threads, device)
            for name in (FRAME_GRAPH, KEY_FRAME_GRAPH)
        ]
        try:
            return cls(description, *graphs, runtime)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from None

    def __call__(self, clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Detections in the key frames of clips of one video.

        Returns:
            ``{"instances": ArrayInstances}`` for each, at the clip's ``height`` x ``width``;
            ``"unreadable": True`` beside it where the key frame had no image.
        """
        return [self._detect(clip) for clip in clips]

    def _detect(self, clip: Mapping[str, Any]) -> dict[str, Any]:
        self._memory.begin(clip["video_id"])
        for number, image in clip["images"].items():
            self._memory.put(number, None if image is None else self.extract(image))
        key, size = clip["frame_id"], (clip["height"], clip["width"])
        frame = self._memory.get(key)
        if frame is None:
            result: dict[str, Any] = {"instances": no_detections(size), "unreadable": True}
        else:
            found = self._detect_in(frame, clip["reference_frame_ids"], key)
            result = {"instances": scale_detections(found, size)}
        self._memory.keep_only(clip["kept_frame_ids"])
        return result

    def _detect_in(
        self, frame: FrameArrays, reference_ids: Sequence[int], key: int
    ) -> ArrayInstances:
        feed = {**frame.own, "counts": np.ones(1, np.float32)}
        if self.description.references:
            joined, counts = self._memory.references(reference_ids, key)
            feed = {
                **frame.own,
                "counts": counts,
                **{f"reference_{name}": array for name, array in joined.items()},
            }
        outputs = self._key_frame.run(feed)
        frame.own = {}  # a frame is a key frame once
        return select_detections(
            outputs["boxes_of_classes"],
            outputs["scores"],
            frame.image_size,
            self.description.score_threshold,
            self.description.nms_threshold,
            self.description.max_detections,
        )

    def extract(self, image: np.ndarray) -> FrameArrays:
        """What the frame's graph gives for one image, uint8 (H, W, 3), resized."""
        size = image.shape[:2]
        outputs = self._frame.run(
            {
                "image": self.description.preprocessing.normalise(image),
                "image_size": np.array(size, np.float32),
            }
        )
        return FrameArrays(
            size,
            {name: outputs[name] for name in self.description.own},
            {name: outputs[name] for name in self.description.references},
        )

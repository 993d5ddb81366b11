"""The evaluator that Detectron2's inference loop feeds with a model's detections."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from clab_d2.errors import DataError
from clab_d2.evaluation.detections import COCOResults, Detections
from clab_d2.evaluation.ground_truth import GroundTruth
from clab_d2.evaluation.metrics import compute_metrics
from clab_d2.io import atomic_write, write_json

logger = logging.getLogger(__name__)

#: Decimals of a box in predictions.json, in pixels. Metrics are of the rounded boxes, so that
#: tools/evaluate.py finds the same figures in the file, to the last digit.
BOX_DECIMALS = 3

_ENTRIES_AT_A_TIME = 10_000


@dataclass(frozen=True)
class FrameDetections:
    """What was found in one frame.

    Attributes:
        image_id: the dataset's id of the frame.
        box: (N, 4) float64, xywh in pixels.
        score: (N,) float64.
        class_index: (N,) int64, the model's classes.
        unreadable: the frame's file name if it could not be read, else None.
    """

    image_id: int
    box: np.ndarray
    score: np.ndarray
    class_index: np.ndarray
    unreadable: str | None


class VIDEvaluator(DatasetEvaluator):
    """COCO box AP and VID AP50 of a video dataset (see :mod:`clab_d2.evaluation.metrics`).

    Writes ``predictions.json`` (a COCO result list of the frames it is given, also of those of
    unknown truth) and ``metrics.json`` into ``output_dir``, each whole or not at all. Any number of
    processes, with any share of the frames each, give the result of one to the last digit: the main
    process gathers all detections and sorts them by frame. A frame that several processes had
    counts once.

    The classes measured are the dataset's own. Categories that its JSON has beyond them are
    ignored; a class that the JSON lacks can't be measured, and is left out of the predictions, as
    it has no id there.

    Args:
        dataset_name: a registered dataset whose metadata has ``json_file`` (COCO or CocoVID). A
            video dataset's classes are its ``thing_classes``, else the JSON's categories in their
            order; another's follow ``thing_dataset_id_to_contiguous_id``, else category ids are
            taken for class numbers.
        output_dir: where the files go; None: nowhere.
        distributed: gather the detections of all processes; else each evaluates its own.
        postprocess: changes all detections, once they are there, before they are written and
            measured (see :mod:`clab_d2.postprocessing`); None leaves them as they are. It runs
            where all frames of all videos are, in the main process, whoever had which.

    Raises:
        DataError: the dataset has no annotation file, or it is unusable.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        distributed: bool = True,
        postprocess: Callable[[COCOResults, GroundTruth], COCOResults] | None = None,
    ) -> None:
        self._dataset_name = dataset_name
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._distributed = distributed
        self._postprocess = postprocess
        metadata = MetadataCatalog.get(dataset_name)
        json_file = metadata.get("json_file")
        if not json_file:
            raise DataError(
                f"dataset {dataset_name!r} has no annotation file to evaluate against; "
                "register it with register_coco_vid or DATASETS.VID"
            )
        self._truth: GroundTruth | None = None
        self._class_names: list[str] | None = None
        if not distributed or comm.is_main_process():
            # Before the first frame, so that an unusable file stops the job early.
            truth = GroundTruth.from_file(json_file)
            self._class_names = _class_names(metadata, truth)
            if self._class_names is not None:
                _tell_differences(dataset_name, self._class_names, truth)
                truth = truth.only_classes(self._class_names)
            self._truth = truth
        self._frames: list[FrameDetections] = []

    def reset(self) -> None:
        """Forget all detections."""
        self._frames = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Note the detections of some frames.

        Args:
            inputs: a dict a frame with ``image_id``.
            outputs: a dict a frame with ``instances``: ``pred_boxes`` (xyxy at the frame's own
                size), ``scores`` and ``pred_classes``. With ``unreadable`` True the frame counts as
                one without detections and is reported at the end.

        Raises:
            DataError: the model has more classes than the dataset.
        """
        for clip, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            xyxy = instances.pred_boxes.tensor.detach().double().numpy().reshape(-1, 4)
            box = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
            score = instances.scores.detach().double().numpy()
            class_index = instances.pred_classes.long().numpy()
            self._check_classes(class_index)
            unreadable = bool(output.get("unreadable", False))
            if unreadable:
                box, score, class_index = box[:0], score[:0], class_index[:0]
            self._frames.append(
                FrameDetections(
                    image_id=int(clip["image_id"]),
                    box=box.round(BOX_DECIMALS),
                    score=score,
                    class_index=class_index,
                    unreadable=str(clip.get("file_name", clip["image_id"])) if unreadable else None,
                )
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Measure, write the files and log the table.

        Returns:
            Figures in percent, NaN where there is nothing to be found. ``bbox`` has AP, AP50 and
            the others of COCO; ``vid`` has AP50, AP50-slow, AP50-medium and AP50-fast. Empty in
            all processes but the main one.
        """
        frames = self._frames
        if self._distributed:
            comm.synchronize()
            shares = comm.gather(frames, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            frames = [frame for share in shares for frame in share]
        assert self._truth is not None
        frames = _once_each(frames)
        results = self._results(frames)
        if self._postprocess is not None:
            results = self._postprocess(results, self._truth)
        if self._output_dir is not None:
            write_predictions(self._output_dir / "predictions.json", results)
        source = f"the model's output on {self._dataset_name}"
        detections = Detections.from_results(results, self._truth, source)
        self._report_gaps(frames)
        metrics = compute_metrics(self._truth, detections)
        if self._output_dir is not None:
            write_json(self._output_dir / "metrics.json", metrics.as_json(), indent=2)
            logger.info("Predictions and metrics are in %s", self._output_dir)
        logger.info("Results on %s, in percent:\n%s", self._dataset_name, metrics.table())
        return OrderedDict(bbox=dict(metrics.bbox), vid=dict(metrics.vid))

    def _check_classes(self, class_index: np.ndarray) -> None:
        """At the first such detection, rather than after hours of inference."""
        names = self._class_names
        if names is not None and class_index.max(initial=-1) >= len(names):
            raise DataError(
                f"the model predicts class {int(class_index.max())}, but {self._dataset_name} has "
                f"{len(names)} classes; set MODEL.ROI_HEADS.NUM_CLASSES to that number"
            )

    def _results(self, frames: list[FrameDetections]) -> COCOResults:
        """All detections under the JSON's own ids, without those that can't be told in it."""
        assert self._truth is not None
        results = COCOResults.join(
            [
                COCOResults(
                    np.full(len(frame.score), frame.image_id, dtype=np.int64),
                    frame.class_index,
                    frame.box,
                    frame.score,
                )
                for frame in frames
            ]
        )
        finite = np.isfinite(results.score) & np.isfinite(results.box).all(axis=1)
        if not finite.all():
            logger.warning(
                "%d detections on %s have a score or box that is not finite (has training "
                "diverged?); they are left out",
                int((~finite).sum()),
                self._dataset_name,
            )
            results = results.select(finite)
        if self._class_names is None:
            return results
        for frame in frames:  # those of other processes, which don't know the classes
            self._check_classes(frame.class_index)
        id_of_name = dict(zip(self._truth.class_names, self._truth.class_ids, strict=True))
        has_id = np.array([name in id_of_name for name in self._class_names], dtype=bool)
        results = results.select(has_id[results.category_id])
        ids = np.array([id_of_name.get(name, 0) for name in self._class_names], dtype=np.int64)
        return dataclasses.replace(results, category_id=ids[results.category_id])

    def _report_gaps(self, frames: list[FrameDetections]) -> None:
        """Say which frames could not be read and how many were never seen."""
        assert self._truth is not None
        unreadable = [frame.unreadable for frame in frames if frame.unreadable is not None]
        if unreadable:
            more = ", ..." if len(unreadable) > 3 else ""
            logger.warning(
                "%d of %d frames of %s could not be read and count as frames without detections: "
                "%s%s",
                len(unreadable),
                len(frames),
                self._dataset_name,
                ", ".join(unreadable[:3]),
                more,
            )
        expected = self._truth.image_ids[self._truth.annotated]
        missing = int((~np.isin(expected, [frame.image_id for frame in frames])).sum())
        if missing:
            logger.warning(
                "%d of %d annotated frames of %s were not evaluated; their objects count as missed",
                missing,
                len(expected),
                self._dataset_name,
            )


def _class_names(metadata: Metadata, truth: GroundTruth) -> list[str] | None:
    """The model's classes in its order; None: they are numbered as the JSON's categories are."""
    names = metadata.get("thing_classes")
    if metadata.get("evaluator_type") == "vid":
        return list(names or truth.class_names)
    index_of_id: dict[int, int] | None = metadata.get("thing_dataset_id_to_contiguous_id")
    if index_of_id is None:
        return list(names) if names else None
    # The ids decide, as they do for Detectron2's own loaders: names there may be others.
    name_of_id = dict(zip(truth.class_ids.tolist(), truth.class_names, strict=True))
    by_index = {index: name_of_id.get(category) for category, index in index_of_id.items()}
    return [by_index.get(i) or f"class {i}" for i in range(max(by_index, default=-1) + 1)]


def _tell_differences(dataset_name: str, class_names: list[str], truth: GroundTruth) -> None:
    """Say which classes and categories have no counterpart."""
    missing = [name for name in class_names if name not in truth.class_names]
    if missing:
        logger.warning(
            "%s has no category for %d class(es) of %s (%s): what is found of them is left out",
            truth.source, len(missing), dataset_name, ", ".join(missing),
        )  # fmt: skip
    ignored = [name for name in truth.class_names if name not in class_names]
    if ignored:
        logger.warning(
            "%s has %d categories that are no class of %s and are ignored (%s); give "
            "tools/evaluate.py --classes %s for the same figures",
            truth.source, len(ignored), dataset_name, ", ".join(ignored),
            shlex.join(name for name in class_names if name in truth.class_names),
        )  # fmt: skip


def _once_each(frames: list[FrameDetections]) -> list[FrameDetections]:
    """The frames by image id, each once: of several, the first."""
    first: dict[int, FrameDetections] = {}
    for frame in frames:
        first.setdefault(frame.image_id, frame)
    return [first[image_id] for image_id in sorted(first)]


def write_predictions(path: Path, results: COCOResults) -> None:
    """Write a COCO result list, atomically, a piece at a time."""
    with atomic_write(path) as file:
        file.write("[")
        for start in range(0, len(results.score), _ENTRIES_AT_A_TIME):
            part = slice(start, start + _ENTRIES_AT_A_TIME)
            entries = [
                {"image_id": image, "category_id": category, "bbox": box, "score": score}
                for image, category, box, score in zip(
                    results.image_id[part].tolist(),
                    results.category_id[part].tolist(),
                    results.box[part].tolist(),
                    results.score[part].tolist(),
                    strict=True,
                )
            ]
            file.write((",\n" if start else "") + json.dumps(entries)[1:-1])
        file.write("]\n")

#!/usr/bin/env python
"""Draw clips as the model gets them: key frame and references, after augmentation.

    tools/visualize_dataset.py --config-file C --output clips.png
    tools/visualize_dataset.py --config-file C --output clips.mp4 --num-clips 20 --test

A row is a clip: the key frame first, then its reference frames, with the true boxes, classes and
track numbers as resizing and flipping leave them. An .mp4 shows a clip a second.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

from clab_d2.data import VIDDatasetMapper
from clab_d2.data.clip_augmentation import ClipAugmentation, ClipTransform
from clab_d2.engine.launch import add_key_value_option, exit_status, load_config
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import atomic_write
from clab_d2.video import VideoWriter
from clab_d2.visualization import contact_sheet, draw_boxes, readable_scale, write_caption

Record = dict[str, Any]


class RecordingAugmentation:
    """Remembers what the mapper did to its last clip, so that boxes can follow."""

    def __init__(self, augmentation: ClipAugmentation) -> None:
        self._augmentation = augmentation
        self.last: ClipTransform | None = None

    def sample(self) -> ClipTransform:
        self.last = self._augmentation.sample()
        return self.last


class ClipDrawer:
    """Draws the clips of one dataset.

    Args:
        cfg: its ``INPUT`` and ``TEST.REFERENCES`` decide what a clip is.
        dataset: name of a registered dataset.
        is_train: clips of training, augmented, or of the test.
    """

    def __init__(self, cfg: CfgNode, dataset: str, is_train: bool) -> None:
        self.records: list[Record] = DatasetCatalog.get(dataset)
        self.names = MetadataCatalog.get(dataset).get("thing_classes")
        self._by_frame = {(r["video_id"], r["frame_id"]): r for r in self.records}
        self._cfg = cfg
        self._dataset = dataset
        self._is_train = is_train
        self._needs_references = _needs_references(cfg, is_train)
        self._augmentation = RecordingAugmentation(ClipAugmentation.from_config(cfg, is_train))

    def key_records(self) -> list[Record]:
        """Frames that may be key frames."""
        return [r for r in self.records if r["is_key_frame"] or not self._is_train]

    def _mapper(self, record: Record) -> VIDDatasetMapper:
        mapper = VIDDatasetMapper(
            self._cfg,
            is_train=self._is_train,
            needs_references=self._needs_references,
            dataset_names=[self._dataset],
            # As if it were the video's only key frame, so that all of its references come with it.
            key_frames={(self._dataset, record["video_id"]): [record["frame_id"]]},
        )
        mapper.augmentation = self._augmentation
        return mapper

    def draw(self, record: Record, columns: int) -> np.ndarray:
        """The clip of a key frame as a picture, RGB uint8."""
        key = record["frame_id"]
        clip = self._mapper(record)(record)
        if clip is None or clip["images"][key] is None:
            raise DataError(f"{record['file_name']}: the frame cannot be read")
        transform = self._augmentation.last
        assert transform is not None
        truth = clip.get("instances", {}).get(key)
        cells = [self._frame(clip["images"][key], record, transform, truth)]
        captions = [f"key frame {key}"]
        for frame_id in clip["reference_frame_ids"]:
            image = clip["images"][frame_id]
            if image is None:
                continue
            reference = self._by_frame.get((record["video_id"], frame_id))
            cells.append(self._frame(image, reference, transform, None))
            captions.append(f"reference {frame_id}")
        flip = "" if transform.flip == "none" else f", flipped ({transform.flip})"
        # A frame of a video file is called <file>#<number>.
        clip_file = record["file_name"].rpartition("#")[0]
        video = Path(clip_file).name if clip_file else Path(record["file_name"]).parent.name
        title = f"{video or record['file_name']}{flip}"
        width = max(240, min(480, cells[0].shape[1]))
        return write_caption(contact_sheet(cells, columns, width, captions), title)

    def _frame(
        self, image: Any, record: Record | None, transform: ClipTransform, instances: Any
    ) -> np.ndarray:
        picture = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
        if self._cfg.INPUT.FORMAT == "BGR":
            picture = np.ascontiguousarray(picture[:, :, ::-1])
        boxes, classes, tracks = _true_boxes(record, transform)
        if instances is not None:
            # What the model is given, rather than what it should be given.
            given = instances.gt_boxes.tensor.numpy()
            tracks = [_nearest(box, boxes, tracks) for box in given]
            boxes, classes = given, instances.gt_classes.tolist()
        scale = readable_scale(*picture.shape[:2], target=256)
        return draw_boxes(
            picture, boxes, classes, self.names, track_ids=tracks, style="truth", scale=scale
        )


def _needs_references(cfg: CfgNode, is_train: bool) -> bool:
    """Ask the config's model, built without memory for weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg).train(is_train).needs_references


def _true_boxes(
    record: Record | None, transform: ClipTransform
) -> tuple[np.ndarray, list[int], list[int | None]]:
    """Boxes (x1 y1 x2 y2) of a frame after ``transform``, their classes and tracks."""
    annotations = record["annotations"] if record is not None else []
    if not annotations:
        return np.zeros((0, 4)), [], []
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    moved = transform.for_size(record["height"], record["width"]).apply_box(np.array(boxes))
    tracks = [a["instance_id"] if a["instance_id"] >= 0 else None for a in annotations]
    return moved, [a["category_id"] for a in annotations], tracks


def _nearest(box: np.ndarray, boxes: np.ndarray, tracks: list[int | None]) -> int | None:
    return tracks[int(np.abs(boxes - box).sum(1).argmin())] if len(boxes) else None


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="C")
    parser.add_argument("--output", required=True, metavar="FILE", help=".png, .jpg or .mp4")
    parser.add_argument("--dataset", metavar="NAME", help="default: the config's first")
    parser.add_argument("--test", action="store_true", help="clips of the test, not of training")
    parser.add_argument("--num-clips", type=int, default=6, metavar="N")
    parser.add_argument("--columns", type=int, default=5, metavar="N", help="frames a line")
    parser.add_argument("--seed", type=int, default=0, help="which clips, and which augmentation")
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def clips(args: argparse.Namespace, drawer: ClipDrawer) -> Iterator[np.ndarray]:
    """Pictures of randomly chosen clips; those that cannot be read are told and passed over."""
    records = drawer.key_records()
    random.seed(args.seed)
    np.random.seed(args.seed)
    random.shuffle(records)
    drawn = 0
    for record in records:
        if drawn == args.num_clips:
            return
        try:
            yield drawer.draw(record, args.columns)
            drawn += 1
        except DataError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not drawn:
        raise DataError("the dataset has no key frame that can be drawn")


def run(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix.lower() not in {".png", ".jpg", ".jpeg", ".mp4"}:
        raise ConfigError(f"--output {args.output}: name a .png, .jpg or .mp4")
    if args.num_clips < 1 or args.columns < 1:
        raise ConfigError("--num-clips and --columns must be at least 1")
    import_plugins(args.imports)
    cfg = load_config(args.config_file, args.opts)
    datasets = cfg.DATASETS.TEST if args.test else cfg.DATASETS.TRAIN
    dataset = args.dataset or (datasets[0] if datasets else None)
    if dataset is None or dataset not in DatasetCatalog:
        raise ConfigError(f"dataset {dataset!r} is not registered; give --dataset or DATASETS.VID")
    pictures = clips(args, ClipDrawer(cfg, dataset, is_train=not args.test))
    if output.suffix.lower() == ".mp4":
        with VideoWriter(output, fps=1) as writer:
            for picture in pictures:
                writer.write(picture)
    else:
        rows = list(pictures)
        sheet = contact_sheet(rows, 1, max(row.shape[1] for row in rows))
        done, encoded = cv2.imencode(output.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        assert done, output
        with atomic_write(output, "wb") as file:
            file.write(encoded.tobytes())
    print(f"{dataset}: {args.output} written")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

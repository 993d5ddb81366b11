"""Contrastive losses written out: frames and objects one by one, pairs one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from clab_d2.modeling.contrastive.base import ContrastiveFrame
from clab_d2.modeling.contrastive.class_contrast import ClassContrast
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.embedding import Embedding, RoIEmbedding
from clab_d2.modeling.contrastive.foreground_contrast import ForegroundContrast
from clab_d2.modeling.contrastive.pair_contrast import PairContrast
from clab_d2.modeling.contrastive.track_contrast import TrackContrast

CHANNELS, STRIDE, TEMPERATURE = 6, 16, 0.1
DIMS = (CHANNELS, 5, 7, 4)
GATE = 0.6


def shifted(boxes: Boxes, image_size: tuple[int, int]) -> Boxes:
    """Copies moved to the right by a fifth and by three fifths: IoU 2/3 and 1/4."""
    widths = (boxes.tensor[:, 2] - boxes.tensor[:, 0])[:, None]
    right = torch.tensor([1.0, 0.0, 1.0, 0.0]).to(boxes.tensor)
    return Boxes(torch.cat([boxes.tensor + widths * right * part for part in (0.2, 0.6)]))


LOSSES: dict[str, Callable[..., PairContrast]] = {
    "ClipContrast": lambda **kw: ClipContrast(Embedding(*DIMS), **kw),
    "ForegroundContrast": lambda **kw: ForegroundContrast(Embedding(*DIMS), STRIDE, **kw),
    "TrackContrast": lambda **kw: TrackContrast(RoIEmbedding(*DIMS, STRIDE), **kw),
    "ClassContrast": lambda **kw: ClassContrast(
        RoIEmbedding(*DIMS, STRIDE), shifted, iou_gate=GATE, iou_weighting="linear", **kw
    ),
}
SHAPE = ShapeSpec(channels=CHANNELS, stride=STRIDE)


def make_loss(name: str, **kwargs: object) -> PairContrast:
    """A loss with weights of its own, the same each time, in double precision."""
    torch.manual_seed(0)
    return LOSSES[name](**kwargs).double()


def make_truth(
    boxes: Sequence[Sequence[float]], classes: Sequence[int], tracks: Sequence[int]
) -> Instances:
    return Instances(
        (96, 128),
        gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_tracks=torch.tensor(tracks, dtype=torch.int64),
    )


def make_frame(
    seed: int, clip: int, video: int, truth: Instances | None, size: tuple[int, int] = (6, 8)
) -> ContrastiveFrame:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(1, CHANNELS, *size, generator=generator, dtype=torch.float64)
    return ContrastiveFrame(
        feature=feature.requires_grad_(True),
        image_size=(16 * size[0], 16 * size[1]),
        clip=clip,
        video=("made", video),
        instances=truth,
    )


def make_frames(seed: int = 0) -> list[ContrastiveFrame]:
    """Three clips: two of video 1 (one of whose frames has no truth) and a still, which is listed
    three times. Video 1's object 7 is in all its frames; -1 are objects without identity."""
    keys = [
        make_frame(seed, 0, 1, make_truth([[4, 8, 50, 60], [40, 20, 100, 90]], [0, 1], [7, 8])),
        make_frame(seed + 1, 1, 1, make_truth([[10, 8, 56, 60]], [0], [7]), size=(5, 9)),
        make_frame(seed + 2, 2, 2, make_truth([[30, 30, 70, 90], [2, 3, 20, 17]], [2, 0], [-1, 0])),
    ]
    references = [
        make_frame(seed + 3, 0, 1, make_truth([[8, 9, 54, 62], [60, 2, 90, 40]], [0, 2], [7, -1])),
        make_frame(seed + 4, 0, 1, None),
        make_frame(seed + 5, 1, 1, make_truth([[9, 8, 51, 63], [44, 20, 99, 80]], [0, 1], [7, 8])),
        make_frame(seed + 6, 1, 1, make_truth([], [], [])),
    ]
    return [*keys, *references, keys[2], keys[2]]


def without_objects(frames: Sequence[ContrastiveFrame]) -> list[ContrastiveFrame]:
    """The same frames, of whose truth nothing is known, or where nothing is to be seen."""
    empty = {
        id(frame): replace(frame, instances=make_truth([], [], []) if number % 2 else None)
        for number, frame in enumerate(frames)
    }
    return [empty[id(frame)] for frame in frames]


@dataclass
class Thing:
    """A frame or an object that is contrasted."""

    embedding: Tensor
    clip: int
    video: int
    track: int = -1
    category: int = -1
    iou: float = 1.0


def things(name: str, loss: PairContrast, frames: Sequence[ContrastiveFrame]) -> list[Thing]:
    """What a loss contrasts, found frame by frame."""
    found = []
    seen = set()
    for frame in frames:
        maps = torch.relu(loss.embedding.conv(frame.feature))
        project = loss.embedding.projection
        clip, video = frame.clip, frame.video[1]
        if name == "ClipContrast":
            found.append(Thing(project(maps.mean((2, 3)))[0], clip, video))
            continue
        if frame.instances is None or len(frame.instances) == 0:
            continue
        boxes = frame.instances.gt_boxes.tensor.double()
        if name == "ForegroundContrast":
            pixels = maps.repeat_interleave(STRIDE, 2).repeat_interleave(STRIDE, 3)
            inside = torch.zeros(pixels.shape[2:], dtype=torch.bool)
            for x1, y1, x2, y2 in boxes.int().tolist():
                inside[y1:y2, x1:x2] = True
            found.append(Thing(project(pixels[:, :, inside].mean(2))[0], clip, video))
            continue
        if id(frame) in seen:
            continue
        seen.add(id(frame))
        for index in range(len(boxes)):
            box = boxes[index : index + 1]
            rois = box
            if name == "ClassContrast":
                rois = torch.cat([box, shifted(Boxes(box), frame.image_size).tensor])
            bins = roi_align(maps, [rois], 7, 1 / STRIDE, 2, aligned=True)
            for roi, embedding in zip(rois, project(bins.mean((2, 3))), strict=True):
                found.append(
                    Thing(
                        embedding,
                        clip,
                        video,
                        int(frame.instances.gt_tracks[index]),
                        int(frame.instances.gt_classes[index]),
                        float(box_iou(box, roi[None])),
                    )
                )
    return found


def relation(name: str, anchor: Thing, other: Thing, remembered: bool) -> str:
    """Whether the other is "positive", "negative" or "neither" to the anchor."""
    same_video = anchor.video == other.video
    if name in ("ClipContrast", "ForegroundContrast"):
        if remembered:
            return "neither" if same_video else "negative"
        return "positive" if anchor.clip == other.clip else "negative"
    if name == "TrackContrast":
        if not same_video:
            return "negative"
        if -1 in (anchor.track, other.track):
            return "neither"
        return "positive" if anchor.track == other.track else "negative"
    return "positive" if anchor.category == other.category else "negative"


def plain_loss(name: str, batch: Sequence[Thing], remembered: Sequence[Thing] = ()) -> Tensor:
    """The loss of a whole batch, given what is remembered, by its formula."""
    losses: list[Tensor] = []
    for anchor in batch:
        groups: dict[str, list[Tensor]] = {"positive": [], "negative": [], "neither": []}
        for other in (*batch, *remembered):
            if other is anchor:
                continue
            cosine = torch.cosine_similarity(anchor.embedding, other.embedding, dim=0)
            is_old = any(other is old for old in remembered)
            groups[relation(name, anchor, other, is_old)].append(cosine / TEMPERATURE)
        positives, negatives = groups["positive"], groups["negative"]
        if name in ("ClipContrast", "ForegroundContrast"):
            rest = sum(negative.exp() for negative in negatives)
            losses += [-(s.exp() / (s.exp() + rest)).log() for s in positives]
        elif name == "TrackContrast":
            if positives and negatives and anchor.track != -1:
                terms = [(n - p).exp() for n in negatives for p in positives]
                losses.append(torch.log(1 + sum(terms)))
        else:
            weight = anchor.iou if anchor.iou >= GATE else 0.0
            whole = sum(s.exp() for s in (*positives, *negatives))
            terms = [-(s.exp() / whole).log() for s in positives]
            losses.append(weight * sum(terms, torch.zeros(())) / max(len(terms), 1))
    return sum(losses, torch.zeros(())) / len(losses) if losses else torch.tensor(math.nan)

#!/usr/bin/env python
"""Measure how far our modules are from the official release on the golden files.

    python docs/scripts/measure_parity.py

Prints rows of the table in docs/parity.md. It needs no GPU and takes seconds; files of over 1 MB
are looked for in ../shared/golden, and left out where that is absent.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torchvision.ops import roi_align

from clab_d2.converters.ilsvrc import convert
from clab_d2.data.reference_sampling import AdaptiveReferences, RandomReferences
from clab_d2.evaluation.vid_metric import SUBSETS, mean_over_classes, vid_average_precision
from clab_d2.modeling.aggregation.selsa import SELSA
from clab_d2.modeling.aggregation.temporal_roi_align import TemporalRoIAlign
from clab_d2.modeling.contrastive.base import ContrastiveFrame
from clab_d2.modeling.contrastive.clip_contrast import ClipContrast
from clab_d2.modeling.contrastive.embedding import Embedding
from clab_d2.modeling.contrastive.schedule import contrastive_weight
from clab_d2.modeling.roi_heads.box_head import TemporalBoxHead

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden")
# Our names of the release's layers
SELSA_NAMES = {"fc_embed": "query", "ref_fc_embed": "key", "ref_fc": "value", "fc": "output"}
BRANCH = {"channel.0": "conv", "proj.0": "projection.0", "proj.2": "projection.2"}
Arrays = dict[str, np.ndarray]


def find(name: str) -> Path:
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(name)


def load(name: str) -> Arrays:
    with np.load(find(name)) as data:
        return dict(data)


def renamed(arrays: Arrays, names: dict[str, str], prefix: str = "w/") -> dict[str, Tensor]:
    """The release's weights under our names."""
    return {
        f"{ours}.{kind}": torch.from_numpy(arrays[f"{prefix}{theirs}.{kind}"])
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }


def difference(ours: Tensor | np.ndarray, theirs: np.ndarray) -> float:
    ours = ours.detach().numpy() if isinstance(ours, Tensor) else ours
    return float(np.abs(ours - theirs).max())


def selsa_block() -> list[float]:
    arrays = load("selsa_aggregator.npz")
    block = SELSA(64, num_heads=int(arrays["num_attention_blocks"]))
    block.load_state_dict(renamed(arrays, SELSA_NAMES))
    references = block.encode_references(torch.from_numpy(arrays["ref_x"]))
    x = torch.from_numpy(arrays["x"])
    return [difference(block(x, references) - x, arrays["out"])]


def box_head() -> list[float]:
    """Class scores, boxes."""
    arrays = load("selsa_box_head.npz")
    heads = int(arrays["num_attention_blocks"])
    shape = ShapeSpec(channels=32, height=7, width=7)
    head = TemporalBoxHead(
        shape, fc_dims=[64] * 3, aggregations=[SELSA(64, num_heads=heads) for _ in range(3)]
    )
    names = {f"shared_fcs.{i}": f"fc{i + 1}" for i in range(3)}
    names |= {
        f"aggregator.{i}.{theirs}": f"aggregations.{i}.{ours}"
        for i in range(3)
        for theirs, ours in SELSA_NAMES.items()
    }
    head.load_state_dict(renamed(arrays, names))
    references = head.encode_references(torch.from_numpy(arrays["ref_x"]))
    features = head(torch.from_numpy(arrays["x"]), references)
    results = []
    for name, key in (("fc_cls", "cls_score"), ("fc_reg", "bbox_pred")):
        weight, bias = (torch.from_numpy(arrays[f"w/{name}.{kind}"]) for kind in ("weight", "bias"))
        results.append(difference(nn.functional.linear(features, weight, bias), arrays[key]))
    return results


def temporal_roi_align(name: str) -> list[float]:
    """Plain RoIAlign, the result with gradients, and without."""
    arrays = load(name)
    module = TemporalRoIAlign(
        32,
        num_most_similar=int(arrays["num_most_similar_points"]),
        num_heads=int(arrays["num_temporal_attention_blocks"]),
    )
    if module.embed is not None:
        module.load_state_dict(renamed(arrays, {"embed_network.conv": "embed"}))
    feature, rois = (torch.from_numpy(arrays[key]) for key in ("feat", "rois"))
    scale, ratio = 1 / int(arrays["stride"]), int(arrays["sampling_ratio"])
    pooled = roi_align(feature, rois, int(arrays["output_size"]), scale, ratio, aligned=True)
    references = list(torch.from_numpy(arrays["ref_feats"]))
    results = [difference(pooled, arrays["roi_feats"])]
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            out = module(
                pooled,
                rois[:, 1:],
                feature[0],
                references,
                [1] * len(references),
                scale=scale,
                sampling_ratio=ratio,
            )
        results.append(difference(out, arrays["out"]))
    return results


def contrastive_branch(name: str) -> list[float]:
    """Loss, its gradient by the features."""
    arrays = load(name)
    features = torch.from_numpy(arrays["features"]).requires_grad_(True)
    embedding = Embedding(features.shape[1], conv_dim=512, hidden_dim=256, embed_dim=128)
    embedding.load_state_dict(renamed(arrays, BRANCH))
    keys, refs = int(arrays["num_keys"]), int(arrays["num_refs"])
    clips = list(range(keys)) + [clip for clip in range(keys) for _ in range(refs)]
    frames = [
        ContrastiveFrame(feature[None], tuple(feature.shape[-2:]), clip, ("golden", clip))
        for feature, clip in zip(features, clips, strict=True)
    ]
    loss = ClipContrast(embedding, temperature=float(arrays["temperature"]))(frames)
    loss.backward()
    assert features.grad is not None
    return [difference(loss, arrays["loss"]), difference(features.grad, arrays["grad"])]


def weight_schedule() -> list[float]:
    cases = json.loads(find("loss_weight_schedule.json").read_text())
    return [
        max(
            abs(contrastive_weight(int(at), start=start, steps=int(steps)) - weight)
            for start, steps, at, weight in cases
        )
    ]


def adaptive_sampling() -> list[float]:
    """Number of cases that differ."""
    cases = json.loads(find("frame_sampling.json").read_text())["adaptive"]
    differing = 0
    for case, expected in cases.items():
        num_frames, num = map(int, case.split(","))
        differing += AdaptiveReferences(num).frames(num_frames, 0)[:-1] != expected
    return [differing]


def vid_metric() -> list[float]:
    """AP of the classes, their mean, over all, slow, medium and fast objects."""
    data = load("vid_eval.npz")
    keys = ("gt_img", "gt_box", "gt_cls", "gt_motion_iou", "dt_img", "dt_box", "dt_cls", "dt_score")
    ap = vid_average_precision(*(data[key] for key in keys), int(data["num_classes"]))
    classes = max(difference(ap[name], data[f"ap_{name}"]) for name in SUBSETS)
    mean = max(abs(mean_over_classes(ap[name]) - float(data[f"map_{name}"])) for name in SUBSETS)
    return [classes, mean]


def converter() -> list[float]:
    """Number of JSON files that differ."""
    folder = find("ilsvrc_annotations")
    with tempfile.TemporaryDirectory() as output:
        made = convert(folder / "ILSVRC", Path(output), progress=False, jobs=1)
        return [
            sum(
                json.loads((Path(output) / name).read_text())
                != json.loads((folder / "expected" / name).read_text())
                for name in made
            )
        ]


def training_sampling() -> list[float]:
    """Number of videos for which the sets of pairs that are drawn differ."""
    differing = 0
    for case in json.loads(find("train_sampling.json").read_text()):
        num_frames, key = case["num_frames"], case["key"]
        # A video of one frame has no reference in the release; here the key frame stands in.
        expected = {(0, 0)} if num_frames == 1 else {tuple(pair) for pair in case["observed"]}
        rng = random.Random(0)
        drawn = {tuple(RandomReferences().frames(num_frames, key, rng)) for _ in range(4000)}
        differing += drawn != expected
    return [differing]


Measurement = Callable[[], list[float]]


def rows() -> Iterator[tuple[str, Measurement]]:
    yield "SELSA block", selsa_block
    yield "Box head: class scores, boxes", box_head
    for name in ("temporal_roi_align", "temporal_roi_align_mean"):
        measure: Measurement = partial(temporal_roi_align, f"{name}.npz")
        yield f"{name}: RoIAlign, result with gradients, without", measure
    for name in ("T2_B1", "T2_B2", "T4_B3"):
        measure = partial(contrastive_branch, f"contrastive_branch_{name}.npz")
        yield f"Contrastive branch {name}: loss, gradient", measure
    yield "Weight schedule", weight_schedule
    yield "Adaptive sampling: cases that differ", adaptive_sampling
    yield "Training sampling: cases that differ", training_sampling
    yield "VID AP50 (from 0 to 1): classes, mean", vid_metric
    yield "Converter: files that differ", converter


def main() -> None:
    print("| what | largest difference |\n| --- | --- |")
    for name, measure in rows():
        try:
            values = ", ".join(f"{value:.1e}" if value else "0" for value in measure())
        except FileNotFoundError as error:
            values = f"not measured: {error} is missing"
        print(f"| {name} | {values} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

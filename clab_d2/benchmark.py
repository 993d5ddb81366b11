"""Speed and memory of temporal detectors, measured side by side on one video.

By default weights and frames are random: what a detector costs hardly depends on what it sees. The
variants take turns at every key frame, so that a machine that slows down slows them alike.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import roi_align

from clab_d2.data.reference_sampling import AdaptiveReferences
from clab_d2.data.video_frames import VideoFrameReader
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.errors import ConfigError, DataError
from clab_d2.modeling import TemporalDetector, prepare_for_inference
from clab_d2.modeling.plain import build_plain, plain_temporal_roi_align

Clip = dict[str, Any]

SINGLE, OURS, PLAIN = "single frame", "temporal", "temporal, plain"

# Parts of the model that the breakdown times: attribute path -> name
STAGES = {
    "backbone.forward": "backbone",
    "proposal_generator.forward": "RPN",
    "roi_heads.encode_references": "key frame as reference (RoIAlign, FC, keys, values)",
    "roi_heads.roi_aggregation.search": "Temporal RoI Align: search",
    "roi_heads.roi_aggregation.embed_maps": "key frame's embedded map",
    "roi_heads.roi_aggregation.aggregate": "Temporal RoI Align: attention",
    "roi_heads.roi_aggregation.aggregate_embedded": "Temporal RoI Align: attention",
    "roi_heads.box_head.forward": "FC layers and SELSA",
    "dense_head.forward": "one-stage head",
    "prediction_aggregation.forward": "attention between predictions",
}


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        cfg: a temporal detector's config.
        size: (height, width) of the frames.
        num_references: references of a key frame, itself not counted.
        length: frames of the video.
        clip: a video file whose frames are taken, resized; made-up ones by default.
        weights: what the detector starts from (``MODEL.WEIGHTS``); the rest, or all, is random.
        cpu_time: count the seconds that the process computed, on all its threads, instead of those
            that passed, as where other work runs on the machine; take one thread then, as threads
            that wait for each other count as well.
    """

    cfg: CfgNode
    size: tuple[int, int]
    num_references: int
    length: int = 0
    clip: Path | None = None
    weights: str = ""
    cpu_time: bool = False

    @functools.cached_property
    def references(self) -> list[int]:
        """Reference frames, the same for all key frames ("adaptive" sampling)."""
        return AdaptiveReferences(self.num_references).frames(self.num_frames, 0)[:-1]

    @property
    def num_frames(self) -> int:
        return self.length or 4 * self.num_references + 20

    def key_frames(self, count: int) -> list[int]:
        """Frames that are no references, so that nothing of theirs is in memory already."""
        frames = [f for f in range(1, self.num_frames) if f not in self.references]
        if len(frames) < count:
            raise ConfigError(f"a video of {self.num_frames} frames is too short for {count} keys")
        return frames[:count]

    def key_clip(self, frame: int, variant: str) -> Clip:
        """A key frame as the loader gives it to a variant."""
        own = variant == SINGLE
        entering: set[int] = set()
        if variant == PLAIN or (variant == OURS and frame == 0):
            entering = set(self.references) - {frame}
        return {
            "height": self.size[0],
            "width": self.size[1],
            "video_id": 1,
            "frame_id": frame,
            "reference_frame_ids": [] if own else [*self.references, frame],
            "images": {index: self.image(index) for index in (frame, *sorted(entering))},
            "kept_frame_ids": [] if own else self.references,
        }

    def image(self, frame: int) -> torch.Tensor:
        """(3, H, W), in INPUT.FORMAT's channel order."""
        if self.clip is not None:
            return _clip_frame(self.clip, frame, self.size, self.cfg.INPUT.FORMAT)
        generator = torch.Generator().manual_seed(frame)
        return torch.randint(0, 256, (3, *self.size), generator=generator, dtype=torch.uint8)


@functools.lru_cache(maxsize=1)
def _reader(clip: Path) -> VideoFrameReader:
    return VideoFrameReader(clip)


def _clip_frame(clip: Path, frame: int, size: tuple[int, int], image_format: str) -> torch.Tensor:
    """A frame of a video file, which starts again where it ends."""
    reader = _reader(clip)
    rgb = cv2.resize(reader.read(frame % len(reader)), size[::-1])
    ordered = rgb[..., ::-1] if image_format == "BGR" else rgb
    return torch.from_numpy(ordered.transpose(2, 0, 1).copy())


def build(setting: Setting, variant: str) -> TemporalDetector:
    """A variant with the setting's weights; random ones are the same for all variants.

    The plain one stays as it was built; the others are prepared for
    inference by ``TEST.OPTIMIZE`` and ``TEST.COMPILE``.
    """
    cfg = setting.cfg.clone()
    cfg.defrost()
    if variant == SINGLE:
        places = cfg.MODEL.AGGREGATION
        places.update(dict.fromkeys(places, ""))
    torch.manual_seed(0)
    model = (build_plain if variant == PLAIN else build_model)(cfg).eval()
    if setting.weights:
        VIDCheckpointer(model, purpose="train").load(setting.weights)
    return model if variant == PLAIN else prepare_for_inference(model, cfg)


def seconds(run: Callable[[], object], cpu_time: bool = False) -> float:
    """How long a call takes, the accelerator's work included.

    Args:
        run: the call.
        cpu_time: count what the process computed, see :class:`Setting`.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    _synchronize()
    start = clock()
    run()
    _synchronize()
    return clock() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Comparison:
    """Variants side by side.

    Attributes:
        seconds: of each key frame, by variant.
    """

    seconds: dict[str, list[float]]

    def ratios(self, variant: str, base: str) -> list[float]:
        """``variant``'s time by ``base``'s at each key frame."""
        return [
            a / b for a, b in zip(self.seconds[variant], self.seconds[base], strict=False)
        ]


def compare(setting: Setting, num_keys: int, num_plain: int) -> Comparison:
    """Time the variants in turns.

    Args:
        setting: what to measure.
        num_keys: key frames timed, after one that warms up.
        num_plain: how many of these the plain way does, too.
    """
    variants = [SINGLE, OURS, *([PLAIN] if num_plain else [])]
    models = {variant: build(setting, variant) for variant in variants}
    if not models[OURS].aggregates:
        raise ConfigError(
            "a single-frame detector has nothing to compare; take a config with SELSA or "
            "Temporal RoI Align"
        )
    result = Comparison({variant: [] for variant in variants})
    warm_up, *keys = setting.key_frames(num_keys + 1)
    models[OURS]([setting.key_clip(0, OURS)])
    for number, key in enumerate([warm_up, *keys]):
        for variant in variants:
            if variant == PLAIN and not 0 < number <= num_plain:
                continue
            clip = setting.key_clip(key, variant)
            taken = seconds(lambda m=models[variant], c=clip: m([c]), setting.cpu_time)
            if number > 0:
                result.seconds[variant].append(taken)
    return result


@dataclass(frozen=True)
class Agreement:
    """How far Temporal RoI Align is from its formula in double precision, on random input.

    In single precision, where a second and a third most similar position are equal to rounding,
    either may be taken; features of random weights are so alike that this is common.

    Attributes:
        ours, plain: shares of RoI bins that differ by more than a thousandth of the greatest value,
            computed in single precision in our way, and in the plain one.
        double: greatest difference of our way in double precision, as a part of the greatest value.
    """

    ours: float
    plain: float
    double: float


@torch.no_grad()
def agreement(setting: Setting, num_rois: int = 150) -> Agreement | None:
    """Compare the ways of computing Temporal RoI Align, with two references.

    Returns:
        None for a model without it, or one that pools from several levels.
    """
    if not setting.cfg.MODEL.AGGREGATION.ROI_FEATURES:
        return None
    cfg = setting.cfg.clone()
    cfg.defrost()
    cfg.TEST.OPTIMIZE, cfg.TEST.PRECISION = False, "fp32"
    model = build(dataclasses.replace(setting, cfg=cfg), OURS)
    heads = model.roi_heads
    module = heads.roi_aggregation
    if module is None or len(heads.in_features) != 1:
        return None
    frames = [model.extract([setting.image(number)])[0] for number in range(3)]
    maps = [frame.features[heads.in_features[0]] for frame in frames]
    boxes = frames[0].proposals.proposal_boxes.tensor[:num_rois]

    def both(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        feature, *references = [m[0].to(dtype) for m in maps]
        module.to(dtype)
        scale, ratio = heads.pooler.scales[0], heads.pooler.sampling_ratio
        size = heads.pooler.output_size
        pooled = roi_align(feature[None], [boxes.to(dtype)], size, scale, ratio, aligned=True)
        encoded = [module.encode_map(reference) for reference in references]
        kept = {} if encoded[0] is None else {"encoded": encoded}
        ours = module(
            pooled, boxes.to(dtype), feature, references, [1, 1], scale=scale,
            sampling_ratio=ratio, **kept,
        )  # fmt: skip
        return ours.double(), plain_temporal_roi_align(module, pooled, references).double()

    ours, plain = both(torch.float32)
    ours_double, exact = both(torch.float64)
    greatest = exact.abs().max()

    def share(result: torch.Tensor) -> float:
        off = (result - exact).abs().amax(dim=1) > 1e-3 * greatest
        return off.double().mean().item()

    difference = (ours_double - exact).abs().max() / greatest
    return Agreement(share(ours), share(plain), difference.item())


def stages(setting: Setting, num_keys: int) -> dict[str, float]:
    """Seconds of each part of the temporal detector at a key frame, medians of some."""
    model = build(setting, OURS)
    taken: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            taken[name] += seconds(
                lambda: results.append(function(*args, **kwargs)), setting.cpu_time
            )
            return results[0]

        return run

    for path, name in STAGES.items():
        *parents, attribute = path.split(".")
        owner: Any = functools.reduce(lambda o, part: getattr(o, part, None), parents, model)
        if hasattr(owner, attribute):
            setattr(owner, attribute, timed(name, getattr(owner, attribute)))
    model([setting.key_clip(0, OURS)])
    rows = []
    for number, key in enumerate(setting.key_frames(num_keys + 1)):
        taken.clear()
        clip = setting.key_clip(key, OURS)
        total = seconds(lambda c=clip: model([c]), setting.cpu_time)
        taken["the rest"] = total - sum(taken.values())
        if number > 0:
            rows.append(dict(taken))
    return {name: _median([row[name] for row in rows]) for name in rows[0]}


def scaling(settings: Sequence[Setting], num_keys: int) -> list[tuple[float, float]]:
    """Seconds of a key frame, (single frame, temporal), for each setting; medians, in turns.

    The references come into memory as copies of one frame's features, which cost the same.
    """
    runs = []
    for setting in settings:
        models = {variant: build(setting, variant) for variant in (SINGLE, OURS)}
        runs.append((setting, models, {SINGLE: [], OURS: []}))
        _fill_memory(models[OURS], setting)
    for number in range(num_keys + 1):
        for setting, models, taken in runs:
            key = setting.key_frames(num_keys + 1)[number]
            for variant, model in models.items():
                clip = setting.key_clip(key, variant)
                one = seconds(lambda m=model, c=clip: m([c]), setting.cpu_time)
                if number > 0:
                    taken[variant].append(one)
    return [(_median(taken[SINGLE]), _median(taken[OURS])) for _, _, taken in runs]


@torch.no_grad()
def _fill_memory(model: TemporalDetector, setting: Setting) -> None:
    clip = setting.key_clip(0, OURS)
    only = {
        **clip,
        "images": {0: setting.image(0)},
        "reference_frame_ids": [0],
        "kept_frame_ids": [0],
    }
    model([only])
    frame = model.memory.get(0)
    for number in set(setting.references) - {0}:
        model.memory.put(number, copy.deepcopy(frame))


def _median(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).median().item()


def peak_memory(setting: Setting, variant: str) -> dict[str, float]:
    """MiB that a variant takes at two key frames, in a process of its own.

    Returns:
        "weights", and "peak" over what the process (on a GPU, the allocator) held with the weights
        loaded.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (setting, variant))


def _peak_memory(setting: Setting, variant: str) -> dict[str, float]:
    model = build(setting, variant)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident_bytes()
    if variant == OURS:
        model([setting.key_clip(0, OURS)])
    for key in setting.key_frames(2):
        model([setting.key_clip(key, variant)])
    after = torch.cuda.max_memory_allocated() if on_gpu else _peak_resident_bytes()
    return {"weights": weights / 2**20, "peak": (after - before) / 2**20}


def training_step(setting: Setting, plain: bool, num_steps: int) -> dict[str, float]:
    """Forward and backward pass of one clip with two references, in a process of its own.

    Args:
        setting: its config is built for training; its references are not used.
        plain: similarities by the formula as it stands, the graph through all of it, proposals of
            reference frames included.
        num_steps: steps timed, after one that warms up.

    Returns:
        "s a step", the median, and "peak MiB" over what was held with the weights loaded.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_training_step, (setting, plain, num_steps))


def _training_step(setting: Setting, plain: bool, num_steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = (build_plain if plain else build_model)(setting.cfg).train()
    clip = _training_clip(setting)
    on_gpu = model.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else resident_bytes()

    def step() -> None:
        torch.manual_seed(0)
        with EventStorage():
            sum(model([clip]).values()).backward()
        model.zero_grad()

    step()
    taken = [seconds(step, setting.cpu_time) for _ in range(num_steps)]
    after = torch.cuda.max_memory_allocated() if on_gpu else _peak_resident_bytes()
    return {"s a step": _median(taken), "peak MiB": (after - before) / 2**20}


def _training_clip(setting: Setting) -> Clip:
    height, width = setting.size
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0.4, 0.3, 0.9, 0.9]])
    boxes *= torch.tensor([width, height, width, height])
    truth = Instances(setting.size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    return {
        "images": {frame: setting.image(frame) for frame in (5, 3, 8)},
        "instances": {5: truth},
        "video_id": 1,
        "frame_id": 5,
        "reference_frame_ids": [3, 8],
    }


def resident_bytes() -> int:
    """What this process holds now."""
    return _memory_status("VmRSS")


def _peak_resident_bytes() -> int:
    return _memory_status("VmHWM")


def _memory_status(name: str) -> int:
    # Not getrusage: its peak is, in a new process, that of the process that started it.
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    raise DataError("memory is measured by /proc/self/status, which is not here; add --quick")

"""Which clips come in which iteration of a training, so that a resumed one goes on exactly.

The order follows from a seed and the number of iterations done, and from nothing else: the loader's
workers are given clips to make and don't choose them, and grouping by orientation goes by what the
annotations say, not by which clip is ready first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import Sampler

from clab_d2.errors import ConfigError

T = TypeVar("T")
Record = dict[str, Any]
#: From a seed, the endless stream of clips that all ranks together go through.
Stream = Callable[[int], Iterable[int]]


class ClipOrder(Sampler[int]):
    """The clips of this rank, batch after batch, without end.

    The stream's clips are dealt out to the ranks in turn. A rank puts them together to batches of
    one orientation, as Detectron2's ``AspectRatioGroupedDataset`` does: a clip waits until as many
    of its kind have come as make a batch.

    Args:
        stream: gives the clips of all ranks together; the same on every rank.
        clips_per_iteration: the batch of all ranks together, a multiple of ``world_size``.
        tall: for each clip, whether it is not wider than high; None doesn't group.
        seed: of the stream; by default one that all ranks draw together.
        rank, world_size: by default those of this process.
    """

    def __init__(
        self,
        stream: Stream,
        clips_per_iteration: int,
        tall: Sequence[bool] | None = None,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._stream = stream
        self._clips_per_iteration = clips_per_iteration
        self._tall = tall
        self._seed = comm.shared_random_seed() if seed is None else seed
        self._rank = comm.get_rank() if rank is None else rank
        self._world_size = comm.get_world_size() if world_size is None else world_size
        self.batch_size = clips_per_iteration // self._world_size
        # Iterations done, with which batch and by how many ranks.
        self._done: list[dict[str, int]] = []

    def state_after(self, iterations: int) -> dict[str, Any]:
        """What :meth:`load_state` needs to go on after this training's first ``iterations``."""
        more = iterations - sum(part["iterations"] for part in self._done)
        parts = [*map(dict, self._done), self._part(more)]
        if len(parts) > 1 and _same_ranks(parts[-2], parts[-1]):
            parts[-2:] = [self._part(parts[-2]["iterations"] + more)]
        return {"seed": self._seed, "done": parts}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where another training stopped, with as many ranks or with others."""
        self._seed = state["seed"]
        if "done" in state:
            self._done = [dict(part) for part in state["done"]]
        else:  # of version 0.1, whose order was another: as many clips have been seen
            self._done = [self._part(state["clips_seen"] // self._clips_per_iteration)]

    def _part(self, iterations: int) -> dict[str, int]:
        return {
            "world_size": self._world_size,
            "clips_per_iteration": self._clips_per_iteration,
            "iterations": iterations,
        }

    def __iter__(self) -> Iterator[int]:
        clips = iter(self._stream(self._seed))
        done = 0
        for number, part in enumerate(self._done):
            if number == len(self._done) - 1 and _same_ranks(part, self._part(0)):
                done = part["iterations"]  # nothing but to go on
            else:
                clips = self._left_after(clips, **part)
        own = itertools.islice(clips, self._rank, None, self._world_size)
        yield from itertools.islice(self._batched(own), done * self.batch_size, None)

    def _batched(self, clips: Iterable[int]) -> Iterator[int]:
        waiting = _Waiting[int](self.batch_size)
        for clip in clips:
            yield from waiting.add(clip, self._is_tall(clip))

    def _left_after(
        self, clips: Iterator[int], world_size: int, clips_per_iteration: int, iterations: int
    ) -> Iterator[int]:
        """The clips that ``world_size`` ranks leave of a stream, in its order."""
        if not iterations:
            return clips
        ranks = [
            _Waiting[tuple[int, int]](clips_per_iteration // world_size) for _ in range(world_size)
        ]
        due = [iterations] * world_size
        left: list[tuple[int, int]] = []
        for place, clip in enumerate(clips):
            rank = place % world_size
            if not due[rank]:
                left.append((place, clip))
            elif ranks[rank].add((place, clip), self._is_tall(clip)):
                due[rank] -= 1
                if not any(due):
                    break
        for rank in ranks:
            left += rank.waiting
        return itertools.chain((clip for _, clip in sorted(left)), clips)

    def _is_tall(self, clip: int) -> bool:
        return self._tall is not None and self._tall[clip]


class _Waiting(Generic[T]):
    """Clips of each orientation that wait for others to make a batch with."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._wide: list[T] = []
        self._tall: list[T] = []

    def add(self, clip: T, tall: bool) -> list[T]:
        """The batch that this clip completes, else an empty list."""
        kind = self._tall if tall else self._wide
        kind.append(clip)
        if len(kind) < self._batch_size:
            return []
        batch = list(kind)
        kind.clear()
        return batch

    @property
    def waiting(self) -> list[T]:
        return self._wide + self._tall


def _same_ranks(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[key] == other[key] for key in ("world_size", "clips_per_iteration"))


# ---------------------------------------------------------------- streams


class _Undivided:
    """Makes a Detectron2 sampler give what it would share out among the ranks."""

    def __iter__(self) -> Iterator[int]:
        return self._infinite_indices()  # type: ignore[attr-defined]


class _AllClips(_Undivided, TrainingSampler):
    pass


class _SubsetOfClips(_Undivided, RandomSubsetTrainingSampler):
    pass


class _RepeatedClips(_Undivided, RepeatFactorTrainingSampler):
    pass


def _all(cfg: CfgNode, records: Sequence[Record]) -> Stream:
    return lambda seed: _AllClips(len(records), seed=seed)


def _subset(cfg: CfgNode, records: Sequence[Record]) -> Stream:
    ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
    if not 0 < ratio <= 1 or int(len(records) * ratio) < 1:
        raise ConfigError(
            f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}; it must be at most 1 and leave at least "
            f"one of the {len(records)} key frames"
        )
    # One seed for both, so that the same subset comes after a resume.
    return lambda seed: _SubsetOfClips(len(records), ratio, seed_shuffle=seed, seed_subset=seed)


def _rare_classes(cfg: CfgNode, records: Sequence[Record]) -> Stream:
    return _repeated(_factors_of_classes(cfg, records))


def _weighted(cfg: CfgNode, records: Sequence[Record]) -> Stream:
    return _repeated(_factors_of_datasets(cfg, records))


def _weighted_and_rare_classes(cfg: CfgNode, records: Sequence[Record]) -> Stream:
    datasets = itertools.groupby(records, key=lambda record: record["dataset_name"])
    classes = torch.cat([_factors_of_classes(cfg, list(frames)) for _, frames in datasets])
    factors = classes * _factors_of_datasets(cfg, records)
    return _repeated(factors / factors.min())


def _factors_of_classes(cfg: CfgNode, records: Sequence[Record]) -> torch.Tensor:
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )


def factors_of_datasets(cfg: CfgNode) -> dict[str, float]:
    """``DATASETS.TRAIN_REPEAT_FACTOR`` by dataset.

    Raises:
        ConfigError: it names another dataset than those of ``DATASETS.TRAIN``, or no factor.
    """
    entries = cfg.DATASETS.TRAIN_REPEAT_FACTOR
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise ConfigError(
                f"DATASETS.TRAIN_REPEAT_FACTOR: {entry!r} is not [dataset, factor]; write "
                "DATASETS.TRAIN_REPEAT_FACTOR \"[['mine', 2.0]]\""
            )
    factors = dict(entries)
    for name, factor in factors.items():
        if (
            name not in cfg.DATASETS.TRAIN
            or not isinstance(factor, int | float)
            or not factor > 0
        ):
            raise ConfigError(
                f"DATASETS.TRAIN_REPEAT_FACTOR gives {name!r} {factor}; name datasets of "
                "DATASETS.TRAIN, and factors above 0"
            )
    return {name: float(factor) for name, factor in factors.items()}


def _factors_of_datasets(cfg: CfgNode, records: Sequence[Record]) -> torch.Tensor:
    factors = factors_of_datasets(cfg)
    return torch.tensor([factors.get(record["dataset_name"], 1.0) for record in records])


def _repeated(factors: torch.Tensor) -> Stream:
    return lambda seed: _RepeatedClips(factors, seed=seed)


#: Values of ``DATALOADER.SAMPLER_TRAIN``.
TRAINING_SAMPLERS: dict[str, Callable[[CfgNode, Sequence[Record]], Stream]] = {
    "TrainingSampler": _all,
    "RandomSubsetTrainingSampler": _subset,
    "RepeatFactorTrainingSampler": _rare_classes,
    "WeightedTrainingSampler": _weighted,
    "WeightedCategoryTrainingSampler": _weighted_and_rare_classes,
}


def build_clip_order(cfg: CfgNode, records: Sequence[Record]) -> ClipOrder:
    """The order that a config asks for, over key frames of ``DATASETS.TRAIN``.

    ``DATALOADER.SAMPLER_TRAIN`` may have any of Detectron2's values (:data:`TRAINING_SAMPLERS`).

    Args:
        cfg: the config.
        records: the key frames, those of one dataset together.

    Raises:
        ConfigError: the sampler is unknown or leaves no frame.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in TRAINING_SAMPLERS:
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN is {name!r}; choose one of {', '.join(TRAINING_SAMPLERS)}"
        )
    tall = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        tall = [record["width"] <= record["height"] for record in records]
    return ClipOrder(TRAINING_SAMPLERS[name](cfg, records), cfg.SOLVER.IMS_PER_BATCH, tall)

"""The order of training clips: Detectron2's, and continued exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from hypothesis import given
from hypothesis import strategies as st

from clab_d2 import get_clab_cfg
from clab_d2.data.training_order import TRAINING_SAMPLERS, ClipOrder, build_clip_order
from clab_d2.errors import ConfigError

Record = dict[str, Any]


def shuffled(size: int) -> Callable[[int], TrainingSampler]:
    return lambda seed: TrainingSampler(size, seed=seed)


def order(
    size: int, clips: int, rank: int = 0, world_size: int = 1, tall: list[bool] | None = None
) -> ClipOrder:
    return ClipOrder(shuffled(size), clips, tall, seed=3, rank=rank, world_size=world_size)


def first(clips: ClipOrder, batches: int) -> list[list[int]]:
    stream = iter(clips)
    return [list(itertools.islice(stream, clips.batch_size)) for _ in range(batches)]


orientations = st.lists(st.booleans(), min_size=1, max_size=12)


@given(orientations, st.integers(1, 4), st.integers(1, 3), st.data())
def test_batches_are_detectron2s(
    tall: list[bool], per_rank: int, world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    stream = iter(TrainingSampler(len(tall), seed=3))
    share = itertools.islice(stream, rank, None, world_size)
    items = ({"clip": c, "width": 2, "height": 3 if tall[c] else 1} for c in share)
    theirs = itertools.islice(AspectRatioGroupedDataset(items, per_rank), 8)
    ours = order(len(tall), per_rank * world_size, rank, world_size, tall)
    assert first(ours, 8) == [[item["clip"] for item in batch] for batch in theirs]


@given(orientations, st.integers(1, 4), st.integers(1, 3), st.booleans(), st.data())
def test_goes_on_where_it_stopped(
    tall: list[bool], per_rank: int, world_size: int, grouped: bool, data: st.DataObject
) -> None:
    """After one stop and after two, by what rank 0 has kept for all."""
    rank = data.draw(st.integers(0, world_size - 1))
    stops = data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))

    def make(of_rank: int = rank) -> ClipOrder:
        groups = tall if grouped else None
        return order(len(tall), per_rank * world_size, of_rank, world_size, groups)

    whole = first(make(), sum(stops) + 6)
    kept = make(0).state_after(stops[0])
    resumed = make()
    resumed.load_state(kept)
    assert first(resumed, 6) == whole[stops[0] : stops[0] + 6]
    main = make(0)
    main.load_state(kept)
    again = make()
    again.load_state(main.state_after(sum(stops)))
    assert first(again, 6) == whole[sum(stops) :]


class _Count:
    """Clips 0, 1, 2, ...: each comes once, so that none can be taken for another."""

    def __call__(self, seed: int) -> Iterator[int]:
        return itertools.count()


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 7)), max_size=4),
    st.lists(st.booleans(), min_size=400, max_size=400),
)
def test_other_numbers_of_processes_repeat_and_skip_nothing(
    runs: list[tuple[int, int]], tall: list[bool]
) -> None:
    """12 clips an iteration in each run, however many processes share them."""
    tall = tall + [True, False, False] * 400
    seen: list[int] = []
    done, state = 0, None
    # The last one is long enough for all that waited for others of its orientation.
    for world_size, iterations in [*runs, (2, 80)]:
        ranks = [ClipOrder(_Count(), 12, tall, 0, r, world_size) for r in range(world_size)]
        for rank in ranks:
            if state is not None:
                rank.load_state(state)
            for batch in first(rank, iterations):
                seen += batch
                assert len({tall[clip] for clip in batch}) == 1
        done += iterations
        state = ranks[0].state_after(done)
    assert len(seen) == len(set(seen)) == 12 * done
    assert set(range(400)) <= set(seen)


@given(st.integers(1, 30), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 9))
def test_without_grouping_an_iterations_clips_do_not_depend_on_the_processes(
    size: int, world_size: int, stop: int
) -> None:
    whole = first(order(size, 12), stop + 5)
    state = order(size, 12).state_after(stop)
    shares = []
    for rank in range(world_size):
        resumed = order(size, 12, rank, world_size)
        resumed.load_state(state)
        shares.append(first(resumed, 5))
    together = [sorted(itertools.chain(*batches)) for batches in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in whole[stop:]]


def test_state_of_version_0_1() -> None:
    resumed = order(9, 2)
    resumed.load_state({"seed": 3, "clips_seen": 8})
    assert first(resumed, 3) == first(order(9, 2), 7)[4:]


# ---------------------------------------------------------------- by config


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_clab_cfg()
    cfg.DATASETS.TRAIN = ("one", "two")
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


def records(numbers: tuple[int, int] = (30, 10)) -> list[Record]:
    """Of two datasets; every tenth frame has an object of a class that no other has."""
    return [
        {
            "dataset_name": name,
            "width": 4,
            "height": 3,
            "annotations": [{"category_id": int(frame % 10 == 0)}],
        }
        for name, number in zip(("one", "two"), numbers, strict=True)
        for frame in range(number)
    ]


def stream(cfg: CfgNode, number: int, sampler: str) -> list[int]:
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    make = TRAINING_SAMPLERS[sampler](cfg, records())
    return list(itertools.islice(make(5), number))


def test_streams_are_detectron2s(cfg: CfgNode) -> None:
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.1
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records(), 0.4)
    assert factors.max() == 2.0
    theirs = {
        "TrainingSampler": TrainingSampler(40, seed=5),
        "RandomSubsetTrainingSampler": RandomSubsetTrainingSampler(
            40, 0.1, seed_shuffle=5, seed_subset=5
        ),
        "RepeatFactorTrainingSampler": RepeatFactorTrainingSampler(factors, seed=5),
    }
    for name, sampler in theirs.items():
        assert stream(cfg, 99, name) == list(itertools.islice(sampler, 99)), name


def test_a_subset_stays_one(cfg: CfgNode) -> None:
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.1
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    training = build_clip_order(cfg, records())
    clips = {clip for batch in first(training, 30) for clip in batch}
    assert len(clips) == 4
    resumed = build_clip_order(cfg, records())
    resumed.load_state(training.state_after(7))
    assert first(resumed, 20) == first(training, 27)[7:]


def test_weights_of_datasets(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["two", 3.0]]
    clips = stream(cfg, 60, "WeightedTrainingSampler")
    assert torch.bincount(torch.tensor(clips)).tolist() == [1] * 30 + [3] * 10
    # Of ten frames one has the rare class, whose factor is sqrt(0.4 / 0.1).
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    clips = stream(cfg, 30 + 3 + 3 * (10 + 1), "WeightedCategoryTrainingSampler")
    assert torch.bincount(torch.tensor(clips)).tolist() == ([2] + [1] * 9) * 3 + [6] + [3] * 9


@pytest.mark.parametrize("sampler", list(TRAINING_SAMPLERS))
@pytest.mark.parametrize("grouped", [True, False])
def test_every_sampler_goes_on(cfg: CfgNode, sampler: str, grouped: bool) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.2
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouped
    training = build_clip_order(cfg, records())
    resumed = build_clip_order(cfg, records())
    resumed.load_state(training.state_after(33))
    assert first(resumed, 20) == first(training, 53)[33:]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["DATALOADER.SAMPLER_TRAIN", "Sampler"], ["SAMPLER_TRAIN", "'Sampler'", "RandomS"]),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler",
          "DATALOADER.RANDOM_SUBSET_RATIO", "0.02"], ["RANDOM_SUBSET_RATIO is 0.02", "40"]),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler",
          "DATALOADER.RANDOM_SUBSET_RATIO", "1.5"], ["RANDOM_SUBSET_RATIO is 1.5"]),
        (["DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler",
          "DATASETS.TRAIN_REPEAT_FACTOR", "[['three', 2.0]]"], ["TRAIN_REPEAT_FACTOR", "'three'"]),
        (["DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler",
          "DATASETS.TRAIN_REPEAT_FACTOR", "[['one', 0.0]]"], ["TRAIN_REPEAT_FACTOR", "above 0"]),
    ],
)  # fmt: skip
def test_mistakes(cfg: CfgNode, options: list[str], parts: list[str]) -> None:
    cfg.merge_from_list(options)
    with pytest.raises(ConfigError) as caught:
        build_clip_order(cfg, records())
    assert all(part in str(caught.value) for part in parts), caught.value

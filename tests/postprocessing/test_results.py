"""Post-processing of result lists: the videos of a dataset, each on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clab_d2 import get_clab_cfg
from clab_d2.checkpoint.portable_config import config_from_plain
from clab_d2.engine import validate_config
from clab_d2.errors import ConfigError, DataError
from clab_d2.evaluation import COCOResults, GroundTruth
from clab_d2.postprocessing import (
    PostProcessResults,
    SeqNMS,
    SmoothScores,
    VideoDetections,
    build_postprocessing,
    seq_nms,
)


def dataset(
    lengths: tuple[int, ...] = (4, 3), every: int = 1, shots: list[int] | None = None
) -> GroundTruth:
    """Videos of which every so many frames are annotated; ids rise against the order of frames.

    ``shots`` are those of the first.
    """
    images = [
        {"id": 1000 * v + 100 - f, "video_id": v, "frame_id": f, "annotated": f % every == 0}
        for v, length in enumerate(lengths, 1)
        for f in range(length)
    ]
    content = {"categories": [{"id": 1, "name": "cat"}], "images": images, "annotations": []}
    videos = [] if shots is None else [{"id": 1, "name": "film", "shots": shots}]
    return GroundTruth.from_json({**content, "videos": videos}, "truth.json")


def results_of(*entries: tuple[int, int, float]) -> COCOResults:
    """The same box at each video, frame and score."""
    video, frame, score = (np.array(column) for column in zip(*entries, strict=True))
    box = np.tile([1.0, 2.0, 10.0, 10.0], (len(entries), 1))
    return COCOResults(1000 * video + 100 - frame, np.ones_like(video), box, score)


def test_videos_are_apart_and_frames_go_by_their_number() -> None:
    results = results_of((1, 1, 0.9), (2, 2, 0.2), (1, 0, 0.3), (2, 1, 0.4), (2, 0, 0.6))
    processed = PostProcessResults(SeqNMS())(results, dataset())
    assert processed.score.tolist() == pytest.approx([0.6, 0.4, 0.6, 0.4, 0.4])
    assert processed.image_id.tolist() == results.image_id.tolist()


def test_equals_each_video_by_itself() -> None:
    rng = np.random.default_rng(0)
    truth = dataset((30, 1, 20))
    image_id = rng.choice(truth.image_ids, 400)
    corner, size = rng.integers(0, 8, (400, 2)), rng.integers(4, 8, (400, 2))
    results = COCOResults(
        image_id, rng.integers(1, 3, 400), np.hstack([corner, size]) * 1.0, rng.uniform(0, 1, 400)
    )
    processed = PostProcessResults(SeqNMS())(results, truth)
    expected = []
    for video in (1, 2, 3):
        rows = np.flatnonzero(image_id // 1000 == video)
        part = VideoDetections(
            100 - image_id[rows] % 1000,
            np.hstack([corner, corner + size])[rows],
            results.score[rows],
            results.category_id[rows],
        )
        rescored = seq_nms(part)
        expected += zip(rows[rescored.rows].tolist(), rescored.score.tolist(), strict=True)
    expected.sort()
    assert processed.score.tolist() == [score for _, score in expected]
    assert processed.image_id.tolist() == [int(image_id[row]) for row, _ in expected]


def test_shots_are_apart() -> None:
    results = results_of((1, 1, 0.9), (1, 2, 0.3), (1, 3, 0.5))
    assert PostProcessResults(SeqNMS())(results, dataset()).score == pytest.approx([1.7 / 3] * 3)
    film = dataset(shots=[0, 2])
    assert PostProcessResults(SeqNMS())(results, film).score.tolist() == [0.9, 0.4, 0.4]
    with pytest.raises(DataError, match=r"malformed \(shots must be first frames"):
        dataset(shots=[2, 0])


def test_neighbours_are_frames_that_were_looked_at() -> None:
    results = results_of((1, 0, 0.9), (1, 3, 0.3))
    assert PostProcessResults(SeqNMS())(results, dataset(every=3)).score.tolist() == [0.6, 0.6]
    assert PostProcessResults(SeqNMS())(results, dataset()).score.tolist() == [0.9, 0.3]


def test_what_is_of_no_video_stays_as_it_is() -> None:
    results = results_of((1, 0, 0.9), (7, 0, 0.5), (1, 1, 0.3), (1, 2, np.nan))
    processed = PostProcessResults(SmoothScores())(results, dataset())
    np.testing.assert_allclose(processed.score, [0.6, 0.5, 0.6, np.nan])


def test_what_cannot_be_used_is_told() -> None:
    with pytest.raises(DataError, match="a detection's score is negative"):
        PostProcessResults(SeqNMS())(results_of((1, 0, -1.5)), dataset())
    content = {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": 1100, "video_id": 1}, {"id": 1099, "video_id": 1}],
        "annotations": [],
    }
    unnumbered = GroundTruth.from_json(content, "truth.json")
    with pytest.raises(DataError, match=r"truth\.json: a frame of a video has no frame_id"):
        PostProcessResults(SeqNMS())(results_of((1, 0, 0.5)), unnumbered)


def test_built_by_the_config(repo_root: Path) -> None:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"))
    assert build_postprocessing(cfg) is None
    cfg.TEST.POSTPROCESS.NAME = "seq_nms"
    cfg.TEST.POSTPROCESS.SUPPRESS_IOU = 0.4
    cfg.TEST.POSTPROCESS.RESCORING = "max"
    assert vars(build_postprocessing(cfg)) == vars(SeqNMS(0.5, 0.4, "max"))
    cfg.TEST.POSTPROCESS.NAME = "smooth_scores"
    cfg.TEST.POSTPROCESS.WINDOW = 9
    assert vars(build_postprocessing(cfg)) == vars(SmoothScores(0.5, 9))
    cfg.TEST.POSTPROCESS.NAME = "seqnms"
    # Other tests of this process may have registered more.
    unknown = r"NAME 'seqnms' is not registered; choose one of .*seq_nms"
    with pytest.raises(ConfigError, match=unknown):
        validate_config(cfg)


def test_a_stranger_s_file_may_name_a_method_only() -> None:
    tree = {"TEST": {"POSTPROCESS": {"NAME": "seq_nms", "WINDOW": 7}}}
    assert config_from_plain(tree, "f.pth").TEST.POSTPROCESS.WINDOW == 7
    for name, value in (("NAME", "../x.py"), ("LINK_IOU", "0.5"), ("OTHER", 1)):
        with pytest.raises(DataError, match=f"POSTPROCESS.{name}"):
            config_from_plain({"TEST": {"POSTPROCESS": {name: value}}}, "f.pth")

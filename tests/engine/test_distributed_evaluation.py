"""Evaluation in two processes (gloo) of a real detector: that of one, to the last digit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.modeling import build_model
from detectron2.utils import comm
from tiny_videos import make_tiny_videos

from clab_d2.data import build as build_module
from clab_d2.data import register_datasets_from_config
from clab_d2.engine import Trainer
from clab_d2.engine.launch import load_config

# Lengths of each dataset's videos -> frames on each of two processes
DATASETS = {
    "very_different": ((17, 1, 2, 9, 3), (17, 15)),
    "one_video": ((5,), (5, 0)),
}


def _evaluate(cfg: CfgNode, weights: str, output: str) -> None:
    """Evaluate all of ``DATASETS.TEST`` into ``output``; note how many frames came here."""
    torch.set_num_threads(1)
    register_datasets_from_config(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = output
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(torch.load(weights))
    shares: dict[str, int] = {}
    whole = build_module.VideoSampler

    def noting(video_ids: list[int]) -> build_module.VideoSampler:
        sampler = whole(video_ids)
        shares[list(DATASETS)[len(shares)]] = len(sampler)
        return sampler

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "VideoSampler", noting)
        results = Trainer.test(cfg, model)
    Path(output).mkdir(parents=True, exist_ok=True)
    name = f"rank{comm.get_rank()}_of_{comm.get_world_size()}.json"
    (Path(output) / name).write_text(json.dumps({"shares": shares, "results": str(results)}))


def test_two_processes_evaluate_as_one(repo_root: Path, tmp_path: Path) -> None:
    entries = []
    for name, (lengths, _) in DATASETS.items():
        made = make_tiny_videos(tmp_path / name, lengths)
        entries.append([name, str(made.json_file), str(made.image_root)])
    options = ["DATASETS.VID", str(entries), "DATASETS.TEST", str(tuple(DATASETS))]
    options += ["DATASETS.TRAIN", "()", "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"]
    options += ["TEST.KEY_FRAMES_PER_BATCH", "2"]
    # Untrained, so every score is low; there shall be many detections to compare.
    options += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_config(str(repo_root / "configs/quick_schedules/clab_quick.yaml"), options)
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(build_model(cfg).state_dict(), weights)

    threads = torch.get_num_threads()
    try:
        _evaluate(cfg, str(weights), str(tmp_path / "one"))
    finally:
        torch.set_num_threads(threads)
    launch(_evaluate, 2, dist_url="auto", args=(cfg, str(weights), str(tmp_path / "two")))

    one = json.loads((tmp_path / "one" / "rank0_of_1.json").read_text())
    main, other = (
        json.loads((tmp_path / "two" / f"rank{rank}_of_2.json").read_text()) for rank in (0, 1)
    )
    for name, (lengths, shares) in DATASETS.items():
        assert one["shares"][name] == sum(lengths)
        assert (main["shares"][name], other["shares"][name]) == shares, "balanced by frames"
        files = [tmp_path / n / "inference" / name / "predictions.json" for n in ("one", "two")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert len(json.loads(files[0].read_text())) > 5 * sum(lengths)
        metrics = [file.with_name("metrics.json") for file in files]
        assert metrics[0].read_bytes() == metrics[1].read_bytes()
    assert main["results"] == one["results"]
    assert re.search(r"'AP50': \d", one["results"])

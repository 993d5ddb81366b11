"""The schedule, fitted to a number of processes and compared with a checkpoint's."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from clab_d2 import get_clab_cfg
from clab_d2.engine.schedule import Schedule, scale_schedule
from clab_d2.errors import ConfigError


def imagenet_vid() -> CfgNode:
    cfg = get_clab_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.MAX_ITER = 48769
    cfg.SOLVER.STEPS = (13934, 34835)
    cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS = 25000
    cfg.freeze()
    return cfg


def test_schedule_scales_with_the_number_of_processes() -> None:
    cfg = imagenet_vid()
    scaled = scale_schedule(cfg, 2)
    assert scaled.is_frozen()
    assert scaled.SOLVER.IMS_PER_BATCH == 4
    assert pytest.approx(0.0025) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER == 4 * 48769
    assert scaled.SOLVER.STEPS == (4 * 13934, 4 * 34835)
    assert scaled.MODEL.CONTRASTIVE.WEIGHT.STEPS == 100000
    assert scaled.SOLVER.REFERENCE_WORLD_SIZE == 2
    assert scale_schedule(scaled, 2) is scaled
    assert cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS == 25000


@given(st.integers(1, 4096), st.integers(1, 100), st.integers(0, 100), st.integers(1, 100))
def test_no_period_falls_to_never(
    processes: int, checkpoint: int, evaluation: int, steps: int
) -> None:
    cfg = get_clab_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 1
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.CHECKPOINT_PERIOD = checkpoint
    cfg.TEST.EVAL_PERIOD = evaluation
    cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS = steps
    scaled = scale_schedule(cfg, processes)
    assert max(1, round(checkpoint / processes)) == scaled.SOLVER.CHECKPOINT_PERIOD
    assert (scaled.TEST.EVAL_PERIOD > 0) == (evaluation > 0), "0 is never, as asked for"
    assert scaled.MODEL.CONTRASTIVE.WEIGHT.STEPS >= 1
    assert scaled.SOLVER.MAX_ITER >= 1
    assert scaled.SOLVER.LOG_PERIOD == cfg.SOLVER.LOG_PERIOD >= 1


def test_what_can_not_be_scaled() -> None:
    cfg = imagenet_vid().clone()
    cfg.defrost()
    cfg.SOLVER.STEPS = (10, 12)
    with pytest.raises(ConfigError, match=r"SOLVER\.STEPS \(10, 12\) become \(1, 1\) for 80"):
        scale_schedule(cfg, 80)
    cfg.SOLVER.IMS_PER_BATCH = 12
    with pytest.raises(ConfigError, match=r"SOLVER\.IMS_PER_BATCH 12"):
        scale_schedule(cfg, 2)


def check(saved: Schedule, now: Schedule) -> None:
    now.check_resumes(saved.state_dict(), "out/model_0000004.pth")


def test_resuming_with_other_processes() -> None:
    cfg = imagenet_vid()
    with pytest.raises(ConfigError) as caught:
        check(Schedule.of(cfg, 8), Schedule.of(cfg, 4))
    message = str(caught.value)
    assert message.startswith("out/model_0000004.pth: trained with 16 clip(s) an iteration by 8 ")
    assert "resume with 8 (--num-gpus" in message
    assert "SOLVER.REFERENCE_WORLD_SIZE 0 SOLVER.IMS_PER_BATCH 16" in message
    # ... which is the same schedule, on 4, and again on 8.
    cfg.defrost()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    check(Schedule.of(imagenet_vid(), 8), Schedule.of(cfg, 4))
    check(Schedule.of(cfg, 4), Schedule.of(imagenet_vid(), 8))


def test_a_batch_made_equal_by_hand_is_still_another_schedule() -> None:
    """Its learning rate and iterations are scaled."""
    cfg = imagenet_vid().clone()
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 32
    assert Schedule.of(cfg, 4).clips_per_iteration == 16
    with pytest.raises(ConfigError, match="two schedules"):
        check(Schedule.of(imagenet_vid(), 8), Schedule.of(cfg, 4))

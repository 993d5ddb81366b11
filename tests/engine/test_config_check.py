from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from clab_d2 import get_clab_cfg
from clab_d2.engine import load_config, one_line, validate_config
from clab_d2.errors import ConfigError, DataError


@pytest.fixture
def cfg(repo_root: Path) -> CfgNode:
    cfg = get_clab_cfg()
    cfg.merge_from_file(str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_config_without_contradictions(cfg: CfgNode) -> None:
    validate_config(cfg)


@pytest.mark.parametrize(
    ("options", "key", "remedy"),
    [
        (["MODEL.META_ARCHITECTURE", "Nope"], "MODEL.META_ARCHITECTURE", "TemporalRCNN"),
        (["MODEL.BACKBONE.NAME", "nope"], "MODEL.BACKBONE.NAME", "build_resnet_dc5_backbone"),
        (["MODEL.ROI_HEADS.NAME", "nope"], "MODEL.ROI_HEADS.NAME", "TemporalROIHeads"),
        (["MODEL.NECK.IN_FEATURE", "res6"], "MODEL.NECK.IN_FEATURE", "res5"),
        (["MODEL.RPN.IN_FEATURES", "['p3']"], "MODEL.RPN.IN_FEATURES", "c5"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['res5']"], "MODEL.ROI_HEADS.IN_FEATURES", "c5"),
        (["MODEL.CONTRASTIVE.IN_FEATURE", "res5"], "MODEL.CONTRASTIVE.IN_FEATURE", "res4"),
        (["MODEL.CONTRASTIVE.TEMPERATURE", "0.0"], "MODEL.CONTRASTIVE.TEMPERATURE", "positive"),
        (["MODEL.CONTRASTIVE.WEIGHT.SCHEDULE", "step"], "WEIGHT.SCHEDULE", "cosine"),
        (["MODEL.CONTRASTIVE.WEIGHT.STEPS", "0"], "WEIGHT.STEPS", "at least 1"),
        (["MODEL.SELSA.NUM_HEADS", "5"], "MODEL.SELSA.NUM_HEADS", "change one"),
        (["MODEL.TEMPORAL_ROI_ALIGN.NUM_MOST_SIMILAR", "0"], "NUM_MOST_SIMILAR", "at least 1"),
        (["TEST.REFERENCES.SAMPLING", "random"], "TEST.REFERENCES.SAMPLING", "adaptive"),
        (["TEST.REFERENCES.NUM", "0"], "TEST.REFERENCES.NUM", "at least 1"),
        (["TEST.REFERENCES.SAMPLING", "causal", "TEST.REFERENCES.STRIDE", "0"], "STRIDE is 0", "1"),
        (["TEST.REFERENCES.SAMPLING", "fixed", "TEST.REFERENCES.NUM", "3"], "NUM is 3", "even"),
        (["TEST.KEY_FRAMES_PER_BATCH", "0"], "TEST.KEY_FRAMES_PER_BATCH", "at least 1"),
        (["INPUT.REFERENCES.NUM", "0"], "INPUT.REFERENCES.NUM", "at least 1"),
        (["INPUT.REFERENCES.RANGE", "0"], "INPUT.REFERENCES.RANGE", "at least 1"),
        (["INPUT.RESIZE_BACKEND", "magick"], "INPUT.RESIZE_BACKEND", "opencv"),
        (["MODEL.BACKBONE.DROP_PATH", "0.1"], "MODEL.BACKBONE.DROP_PATH", "set it 0"),
        (["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DROP_PATH", "1.0"],
         "MODEL.BACKBONE.DROP_PATH", "less than 1"),
        (["SOLVER.LAYER_DECAY", "0.0"], "SOLVER.LAYER_DECAY", "above 0"),
        (["SOLVER.BACKBONE_MULTIPLIER", "0.0"], "SOLVER.BACKBONE_MULTIPLIER", "FREEZE_AT"),
        (["INPUT.FORMAT", "YUV"], "INPUT.FORMAT", "RGB"),
        (["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER", "AdamW"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "all"], "CLIP_TYPE", "full_model"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD", "at least 1"),
        (["SOLVER.LOG_PERIOD", "0"], "SOLVER.LOG_PERIOD", "at least 1"),
        (["SOLVER.EMA_DECAY", "1.0"], "SOLVER.EMA_DECAY", "less than 1"),
        (["SOLVER.AMP.ENABLED", "True"], "SOLVER.AMP.ENABLED", "GPU"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "4"], "REFERENCE_WORLD_SIZE", "multiple"),
        (["DATALOADER.SAMPLER_TRAIN", "Nope"], "DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
        (
            ["DATASETS.TRAIN", "('mine',)", "DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler",
             "DATASETS.TRAIN_REPEAT_FACTOR", "[['none', 2.0]]"],
            "DATASETS.TRAIN_REPEAT_FACTOR", "DATASETS.TRAIN,",
        ),
        (
            ["DATASETS.TRAIN", "('mine',)", "DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler",
             "DATASETS.TRAIN_REPEAT_FACTOR", "['mine', 2.0]"],
            "DATASETS.TRAIN_REPEAT_FACTOR", "[['mine', 2.0]]",
        ),
        (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "square"], "CROP.TYPE", "absolute"),
        (["INPUT.RANDOM_FLIP", "both"], "INPUT.RANDOM_FLIP", "horizontal"),
        (["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES", "pixels"),
        (["MODEL.AGGREGATION.MAPS", "Nope"], "MODEL.AGGREGATION.MAPS", "--import"),
        (["MODEL.CONTRASTIVE.LOSS", "Nope"], "MODEL.CONTRASTIVE.LOSS", "ClipContrast"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "META_ARCHITECTURE", "TemporalRCNN"),
        # keys of Detectron2's that would be accepted and change nothing
        (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON", "leave it out"),
        (["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON", "leave it out"),
        (["MODEL.LOAD_PROPOSALS", "True"], "MODEL.LOAD_PROPOSALS", "leave it out"),
        (["DATASETS.PROPOSAL_FILES_TRAIN", "('a',)"], "PROPOSAL_FILES_TRAIN", "leave it out"),
        (["DATASETS.PROPOSAL_FILES_TEST", "('a',)"], "PROPOSAL_FILES_TEST", "leave it out"),
        (["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"], "TRAIN_ON_PRED_BOXES", "leave it"),
        (
            ["MODEL.BACKBONE.FIX_BN_STATISTICS", "True", "MODEL.RESNETS.NORM", "SyncBN"],
            "FIX_BN_STATISTICS", "set it False",
        ),
    ],
)  # fmt: skip
def test_contradictions(cfg: CfgNode, options: list[str], key: str, remedy: str) -> None:
    cfg.merge_from_list(options)
    with pytest.raises(ConfigError) as caught:
        validate_config(cfg)
        build_model(cfg)  # a plug knows what its own numbers may be
    assert key in str(caught.value)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_single_frame_models_need_no_references(cfg: CfgNode) -> None:
    cfg.MODEL.AGGREGATION.ROI_FEATURES = cfg.MODEL.AGGREGATION.BOX_FEATURES = ""
    cfg.MODEL.CONTRASTIVE.ENABLED = False
    cfg.INPUT.REFERENCES.NUM = 0
    cfg.TEST.REFERENCES.NUM = 0
    validate_config(cfg)
    cfg.MODEL.CONTRASTIVE.ENABLED = True
    with pytest.raises(ConfigError, match=r"INPUT\.REFERENCES\.NUM is 0"):
        validate_config(cfg)


@pytest.mark.parametrize(
    ("yaml", "options", "part"),
    [
        ("SOLVER: {MAX_ITERS: 3}", [], "SOLVER.MAX_ITERS"),
        ("SOLVER: [", [], "not valid YAML"),
        ("_BASE_: missing.yaml", [], "missing.yaml"),
        ("", [], "no KEY: VALUE pairs"),
        ("!!python/object/apply:os.getcwd []", [], "not valid YAML"),
        ("VERSION: 2", ["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITERS"),
        ("VERSION: 2", ["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        ("VERSION: 2", ["SOLVER.MAX_ITER"], "pairs"),
    ],
)
def test_unreadable_configs(tmp_path: Path, yaml: str, options: list[str], part: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_config_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config-file"):
        load_config("", [])
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(str(tmp_path / "none.yaml"), [])


def test_one_line_of_an_error_in_a_data_worker() -> None:
    message = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 1\nclab_d2.errors.DataError: a.jpg: unreadable; fetch it\n'
    )
    assert one_line(DataError(message)) == "a.jpg: unreadable; fetch it"
    assert one_line(ValueError("one\n two")) == "one two"

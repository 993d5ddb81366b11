"""Every config key that clab_d2 adds to Detectron2's, with its default and what it does.

The defaults are those of the paper's ImageNet VID recipe wherever it has a value for them.
"""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode as CN

from clab_d2.errors import ConfigError

_extensions: dict[str, Callable[[CN], None]] = {}


def add_clab_config(cfg: CN) -> None:
    """Add clab_d2's keys to a Detectron2 config, in place.

    Args:
        cfg: a config made by :func:`detectron2.config.get_cfg`.
    """
    _add_data_keys(cfg)
    _add_model_keys(cfg)
    _add_solver_keys(cfg)
    _add_log_keys(cfg)


def get_clab_cfg() -> CN:
    """Return Detectron2's default config with clab_d2's keys and those of plug-ins added.

    Raises:
        ConfigError: a plug-in's function (:func:`extend_config`) fails.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_clab_config(cfg)
    for name, extend in _extensions.items():
        try:
            extend(cfg)
        except Exception as error:  # whatever a plug-in does
            raise ConfigError(
                f"{name}: adds no config keys but fails with {type(error).__name__}: {error}; "
                "correct it"
            ) from error
    return cfg


def extend_config(function: Callable[[CN], None]) -> Callable[[CN], None]:
    """Let a plug-in add keys of its own to every config; use it as a decorator.

    Each key gets its default, whose type values from YAML and the command line must have::

        @extend_config
        def add_my_keys(cfg):
            cfg.MODEL.MINE = CfgNode()
            cfg.MODEL.MINE.RATE = 0.5

    A tool sees them if it imports the plug-in (``--import``) before it reads its config.

    Args:
        function: changes, in place, a config that has Detectron2's keys and ours. A later one of
            the same module and name takes its place.

    Returns:
        ``function`` itself.
    """
    _extensions[f"{function.__module__}.{function.__qualname__}"] = function
    return function


def extensions() -> tuple[Callable[[CN], None], ...]:
    """The functions that plug-ins have given to :func:`extend_config` by now."""
    return tuple(_extensions.values())


def _add_data_keys(cfg: CN) -> None:
    # Datasets of one's own: [[name, CocoVID JSON, image root], ...]; the JSON gives their classes.
    # The image root holds frames or video files.
    cfg.DATASETS.VID = []

    # [[dataset of TRAIN, factor], ...]: how often its key frames come in each pass, where
    # DATALOADER.SAMPLER_TRAIN is "WeightedTrainingSampler" or "WeightedCategoryTrainingSampler".
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []

    # "pillow" (Detectron2's, antialiased) or "opencv" (bilinear, as the official release resizes).
    cfg.INPUT.RESIZE_BACKEND = "pillow"

    # Reference frames of a training clip. SAMPLING names a method; "random" draws NUM of them from
    # the RANGE frames on each side of the key frame.
    cfg.INPUT.REFERENCES = CN()
    cfg.INPUT.REFERENCES.SAMPLING = "random"
    cfg.INPUT.REFERENCES.NUM = 2
    cfg.INPUT.REFERENCES.RANGE = 9
    cfg.INPUT.REFERENCES.STRIDE = 1

    # Part of the key frames that DATALOADER.SAMPLER_TRAIN "RandomSubsetTrainingSampler" trains on.
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0

    # True: the first unreadable frame stops the job. False: it is left out, counted and reported.
    cfg.DATALOADER.STRICT = False

    # Reference frames at test. SAMPLING is
    #   "adaptive": NUM frames spread evenly over the whole video, drawn once;
    #   "fixed":    a window of NUM/2 frames before and NUM/2 after the key frame, STRIDE apart;
    #   "causal":   the NUM frames before the key frame, STRIDE apart (what a live stream has).
    cfg.TEST.REFERENCES = CN()
    cfg.TEST.REFERENCES.SAMPLING = "adaptive"
    cfg.TEST.REFERENCES.NUM = 14
    cfg.TEST.REFERENCES.STRIDE = 1
    cfg.TEST.REFERENCES.RANGE = 9
    # True: in videos (not in datasets, whose "shots" say where they are) cuts are looked for, and
    # references are drawn within the key frame's shot. Takes the extra "shots", and reads a video
    # once more. Post-processing and tracks end at cuts, too.
    cfg.TEST.REFERENCES.FIND_SHOTS = False

    # True: frames whose truth is unknown are key frames, too, so that predictions.json has their
    # detections. They count for nothing in the metrics.
    cfg.TEST.ALL_FRAMES = False

    # What is done to a video's detections once all are there (docs/evaluation.md); not in streams.
    # NAME: "" (nothing), "seq_nms" or "smooth_scores".
    cfg.TEST.POSTPROCESS = CN()
    cfg.TEST.POSTPROCESS.NAME = ""
    # Both: detections in neighbouring frames are linked above this IoU.
    cfg.TEST.POSTPROCESS.LINK_IOU = 0.5
    # seq_nms: what overlaps a sequence's member by more than SUPPRESS_IOU is dropped; the members
    # get the "average" or "max" of their scores.
    cfg.TEST.POSTPROCESS.SUPPRESS_IOU = 0.3
    cfg.TEST.POSTPROCESS.RESCORING = "average"
    # smooth_scores: frames that a score is averaged over, its own in the middle; an odd number.
    cfg.TEST.POSTPROCESS.WINDOW = 5

    # Key frames of one video that go through the model together at test.
    cfg.TEST.KEY_FRAMES_PER_BATCH = 1

    # "fp32"; "bf16" or "fp16" for automatic mixed precision; "auto": bf16 where the CPU or GPU has
    # units for it, else fp32. Results then depend on the machine, so it is not the default.
    cfg.TEST.PRECISION = "fp32"
    # Fold batch norms into convs and keep maps channels-last in the copy of the model that is
    # evaluated. Detections stay the same but for rounding.
    cfg.TEST.OPTIMIZE = True
    # torch.compile for the backbone of that copy; the first frames of each size wait for it.
    cfg.TEST.COMPILE = False


def _add_model_keys(cfg: CN) -> None:
    # True: MODEL.WEIGHTS may be a pickle that runs code when it is read (files of one's own only).
    cfg.MODEL.TRUST_WEIGHTS = False

    # Batch norm uses its running statistics in training too, while weight and bias are trained.
    # For pre-trained backbones; turn off to train from scratch with RESNETS.NORM "BN".
    cfg.MODEL.BACKBONE.FIX_BN_STATISTICS = True

    # Training: compute the network's activations again in the backward pass instead of keeping
    # them: less memory for more time, with the same result.
    cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS = False

    # The network below the neck where BACKBONE.NAME is "build_single_scale_backbone",
    # "build_fpn_backbone" or "build_light_fpn_backbone" (for small networks):
    # "build_timm_backbone", "build_swin_backbone", "build_vit_backbone",
    # "build_regnet_backbone", or any other registered one. The maps of these four are called after
    # their strides as a ResNet's are ("res4" has stride 16), and they know how their images are to
    # be normalised, so that PIXEL_MEAN and PIXEL_STD count for nothing.
    cfg.MODEL.BACKBONE.BOTTOM_UP = "build_timm_backbone"
    # Maps that it returns beside those that neck, heads and contrastive branch ask for.
    cfg.MODEL.BACKBONE.OUT_FEATURES = []
    # Stochastic depth of timm's models, Swin and ViT: the chance to leave out the last block.
    cfg.MODEL.BACKBONE.DROP_PATH = 0.0

    # Any model of timm with feature maps, by timm's name.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet50"

    # Detectron2's Swin: SIZE "T", "S", "B" or "L"; WINDOW_SIZE that of its weights.
    cfg.MODEL.SWIN = CN()
    cfg.MODEL.SWIN.SIZE = "T"
    cfg.MODEL.SWIN.WINDOW_SIZE = 7

    # Detectron2's plain ViT (ViTDet): SIZE "Ti", "S", "B", "L" or "H".
    cfg.MODEL.VIT = CN()
    cfg.MODEL.VIT.SIZE = "B"
    cfg.MODEL.VIT.WINDOW_SIZE = 14

    # Detectron2's RegNet: "X-4.0GF", "Y-4.0GF" and the paper's other sizes.
    cfg.MODEL.REGNET = CN()
    cfg.MODEL.REGNET.NAME = "X-4.0GF"
    cfg.MODEL.REGNET.NORM = "BN"

    # Neck of the single-scale backbones (`build_resnet_dc5_backbone`,
    # `build_single_scale_backbone`): a 3x3 conv and ReLU on IN_FEATURE; its output is the feature
    # "c5".
    cfg.MODEL.NECK = CN()
    cfg.MODEL.NECK.IN_FEATURE = "res5"
    cfg.MODEL.NECK.OUT_CHANNELS = 512

    # Best IoU that an object's best anchors must reach to be kept as low-quality matches.
    cfg.MODEL.RPN.MIN_LOW_QUALITY_IOU = 0.0

    # A one-stage detector (META_ARCHITECTURE "TemporalDense"): MODEL.RETINANET has its maps, convs,
    # losses and thresholds, MODEL.ROI_HEADS.NUM_CLASSES its classes.
    cfg.MODEL.DENSE = CN()
    # "FCOS": one prediction at each position; "RetinaNet": one for each anchor there.
    cfg.MODEL.DENSE.HEAD = "FCOS"
    # Its two towers: "Conv" (Detectron2's) or "Separable" (depthwise convs of KERNEL_SIZE, each
    # level's own, with batch norm), RETINANET.NUM_CONVS deep, of DIM channels.
    cfg.MODEL.DENSE.TOWERS = "Conv"
    cfg.MODEL.DENSE.DIM = 256
    cfg.MODEL.DENSE.KERNEL_SIZE = 5
    # FCOS: positions so many strides from an object's middle, along each axis, learn it.
    cfg.MODEL.DENSE.CENTER_SAMPLING_RADIUS = 1.5
    # What stands for a frame: of the NUM_CANDIDATES most confident predictions of each level, the
    # first NUM that overlap by no more than NMS_THRESH; in training, also the NUM_PER_OBJECT that
    # fit each object best.
    cfg.MODEL.DENSE.SELECT = CN()
    cfg.MODEL.DENSE.SELECT.NUM = 50
    cfg.MODEL.DENSE.SELECT.NUM_CANDIDATES = 200
    cfg.MODEL.DENSE.SELECT.NMS_THRESH = 0.75
    cfg.MODEL.DENSE.SELECT.NUM_PER_OBJECT = 4
    # Bins along each side of a selected prediction's box that the aggregation gets, beside what the
    # towers hold at its position; 0: none.
    cfg.MODEL.DENSE.POOLER_RESOLUTION = 0
    # Weight of the loss of the scores that MODEL.AGGREGATION.PREDICTIONS gives.
    cfg.MODEL.DENSE.RESCORING_WEIGHT = 1.0

    # How a key frame takes in its reference frames, at four places; "" leaves a place out. Each
    # key names an entry of a registry (clab_d2/modeling/aggregation/base.py), also a plug-in's.
    cfg.MODEL.AGGREGATION = CN()
    # on feature maps: "FlowGuided"
    cfg.MODEL.AGGREGATION.MAPS = ""
    # on the selected predictions of a one-stage detector: "DualAffinity"
    cfg.MODEL.AGGREGATION.PREDICTIONS = ""
    # on the RoI features: "TemporalRoIAlign"
    cfg.MODEL.AGGREGATION.ROI_FEATURES = "TemporalRoIAlign"
    # on the box features after each FC layer: "SELSA"
    cfg.MODEL.AGGREGATION.BOX_FEATURES = "SELSA"
    # True: each method starts as the identity, so that a detector whose other weights come from a
    # single-frame one (configs/COCO-Start) begins by detecting what that one does.
    cfg.MODEL.AGGREGATION.START_AS_IDENTITY = False

    # DualAffinity: attention from selected predictions to the reference frames', by both towers.
    cfg.MODEL.DUAL_AFFINITY = CN()
    cfg.MODEL.DUAL_AFFINITY.DIM = 128
    cfg.MODEL.DUAL_AFFINITY.NUM_HEADS = 4

    # SELSA: attention from the key frame's proposals to the reference frames'.
    cfg.MODEL.SELSA = CN()
    cfg.MODEL.SELSA.NUM_HEADS = 16

    # Temporal RoI Align: RoI features of the key frame gather what is most similar in the
    # reference maps. NUM_HEADS 0 takes the plain mean over frames instead of attention.
    cfg.MODEL.TEMPORAL_ROI_ALIGN = CN()
    cfg.MODEL.TEMPORAL_ROI_ALIGN.NUM_MOST_SIMILAR = 2
    cfg.MODEL.TEMPORAL_ROI_ALIGN.NUM_HEADS = 4

    # Flow-guided aggregation (MODEL.AGGREGATION.MAPS "FlowGuided"): reference maps are warped onto
    # the key frame along the optical flow.
    cfg.MODEL.FLOW_GUIDED = CN()
    # "RAFT" (torchvision's small model) or "DIS" (OpenCV's dense inverse search: no network and no
    # weights, on the CPU).
    cfg.MODEL.FLOW_GUIDED.FLOW = "RAFT"
    # RAFT's: "torchvision" (fetched once), a file with torchvision's weights, or "random". Read
    # only where the weights of the detector that are loaded don't hold the flow network's.
    cfg.MODEL.FLOW_GUIDED.FLOW_WEIGHTS = "torchvision"
    # True trains RAFT, too.
    cfg.MODEL.FLOW_GUIDED.TRAIN_FLOW = False
    # Pixels of the images that flow is computed on, per pixel of those the backbone gets.
    cfg.MODEL.FLOW_GUIDED.FLOW_SCALE = 0.5
    # RAFT's refinements of the flow.
    cfg.MODEL.FLOW_GUIDED.FLOW_UPDATES = 12
    # Channels of the embedding's 1x1, 3x3 and 1x1 conv, whose cosines weight the frames.
    cfg.MODEL.FLOW_GUIDED.EMBED_DIMS = [512, 512, 2048]

    # The CLAB branch (training only). IN_FEATURE: a ResNet stage, the neck's output, an FPN level.
    cfg.MODEL.CONTRASTIVE = CN()
    cfg.MODEL.CONTRASTIVE.ENABLED = False
    cfg.MODEL.CONTRASTIVE.IN_FEATURE = "res4"
    # What is contrasted: "ClipContrast" is the paper's (frames of a clip against all other clips);
    # "ForegroundContrast" pools frames inside the objects' boxes only; "TrackContrast" contrasts
    # objects by track (after QDTrack), "ClassContrast" by class (after FSCE).
    cfg.MODEL.CONTRASTIVE.LOSS = "ClipContrast"
    cfg.MODEL.CONTRASTIVE.CONV_DIM = 512
    cfg.MODEL.CONTRASTIVE.HIDDEN_DIM = 256
    cfg.MODEL.CONTRASTIVE.EMBED_DIM = 128
    cfg.MODEL.CONTRASTIVE.TEMPERATURE = 0.1
    # Embeddings of earlier steps to contrast with as well, over all GPUs; 0: none.
    cfg.MODEL.CONTRASTIVE.MEMORY_SIZE = 0
    # TrackContrast, ClassContrast: bins along each side of a box.
    cfg.MODEL.CONTRASTIVE.POOLER_RESOLUTION = 7
    # ClassContrast: jittered copies of each object's box; their centres move by up to AMOUNT of its
    # sides, their sides grow or shrink by up to a factor of exp(AMOUNT).
    cfg.MODEL.CONTRASTIVE.JITTER = CN()
    cfg.MODEL.CONTRASTIVE.JITTER.COPIES = 3
    cfg.MODEL.CONTRASTIVE.JITTER.AMOUNT = 0.15
    # ClassContrast: a box is an anchor from this IoU with its object on.
    cfg.MODEL.CONTRASTIVE.IOU_GATE = 0.7
    # ClassContrast: an anchor counts alike whatever its IoU u ("none"), as u ("linear") or as
    # exp(u) - 1 ("exp").
    cfg.MODEL.CONTRASTIVE.IOU_WEIGHTING = "none"
    # Weight of the contrastive loss: START at iteration 0; "linear" and "cosine" fall to 0 at
    # iteration STEPS and stay there, "constant" stays at START.
    cfg.MODEL.CONTRASTIVE.WEIGHT = CN()
    cfg.MODEL.CONTRASTIVE.WEIGHT.START = 0.005
    cfg.MODEL.CONTRASTIVE.WEIGHT.SCHEDULE = "linear"
    cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS = 25000


def _add_solver_keys(cfg: CN) -> None:
    # "SGD" (the paper's) or "AdamW" (for small models trained from scratch).
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": one norm over all parameters.
    cfg.SOLVER.OPTIMIZER = "SGD"

    # Train with channels-last convs: the same but for rounding, on CPUs a good deal faster for
    # networks of depthwise convs; on GPUs with AMP.
    cfg.SOLVER.CHANNELS_LAST = False

    # Learning rate of the network below the neck, as a part of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Below 1, each of its layers has a learning rate this much smaller than the next deeper one's.
    cfg.SOLVER.LAYER_DECAY = 1.0

    # Above 0: an exponential moving average of the weights, of which each iteration keeps this
    # part, is evaluated and written as the final model. It averages over some 1 / (1 - EMA_DECAY)
    # iterations, which should be a small part of the training.
    cfg.SOLVER.EMA_DECAY = 0.0

    # Iterations between two lines of progress (and two rows of metrics.json).
    cfg.SOLVER.LOG_PERIOD = 20


def _add_log_keys(cfg: CN) -> None:
    # Services that get losses and metrics, too: "wandb" (Weights & Biases), "mlflow". Their own
    # environment variables say where they are (WANDB_MODE, MLFLOW_TRACKING_URI).
    cfg.LOG = CN()
    cfg.LOG.SERVICES = []
    # What they file the run under; it is called after OUTPUT_DIR.
    cfg.LOG.PROJECT = "clab_d2"

    # Frames of each test dataset that TensorBoard gets with their detections at every evaluation of
    # a training, always the same ones; 0: none.
    cfg.LOG.PICTURES = 8

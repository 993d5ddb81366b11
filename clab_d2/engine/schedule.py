"""The schedule of a training: fitted to the number of processes, and the same after a resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer

from clab_d2.errors import ConfigError


def scale_schedule(cfg: CfgNode, num_processes: int) -> CfgNode:
    """Fit a schedule written for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to another number.

    As Detectron2's ``auto_scale_workers``: the batch and the learning rate grow with the processes,
    and the iterations and periods shrink. So do the contrastive weight's ``STEPS``. No period falls
    to 0, which would mean "never".

    Returns:
        A config whose ``REFERENCE_WORLD_SIZE`` is ``num_processes``; ``cfg`` itself where there is
        nothing to fit.

    Raises:
        ConfigError: the batch can't be shared out evenly, or the learning rate's steps fall
            together.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_processes):
        return cfg
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}; change one of them"
        )
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_processes)
    scaled.defrost()
    steps = cfg.MODEL.CONTRASTIVE.WEIGHT.STEPS
    scaled.MODEL.CONTRASTIVE.WEIGHT.STEPS = round(steps * reference / num_processes)
    for old, new, key in (
        (cfg.SOLVER, scaled.SOLVER, "MAX_ITER"),
        (cfg.SOLVER, scaled.SOLVER, "CHECKPOINT_PERIOD"),
        (cfg.TEST, scaled.TEST, "EVAL_PERIOD"),
        (cfg.MODEL.CONTRASTIVE.WEIGHT, scaled.MODEL.CONTRASTIVE.WEIGHT, "STEPS"),
    ):
        if old[key] > 0:
            new[key] = max(1, new[key])
    rates = [0, *scaled.SOLVER.STEPS]
    if rates != sorted(set(rates)):
        raise ConfigError(
            f"SOLVER.STEPS {cfg.SOLVER.STEPS} become {scaled.SOLVER.STEPS} for {num_processes} "
            f"processes instead of {reference}; take fewer processes or more iterations, or set "
            "SOLVER.REFERENCE_WORLD_SIZE 0"
        )
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


@dataclass(frozen=True)
class Schedule:
    """What must be the same again when a training is resumed.

    Attributes:
        clips_per_iteration: the batch of all processes together.
        world_size: number of processes; another one may share the same batch.
        scale: what :func:`scale_schedule` has multiplied batch and learning rate by.
    """

    clips_per_iteration: int
    world_size: int
    scale: float

    @classmethod
    def of(cls, cfg: CfgNode, world_size: int) -> Schedule:
        """The schedule of ``world_size`` processes by a config that is not yet scaled."""
        clips = scale_schedule(cfg, world_size).SOLVER.IMS_PER_BATCH
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        return cls(clips, world_size, world_size / reference if reference else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check_resumes(self, state: dict[str, Any], checkpoint: str) -> None:
        """Check that this schedule goes on with that of a checkpoint.

        The iteration, the learning rate and the contrastive weight of a checkpoint count batches of
        its own size: with other ones, two schedules would be mixed.

        Raises:
            ConfigError: it doesn't.
        """
        saved = Schedule(**state)
        if (saved.clips_per_iteration, saved.scale) == (self.clips_per_iteration, self.scale):
            return
        remedies = []
        if saved.world_size != self.world_size:
            remedies.append(f"resume with {saved.world_size} (--num-gpus, --num-machines)")
        elif saved.scale not in (1, self.scale):
            reference = round(saved.world_size / saved.scale)
            remedies.append(f"set SOLVER.REFERENCE_WORLD_SIZE {reference}")
        if self.scale != saved.scale == 1 and saved.clips_per_iteration % self.world_size == 0:
            remedies.append(
                f"keep the schedule with SOLVER.REFERENCE_WORLD_SIZE 0 "
                f"SOLVER.IMS_PER_BATCH {saved.clips_per_iteration}"
            )
        if self.scale == saved.scale:
            written = round(saved.clips_per_iteration / self.scale)
            remedies.append(f"set SOLVER.IMS_PER_BATCH {written}")
        remedies.append("start anew in another OUTPUT_DIR")
        raise ConfigError(
            f"{checkpoint}: trained with {saved.clips_per_iteration} clip(s) an iteration by "
            f"{saved.world_size} process(es); with the {self.clips_per_iteration} of "
            f"{self.world_size} process(es) here, iterations, learning rate and contrastive weight "
            f"would be of two schedules; {', or '.join(remedies)}"
        )

"""Checkpoints that are whole or absent, load without running code, and say what does not fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.errors import DataError
from clab_d2.io import atomic_write

BRANCH_PREFIX = "contrastive_branch."
# Layers whose shape follows from the number of classes.
CLASS_LAYERS = ("roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred.")


class VIDCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with four differences.

    * A checkpoint appears under its name only once it is complete, and ``last_checkpoint`` names
      only such: a job killed while it saves resumes from the checkpoint before.
    * Files are read without running code that they may hold
      (:func:`clab_d2.checkpoint.safe_load.load_weights_file`).
    * The contrastive branch, which only training uses, may be there or not on either side.
    * What does not fit the model is refused with one line, unless it is to be fine-tuned.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        fine_tune: bool = False,
        trusted: bool = False,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: what is loaded and saved; DistributedDataParallel is unwrapped.
            save_dir: folder of the checkpoints.
            fine_tune: True leaves a layer whose shape differs as it was initialised, and warns;
                False refuses the file. Resuming always refuses.
            trusted: True lets files run code while they are read (``MODEL.TRUST_WEIGHTS``).
            checkpointables: objects with ``state_dict`` and ``load_state_dict`` to keep as well.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.fine_tune = fine_tune
        self.trusted = trusted
        self._path = ""
        self._resuming = False

    # ---------------------------------------------------------------- saving

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` atomically, then name it in ``last_checkpoint``.

        Args:
            name: file name without its extension.
            kwargs: more plain data to keep in the file.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: value.state_dict() for key, value in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        # What jobs that were killed while saving left behind.
        for leftover in path.parent.glob(".*.pth.*.tmp"):
            leftover.unlink(missing_ok=True)
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as file:
            file.write(last_filename_basename)

    # ---------------------------------------------------------------- loading

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's: the last checkpoint of ``save_dir`` if ``resume`` and there is one,
        with everything in it; else the weights of ``path`` alone."""
        self._resuming = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict[str, Any]:
        """Load weights (and ``checkpointables``, default all) from a file or a URL.

        Raises:
            DataError: one line, where the file is missing, can't be read, would run code, or does
                not fit the model.
        """
        self._path = str(path or "")
        try:
            if path:
                self._check_exists(path)
            return super().load(path, checkpointables)
        finally:
            # Detectron2 leaves this set after an error, and then refuses every later call.
            self._parsed_url_during_load = None

    def _check_exists(self, path: str) -> None:
        local = path.split("?")[0]
        if "://" not in local and not os.path.isfile(local):
            if self._resuming:
                raise DataError(
                    f"{self.save_dir}/last_checkpoint names {os.path.basename(local)}, which is "
                    "not there; write the name of another checkpoint of that folder into it, or "
                    "start without --resume"
                )
            raise DataError(f"MODEL.WEIGHTS {path}: there is no such file; check the path")

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = load_weights_file(filename, trusted=self.trusted)
        if "model" in content:
            loaded = content
        elif "state_dict" in content:
            raise DataError(
                f"{self._path}: weights of MMTracking or MMDetection; convert them first: "
                "tools/convert_checkpoint.py IN OUT"
            )
        elif filename.endswith(".pkl"):
            # Detectron's own zoo: Caffe2 names, which Detectron2 matches by their endings.
            blobs = content.get("blobs", content)
            weights = {name: w for name, w in blobs.items() if not name.endswith("_momentum")}
            loaded = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            loaded = {"model": content}
        if "matching_heuristics=True" in self._path.partition("?")[2]:
            loaded["matching_heuristics"] = True
        self._check_is_weights(loaded["model"])
        return loaded

    def _check_is_weights(self, weights: Any) -> None:
        if not isinstance(weights, dict) or not weights:
            raise DataError(f"{self._path}: holds no weights; give a file saved by a training")
        for name, value in weights.items():
            if not hasattr(value, "shape"):
                raise DataError(
                    f"{self._path}: {name!r} is a {type(value).__name__}, not a tensor; is this a "
                    "file of weights?"
                )

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        own = self.model.state_dict()
        if len(incompatible.missing_keys) >= len(own):
            example = next(iter(incompatible.unexpected_keys), "none")
            raise DataError(
                f"{self._path}: none of its weights (such as {example!r}) has a place in this "
                "model; if they come from another project, convert them with "
                "tools/convert_checkpoint.py IN OUT"
            )
        if not self._resuming:
            # The branch serves training alone: weights without it are whole for inference and to
            # start from, and weights with it serve a model without.
            for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
                keys[:] = [key for key in keys if not key.startswith(BRANCH_PREFIX)]
        self._judge_shapes(incompatible.incorrect_shapes)
        # Said in one line below; Detectron2 would warn once for each.
        shapeless = {name for name, _, _ in incompatible.incorrect_shapes}
        incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if k not in shapeless]
        incompatible.incorrect_shapes.clear()
        return incompatible

    def _judge_shapes(
        self, incorrect: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
    ) -> None:
        if not incorrect:
            return
        classes = [entry for entry in incorrect if entry[0].startswith(CLASS_LAYERS)]
        name, in_file, in_model = (classes if len(classes) == len(incorrect) else incorrect)[0]
        fact = f"{self._path}: {name} has shape {in_file} in the file and {in_model} in the model"
        if len(incorrect) > 1:
            fact += f" (and {len(incorrect) - 1} more)"
        if self.fine_tune and not self._resuming:
            self.logger.warning("%s: trained anew from random values", fact)
            return
        if len(classes) == len(incorrect):
            rows = _class_rows(classes)
            remedy = f"set MODEL.ROI_HEADS.NUM_CLASSES {rows} or give weights of this dataset"
        else:
            remedy = "give the config that these weights were trained with"
        raise DataError(f"{fact}; {remedy}")


def _class_rows(entries: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> int:
    """Number of classes that the file's predictor was made for (its last row is background)."""
    for name, in_file, _ in entries:
        if name.startswith(CLASS_LAYERS[0]):
            return in_file[0] - 1
    return entries[0][1][0] // 4

"""Checkpoints that are whole or absent, load without running code, and say what does not fit."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from clab_d2.checkpoint.class_layers import CLASS_LAYER, keep_by_name, names_in_file
from clab_d2.checkpoint.model_file import CARD_KEY, ModelCard, read_card, write_model_file
from clab_d2.checkpoint.parts import name_parts
from clab_d2.checkpoint.renamed import rename_old_weights
from clab_d2.checkpoint.safe_load import load_weights_file
from clab_d2.checkpoint.sources import local_path
from clab_d2.data.catalog import difference_of_classes
from clab_d2.engine.published_weights import place_published
from clab_d2.engine.weight_average import average_in
from clab_d2.errors import ConfigError, DataError
from clab_d2.io import atomic_write

logger = logging.getLogger(__name__)

# The contrastive branch: it serves training alone, but for embeddings of objects (`appearance`).
BRANCH_PREFIX = "contrastive_branch."

# What its loss remembers of a training's last steps: of that training's data and classes.
MEMORY_PREFIX = BRANCH_PREFIX + "loss.memory."

Purpose = Literal["train", "inference"]


class _Mismatch(NamedTuple):
    """A weight whose shape in the file is not that in the model."""

    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]


class VIDCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with these differences.

    * A checkpoint appears under its name only once it is complete, and ``last_checkpoint`` names
      only such: a job killed while it saves resumes from the checkpoint before.
    * Files are read without running code that they may hold
      (:func:`clab_d2.checkpoint.safe_load.load_weights_file`).
    * For inference, and to go on with a training, a file must fill the model; to start a training
      it need not, and one line tells which parts start from random values. The contrastive branch,
      which only training uses, may be there or not on either side.
    * Weights that are not finite are refused.
    * Where the classes of file and model are known by name, a detector is used and resumed for its
      own classes only; a training that starts from it keeps the rows of the classes it shares.
    * Files of earlier versions load (:mod:`clab_d2.checkpoint.renamed`).
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        purpose: Purpose = "inference",
        trusted: bool = False,
        class_names: Sequence[str] | None = None,
        card: ModelCard | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: what is loaded and saved; DistributedDataParallel is unwrapped.
            save_dir: folder of the checkpoints.
            purpose: what the loaded model is for. "inference" refuses a file that does not fill
                the model, but for the contrastive branch. "train" leaves a layer that is not in
                the file, or has another shape there, as it was initialised, and says which;
                resuming a training refuses any difference.
            trusted: True lets files run code while they are read (``MODEL.TRUST_WEIGHTS``).
            class_names: the classes that the model is for; None if they aren't known.
            card: what saved files say of the model.
            checkpointables: objects with ``state_dict`` and ``load_state_dict`` to keep as well.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.purpose = purpose
        self.trusted = trusted
        self.class_names = class_names
        self.card = card
        #: Names of the classes of the file that was loaded, where known.
        self.names_in_file: list[str] | None = None
        #: Whether the file that was loaded fills the contrastive branch, if the model has one.
        self.fills_branch = False
        self._content: dict[str, Any] | None = None
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
        if self.card is not None:
            iteration = kwargs.get("iteration")
            trained = None if iteration is None else iteration + 1
            data[CARD_KEY] = dataclasses.replace(self.card, iterations=trained).to_plain()
        path = Path(self.save_dir) / f"{name}.pth"
        self._remove_leftovers()
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb") as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def save_model(
        self, name: str, model: nn.Module, iterations: int, metrics: Mapping[str, Any]
    ) -> None:
        """Write the model alone, ``<save_dir>/<name>.pth`` and ``.safetensors``, to use anywhere.

        It has no state of the optimizer and, of the contrastive branch, which only a training uses,
        nothing but the embeddings of objects that tracking can use, where its loss learns such. To
        resume from there are the other checkpoints, and ``last_checkpoint`` does not name it.

        Args:
            name: file name without its extension.
            model: this checkpointer's, or the average of its weights.
            iterations: how many the model was trained for.
            metrics: of its evaluation, nested; empty if there was none.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        self._remove_leftovers()
        kept = _prefixes_of_appearance(model)
        weights = {
            name: value
            for name, value in model.state_dict().items()
            if not name.startswith(BRANCH_PREFIX) or name.startswith(kept)
        }
        card = self.card
        if card is not None:
            card = dataclasses.replace(card, iterations=iterations, metrics=metrics)
        for suffix in (".pth", ".safetensors"):
            write_model_file(Path(self.save_dir) / f"{name}{suffix}", weights, card)

    def _remove_leftovers(self) -> None:
        """What jobs that were killed while saving left behind."""
        for suffix in ("pth", "safetensors"):
            for leftover in Path(self.save_dir).glob(f".*.{suffix}.*.tmp"):
                leftover.unlink(missing_ok=True)

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

    def load(
        self,
        path: str,
        checkpointables: Sequence[str] | None = None,
        *,
        content: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Load weights (and ``checkpointables``, default all) from a file or a URL.

        Args:
            path: the file.
            checkpointables: names of what to load beside the weights.
            content: what :func:`load_weights_file` gave for it, if it has been read already.

        Raises:
            DataError: one line, where the file is missing, can't be read, would run code, holds
                values that are not finite, or does not fit the model.
            ConfigError: there is no path, and the model is for inference.
        """
        self._path = str(path or "")
        self._content = content
        if not path and self.purpose == "inference":
            raise ConfigError("MODEL.WEIGHTS is empty; name the file of trained weights")
        try:
            if path:
                self._check_exists(path)
                if "://" in path:  # here, and not as an error from the depths of Detectron2
                    local_path(path.partition("?")[0])
            return super().load(path, checkpointables)
        finally:
            # Detectron2 leaves this set after an error, and then refuses every later call.
            self._parsed_url_during_load = None
            self._content = None

    def _check_exists(self, path: str) -> None:
        local = path.split("?")[0]
        if "://" in local or os.path.isfile(local):
            return
        if self._resuming:
            raise DataError(
                f"{self.save_dir}/last_checkpoint names {os.path.basename(local)}, which is "
                "not there; write the name of another checkpoint of that folder into it, or "
                "start without --resume"
            )
        if os.path.exists(local):
            raise DataError(f"MODEL.WEIGHTS {path}: is no file; name the file of weights itself")
        raise DataError(f"MODEL.WEIGHTS {path}: there is no such file; check the path")

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self._content
        if content is None:
            content = load_weights_file(filename, trusted=self.trusted)
        if "model" in content:
            # A training goes on from its weights; whatever else begins here gets their average.
            average = None if self._resuming else average_in(content)
            loaded = content if average is None else {**content, "model": average}
        elif "model_state" in content:  # pycls
            loaded = {"model": content["model_state"]}
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
            numeric = isinstance(value, Tensor) or (
                isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
            )
            if not isinstance(name, str) or not numeric:
                raise DataError(
                    f"{self._path}: {name!r} is a {type(value).__name__}, not a tensor; is this a "
                    "file of weights?"
                )

    # ---------------------------------------------------------------- judging what was loaded

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        own = list(self.model.state_dict())
        if not checkpoint.get("matching_heuristics", False):
            weights = self._with_todays_names(checkpoint["model"], own)
            try:
                checkpoint["model"] = place_published(self.model, weights)
            except DataError as error:
                raise DataError(f"{self._path}: {error}") from None
        if not self._resuming:
            checkpoint["model"] = _without_memory(checkpoint["model"])
        card = read_card(checkpoint, self._path)
        self.names_in_file = names_in_file(checkpoint, card)
        self._fit_classes(checkpoint)
        try:
            incompatible = super()._load_model(checkpoint)
        except (ConfigError, DataError):  # of a part of the model that reads a file of its own
            raise
        except ValueError as error:  # Detectron2's matching by endings finds several places
            raise DataError(f"{self._path}: {error}; is it of another architecture?") from None
        mismatches = [_Mismatch(*entry) for entry in incompatible.incorrect_shapes]
        mismatched = {entry.name for entry in mismatches}
        missing = [name for name in incompatible.missing_keys if name not in mismatched]
        missing = self._without_shared(missing, own)
        if not self._resuming:
            missing = list(_without_memory(dict.fromkeys(missing)))
        unfilled = {*missing, *mismatched}
        self.fills_branch = not any(name.startswith(BRANCH_PREFIX) for name in unfilled)
        surplus = list(incompatible.unexpected_keys)
        placed = set(own) - set(incompatible.missing_keys) - mismatched
        if not placed and not mismatches:
            raise DataError(
                f"{self._path}: none of its weights (such as {next(iter(surplus), 'none')!r}) has "
                "a place in this model; if they come from another project, convert them with "
                "tools/convert_checkpoint.py IN OUT"
            )
        self._check_finite(placed)
        if self.purpose == "train" and self._resuming:
            self._refuse_another_model(mismatches, missing, surplus)
        elif self.purpose == "train":
            self._tell_what_starts_anew(own, mismatches, missing, surplus)
        else:
            self._refuse_unfilled(own, mismatches, missing, surplus)
        # All that is to be said was; Detectron2 would add a line for each weight.
        for said in (*incompatible,):
            said.clear()
        return incompatible

    def _with_todays_names(self, weights: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
        if all(name.startswith("module.") for name in weights):  # saved from inside DataParallel
            weights = {name.removeprefix("module."): value for name, value in weights.items()}
        weights, renamed = rename_old_weights(weights, own)
        if renamed:
            old, new = next(iter(renamed.items()))
            logger.info(
                "%s is of an earlier version: %d weights got their new names (%s is now %s, ...)",
                self._path, len(renamed), old, new,
            )  # fmt: skip
        return weights

    def _fit_classes(self, checkpoint: dict[str, Any]) -> None:
        """Make sure that class layers are of the model's classes, where all are known by name."""
        theirs, ours = self.names_in_file, self.class_names
        if theirs is None or ours is None or theirs == list(ours):
            return
        if self.purpose == "inference" or self._resuming:
            raise DataError(
                f"{self._path}: its classes are not those of the dataset, the second here "
                f"({difference_of_classes(theirs, ours)}); give the dataset's JSON the categories "
                f"of the weights, in their order: {', '.join(theirs[:100])}"
            )
        weights, kept, new = keep_by_name(
            checkpoint["model"], self.model.state_dict(), theirs, ours
        )
        checkpoint["model"] = weights
        logger.info(
            "%s: %d of the dataset's %d classes are among its own and keep their rows of the "
            "class layers (%s); new and random: %s",
            self._path, len(kept), len(ours), ", ".join(kept) or "none", ", ".join(new) or "none",
        )  # fmt: skip

    def _without_shared(self, missing: Sequence[str], own: Sequence[str]) -> list[str]:
        """The missing weights that are no other name of one that is there, nor mere counters."""
        # Of a tensor that the model has under several names a file may hold one.
        state = self.model.state_dict(keep_vars=True)
        lacking = set(missing)
        there = {id(state[name]) for name in own if name not in lacking}
        return [
            name
            for name in missing
            if id(state[name]) not in there and not name.endswith("num_batches_tracked")
        ]

    def _check_finite(self, placed: Collection[str]) -> None:
        bad = [
            name
            for name, value in self.model.state_dict().items()
            if name in placed and value.is_floating_point() and not torch.isfinite(value).all()
        ]
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise DataError(
                f"{self._path}: {bad[0]}{more} holds NaN or infinity: the training that wrote it "
                "diverged; give an earlier checkpoint"
            )

    def _refuse_unfilled(
        self,
        own: Sequence[str],
        mismatches: Sequence[_Mismatch],
        missing: Sequence[str],
        surplus: Sequence[str],
    ) -> None:
        """Weights for inference: the contrastive branch apart, nothing may be left random."""
        missing = [name for name in missing if not name.startswith(BRANCH_PREFIX)]
        surplus = [name for name in surplus if not name.startswith(BRANCH_PREFIX)]
        mismatches = [entry for entry in mismatches if not entry.name.startswith(BRANCH_PREFIX)]
        if mismatches:
            raise DataError(self._other_shapes(mismatches))
        if missing:
            others = set(own) - set(missing)
            raise DataError(
                f"{self._path}: lacks {len(missing)} of the model's {len(own)} weights "
                f"({name_parts(missing, others)}), which would stay random; give weights trained "
                "with this config, or the config that these were trained with"
            )
        if surplus:
            logger.warning(
                "%s: %d weights have no place in this config's model and are left out (%s)",
                self._path, len(surplus), name_parts(surplus, own),
            )  # fmt: skip

    def _tell_what_starts_anew(
        self,
        own: Sequence[str],
        mismatches: Sequence[_Mismatch],
        missing: Sequence[str],
        surplus: Sequence[str],
    ) -> None:
        """Weights to start a training from: say in one line what they don't bring."""
        random = {*missing, *(entry.name for entry in mismatches)}
        if random:
            # As usual as the branch is, which no file but its own training's has.
            usual = all(name.startswith(BRANCH_PREFIX) for name in random)
            in_order = [name for name in own if name in random]
            shapes = f" ({_shapes(mismatches)})" if mismatches else ""
            logger.log(
                logging.INFO if usual else logging.WARNING,
                "%s: %d of the model's %d weights do not come from it and start from random "
                "values: %s%s",
                self._path, len(random), len(own), name_parts(in_order, set(own) - random), shapes,
            )  # fmt: skip
        if surplus:
            logger.info(
                "%s: %d weights have no place in this config's model and are left out (%s)",
                self._path, len(surplus), name_parts(surplus, own),
            )  # fmt: skip

    def _refuse_another_model(
        self, mismatches: Sequence[_Mismatch], missing: Sequence[str], surplus: Sequence[str]
    ) -> None:
        """A training goes on with the model that it began with: the optimizer's state is of it."""
        if mismatches:
            raise DataError(self._other_shapes(mismatches))
        # Counters and anchors aside, which come and go with versions of PyTorch and Detectron2.
        surplus = [name for name in surplus if not name.endswith("num_batches_tracked")]
        if missing or surplus:
            what = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, the model does not"
            more = len(missing) + len(surplus) - 1
            raise DataError(
                f"{self._path}: was saved by a training of another model: it {what}"
                f"{f' (and {more} more)' if more else ''}; resume with that training's config, or "
                "start anew from these weights in another OUTPUT_DIR"
            )

    def _other_shapes(self, mismatches: Sequence[_Mismatch]) -> str:
        classes = [entry for entry in mismatches if CLASS_LAYER.match(entry.name)]
        if len(classes) == len(mismatches):
            rows = _class_rows(classes)
            remedy = f"set MODEL.ROI_HEADS.NUM_CLASSES {rows} or give weights of this dataset"
        else:
            mismatches = [entry for entry in mismatches if not CLASS_LAYER.match(entry.name)]
            remedy = "give the config that these weights were trained with"
        return f"{self._path}: {_shapes(mismatches)}; {remedy}"


def _prefixes_of_appearance(model: nn.Module) -> tuple[str, ...]:
    """How the names of the weights begin that embed objects at test."""
    part = getattr(model, "appearance", None)
    return tuple(f"{name}." for name, module in model.named_modules() if module is part)


def _without_memory(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights without what the contrastive loss remembers, which serves resuming alone: a
    training that starts, perhaps on other data with other classes, starts with no memory."""
    return {name: w for name, w in weights.items() if not name.startswith(MEMORY_PREFIX)}


def _shapes(mismatches: Sequence[_Mismatch]) -> str:
    """What differs, by the example of the first."""
    name, in_file, in_model = mismatches[0]
    more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
    return f"{name} has shape {in_file} in the file and {in_model} in the model{more}"


def _class_rows(mismatches: Sequence[_Mismatch]) -> int:
    """Number of classes that the file's predictor was made for (its last row is background)."""
    for entry in mismatches:
        if ".cls_score." in entry.name:
            return entry.in_file[0] - 1
    return mismatches[0].in_file[0] // 4

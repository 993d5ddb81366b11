"""Batches of clips copied to the GPU while the model computes on the ones before."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from clab_d2.data.prefetcher import Prefetcher

Clip = dict[str, Any]


class DeviceLoader:
    """A data loader whose next batch is copied to the device while the model has the current one.

    Args:
        dataset: the loader; called as Detectron2's layers round a dataset call what they wrap.
        move: starts a batch's copy, in a thread.
        arrived: makes the thread that uses a moved batch wait for the copy; returns the batch.
    """

    def __init__(
        self,
        dataset: Any,
        move: Callable[[list[Clip]], Any],
        arrived: Callable[[Any], list[Clip]],
    ) -> None:
        self.dataset = dataset
        self._move = move
        self._arrived = arrived

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[list[Clip]]:
        batches = iter(self.dataset)
        # The first one here: a loader forks its workers for it, and does so best from the thread
        # that holds no lock at that time.
        first = list(itertools.islice(batches, 1))
        with Prefetcher(map(self._move, itertools.chain(first, batches))) as moved:
            del first
            for batch in moved:
                yield self._arrived(batch)


def to_device(loader: Any, device: str | torch.device) -> Any:
    """Let a loader's batches be copied to a GPU ahead; for the CPU, the loader itself.

    Args:
        loader: gives lists of clips; its worker should pin memory, else copying holds up the
            thread that starts it (never the model's).
        device: where the model is; "cuda" is this process's current device.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return loader
    if device.index is None:  # a new thread's current device would be the first
        device = torch.device("cuda", torch.cuda.current_device())
    copier = _CudaCopier(device)
    return DeviceLoader(loader, copier.move, copier.arrived)


def pins_memory(device: str | torch.device) -> bool:
    """Whether a loader's batches should lie in pinned memory: for a GPU that is there."""
    return torch.device(device).type == "cuda" and torch.cuda.is_available()


class _CudaCopier:
    """Copies batches on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def move(self, batch: list[Clip]) -> tuple[list[Clip], torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            moved = [map_tensors(clip, self._copy) for clip in batch]
            return moved, self._stream.record_event()

    def arrived(self, moved: tuple[list[Clip], torch.cuda.Event]) -> list[Clip]:
        batch, event = moved
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(event)

        def note(tensor: Tensor) -> Tensor:
            # Allocated on the other stream, which may not have the memory back before this one is
            # done with it.
            tensor.record_stream(stream)
            return tensor

        for clip in batch:
            map_tensors(clip, note)
        return batch

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A clip, or anything in one, with ``function`` of every tensor in it.

    Looked into are dicts, lists and tuples, all fields of ``Instances``, and Detectron2's
    structures around one tensor (boxes, masks, keypoints). They are made anew; whatever else there
    is, such as a missing image (None), is as it was.

    Args:
        value: is left as it is.
        function: a tensor of as many rows for each tensor.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [map_tensors(item, function) for item in value]
    if isinstance(value, tuple):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Instances):
        return type(value)(value.image_size, **map_tensors(value.get_fields(), function))
    if isinstance(getattr(value, "tensor", None), Tensor):
        mapped = copy.copy(value)
        mapped.tensor = function(value.tensor)
        return mapped
    return value

"""Work ahead of the model: items made in a thread, batches copied to the GPU while it computes."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from detectron2.structures import Instances
from torch import Tensor

T = TypeVar("T")
Clip = dict[str, Any]


class Background(Iterator[T], Generic[T]):
    """The items of an iterable, made in a thread before they are asked for.

    They come in order; an exception comes after the items before it, as it would without the
    thread. The thread ends with the last item, with :meth:`close`, or when this object is let go
    of; if it is making an item then, that is waited for.

    Args:
        items: what is iterated over, in the thread; a generator is closed there, too.
        ahead: how many items to have ready at most.
        newest: for a live source: rather than wait where ``ahead`` items are ready, drop the
            oldest and go on.
    """

    def __init__(self, items: Iterable[T], ahead: int = 1, newest: bool = False) -> None:
        if ahead < 1:
            raise ValueError(f"ahead is {ahead}; it must be at least 1")
        self._line: _Line[T] = _Line(ahead, newest)
        thread = threading.Thread(
            target=_fill, args=(items, self._line), name="clab_d2 prefetch", daemon=True
        )
        # Also at Python's exit, when a daemon thread would be cut off in whatever it is doing.
        self._end = weakref.finalize(self, _end, self._line, thread)
        thread.start()

    def __next__(self) -> T:
        try:
            return self._line.take()
        except BaseException:  # StopIteration and signals, too
            self.close()
            raise

    def close(self) -> None:
        """End the thread; what is ready is thrown away."""
        self._end()

    def __enter__(self) -> Background[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Line(Generic[T]):
    """What lies between the thread and its reader; neither keeps the other alive."""

    def __init__(self, ahead: int, newest: bool) -> None:
        self._ahead = ahead
        self._newest = newest
        self._changed = threading.Condition()
        self._ready: deque[T] = deque(maxlen=ahead)  # drops its oldest
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Wait until an item is wanted; False if none is any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or self._newest or len(self._ready) < self._ahead
            )
            return not self._stopped

    def put(self, item: T) -> None:
        with self._changed:
            self._ready.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = self._ended = True
            self._ready.clear()
            self._changed.notify_all()

    def take(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        raise StopIteration if error is None else error


def _fill(items: Iterable[T], line: _Line[T]) -> None:
    """The thread."""
    error = None
    try:
        iterator = iter(items)
        try:
            while line.wait_for_room():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                line.put(item)
                del item  # the reader's now
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
    except BaseException as caught:  # told to the reader, whatever it is
        error = caught
    line.end(error)


def _end(line: _Line[Any], thread: threading.Thread) -> None:
    line.stop()
    # A garbage collection may let go of the reader in this very thread.
    if thread is not threading.current_thread():
        thread.join()


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
        with Background(map(self._move, itertools.chain(first, batches))) as moved:
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


def map_tensors(clip: Clip, function: Callable[[Tensor], Tensor]) -> Clip:
    """A clip with ``function`` of every tensor it holds: images and the truth's boxes and classes.

    Everything else, a missing image (None) included, is as it was.
    """
    mapped = dict(clip)
    if isinstance(clip.get("image"), Tensor):
        mapped["image"] = function(clip["image"])
    if "reference_images" in clip:
        mapped["reference_images"] = {
            frame: image if image is None else function(image)
            for frame, image in clip["reference_images"].items()
        }
    instances = clip.get("instances")
    if isinstance(instances, Instances):
        boxes = type(instances.gt_boxes)(function(instances.gt_boxes.tensor))
        mapped["instances"] = Instances(
            instances.image_size, gt_boxes=boxes, gt_classes=function(instances.gt_classes)
        )
    return mapped

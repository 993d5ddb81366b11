"""A bound on what a stranger's config can make a model allocate while it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
)
_RANGES = frozenset((torch.arange, torch.linspace))


class AllocationRefused(Exception):
    """More was asked for than the limit allows."""


class AllocationLimit(TorchFunctionMode):
    """Counts the numbers in tensors that PyTorch's factories make, and refuses too many.

    ::

        with AllocationLimit(10**8):
            build_model(cfg)  # AllocationRefused before anything too large is allocated
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: numbers in all tensors together.
        """
        super().__init__()
        self.most = most
        self.made = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            self._count(math.prod(_sizes(args, kwargs)))
        elif func in _RANGES:
            self._count(int(max((abs(a) for a in args if isinstance(a, int | float)), default=0)))
        return func(*args, **kwargs)

    def _count(self, numbers: int) -> None:
        self.made += numbers
        if self.made > self.most:
            raise AllocationRefused(f"{self.made:,} numbers where {self.most:,} are plenty")


def _sizes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes that a factory is called with, as one argument or as several."""
    sizes = kwargs.get("size", args[0] if args and isinstance(args[0], list | tuple) else args)
    return tuple(int(size) for size in sizes if isinstance(size, int))

"""Put modules in the place of others, which keep their parameters and the parameters' names."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def take_over(new: Module, old: nn.Module) -> Module:
    """Give a module the children, parameters, buffers and mode of another, under their names.

    Args:
        new: as its constructor made it; what it has of a name that ``old`` has too is replaced.
        old: stays as it is.

    Returns:
        ``new``.
    """
    for name, child in old.named_children():
        setattr(new, name, child)
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)
    new.training = old.training
    return new


def replace_modules(root: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace modules below ``root``, in place; one that stands at several places only once.

    Args:
        root: stays itself.
        make: gives what stands in for a module; None leaves it.
    """
    made: dict[nn.Module, nn.Module | None] = {}
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if child not in made:
                made[child] = make(child)
            replacement = made[child]
            if replacement is not None:
                setattr(parent, name, replacement)

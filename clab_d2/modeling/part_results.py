"""What a part gives is checked where it is taken: a wrong shape is told by the part's name, not by
an error some layers on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from clab_d2.errors import PartError


def check_tensor(
    part: nn.Module, method: str, result: object, shape: Sequence[int | None], what: str
) -> None:
    """Check the shape of a tensor that a part's method gave.

    Args:
        part: the module.
        method: which of its methods gave the result.
        result: what it gave.
        shape: what it should have; None where any size will do.
        what: the meaning of the shape, such as "(R, C)".

    Raises:
        PartError: it is no tensor, or of another shape.
    """
    if isinstance(result, Tensor):
        given = tuple(result.shape)
        if len(given) == len(shape) and all(
            want is None or have == want for have, want in zip(given, shape, strict=True)
        ):
            return
        told = f"shape {given}"
    else:
        told = f"a {type(result).__name__}"
    wanted = ", ".join("*" if size is None else str(size) for size in shape)
    raise PartError(
        f"{type(part).__name__}.{method} gives {told}, where a tensor of shape ({wanted}) is due: "
        f"{what}; see docs/extend.md"
    )


def check_sequence(part: nn.Module, method: str, result: object, what: str) -> None:
    """Check that a part's method gave several tensors, and not one.

    Args: as :func:`check_tensor`.
    """
    if isinstance(result, Tensor) or not isinstance(result, Sequence):
        raise PartError(
            f"{type(part).__name__}.{method} gives a {type(result).__name__}, where a tuple or "
            f"list is due: {what}; see docs/extend.md"
        )

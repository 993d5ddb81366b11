"""What a part gives is checked where it is taken: a wrong shape is told by the part's name, not by
an error some layers on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detectron2.modeling import Backbone
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


def check_frame_tensors(part: nn.Module, method: str, result: object, num_frames: int) -> None:
    """Check that a part's method gave a sequence of tensors for so many frames.

    Args: as :func:`check_tensor`.
    """
    what = "N frames along the first dimension of each tensor"
    check_sequence(part, method, result, what)
    for tensor in result:  # type: ignore[attr-defined]
        dimensions = max(tensor.dim() if isinstance(tensor, Tensor) else 0, 1)
        check_tensor(part, method, tensor, (num_frames, *(None,) * (dimensions - 1)), what)


def check_backbone_maps(backbone: Backbone, maps: object, images: Tensor) -> None:
    """Check a backbone's maps of (N, 3, H, W) against its ``output_shape``.

    Raises:
        PartError: one is missing, or of other channels or another stride.
    """
    for name, shape in backbone.output_shape().items():
        expected = (len(images), shape.channels, None, None)
        feature = maps.get(name) if isinstance(maps, Mapping) else None
        what = f"map {name!r} of its output_shape()"
        check_tensor(backbone, "forward", feature, expected, what)
        # Rounding up or down, and a margin or none, are the backbone's choice.
        height, width = (side / shape.stride for side in images.shape[-2:])
        if max(abs(feature.shape[2] - height), abs(feature.shape[3] - width)) > 1:
            raise PartError(
                f"{type(backbone).__name__}.forward gives a map {name!r} of "
                f"{tuple(feature.shape[2:])} for images of {tuple(images.shape[-2:])}, where "
                f"its output_shape() says stride {shape.stride}; correct one of them"
            )


def check_aggregated_maps(part: nn.Module, maps: object, key_maps: Mapping[str, Tensor]) -> None:
    """Check that an aggregation on maps gave maps like the key frame's own.

    Raises:
        PartError: one is missing or of another shape.
    """
    if not isinstance(maps, Mapping):
        raise PartError(
            f"{type(part).__name__}.forward gives a {type(maps).__name__}, where a dict of the "
            f"key frame's maps is due: {', '.join(key_maps)}; see docs/extend.md"
        )
    for name, feature in key_maps.items():
        what = f"the key frame's map {name!r}, as it came"
        check_tensor(part, "forward", maps.get(name), feature.shape, what)

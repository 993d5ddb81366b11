"""Detections as plain arrays, under the names that Detectron2's ``Instances`` have for them."""

from __future__ import annotations

from typing import Any

import numpy as np


class ArrayBoxes:
    """Boxes of N detections.

    Attributes:
        tensor: (N, 4) float32, xyxy; called as that of Detectron2's ``Boxes`` is.
    """

    def __init__(self, tensor: np.ndarray) -> None:
        self.tensor = np.asarray(tensor, dtype=np.float32).reshape(-1, 4)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: Any) -> ArrayBoxes:
        return ArrayBoxes(self.tensor[rows])

    def __repr__(self) -> str:
        return f"ArrayBoxes({self.tensor!r})"

    def area(self) -> np.ndarray:
        """(N,)."""
        return np.prod(self.tensor[:, 2:] - self.tensor[:, :2], axis=1)


class ArrayInstances:
    """N detections of one frame: attributes of N items each, such as ``scores``.

    Attributes:
        image_size: (height, width) of the frame.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        self.image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name == "image_size":
            super().__setattr__(name, value)
            return
        if self._fields and len(value) != len(self):
            raise ValueError(f"{name} has {len(value)} items, where there are {len(self)}")
        self._fields[name] = value

    def __getattr__(self, name: str) -> Any:
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"there is no field {name!r} in these instances")
        return self._fields[name]

    def has(self, name: str) -> bool:
        return name in self._fields

    def get_fields(self) -> dict[str, Any]:
        return self._fields

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()), ()))

    def __getitem__(self, rows: Any) -> ArrayInstances:
        """Those of a mask, a slice or an array of numbers."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1)
        return ArrayInstances(
            self.image_size, **{name: value[rows] for name, value in self._fields.items()}
        )

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"ArrayInstances({len(self)} in {self.image_size}: {fields})"

    def to(self, device: object) -> ArrayInstances:
        """Itself: arrays are on the CPU."""
        return self

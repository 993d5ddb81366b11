"""The lines of Python that the docs begin with: the same everywhere, and they say what is seen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

import clab_d2
from clab_d2.video import FrameResult

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/detect.md", "docs/checkpoints.md", "docs/export.md"]
SNIPPET = r"```python\n(from clab_d2 import VideoDetector\n.*?)```"


def snippets(page: str) -> list[str]:
    found = re.findall(SNIPPET, (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [re.sub(r'from_file\("[^"]+"\)', 'from_file("FILE")', snippet) for snippet in found]


def test_it_is_the_same_on_every_page() -> None:
    of_page = {page: snippets(page) for page in PAGES}
    assert all(of_page.values()), of_page
    assert len({snippet for found in of_page.values() for snippet in found}) == 1


def test_it_prints_names_and_boxes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instances = Instances(
        (8, 8),
        pred_boxes=Boxes(torch.tensor([[1.0, 2, 3, 4], [0, 0, 8, 8]])),
        scores=torch.tensor([0.9, 1e-4]),
        pred_classes=torch.tensor([1, 0]),
    )

    class Detector:
        @classmethod
        def from_file(cls, path: str) -> Detector:
            return cls()

        def detect(self, source: str) -> list[FrameResult]:
            image = np.zeros((8, 8, 3), np.uint8)
            return [FrameResult(image, 7, None, instances, ("cat", "dog"))]

    monkeypatch.setattr(clab_d2, "VideoDetector", Detector)
    exec(snippets("README.md")[0], {})
    assert capsys.readouterr().out == "7 ['dog'] [[1.0, 2.0, 3.0, 4.0]]\n"

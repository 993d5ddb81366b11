"""What is left of the contrastive branch in a trained model: embeddings, where asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from encoded_videos import moving_pictures

from clab_d2.checkpoint.model_file import ModelCard
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.engine.config_file import load_config
from clab_d2.errors import ConfigError
from clab_d2.video import VideoDetector

PICTURES = moving_pictures(5, 64, 96)
EMBEDDING = "contrastive_branch.loss.embedding."


def written(folder: Path, repo_root: Path, loss: str, *options: str) -> Path:
    """The files of a model that a training with that contrastive loss would write."""
    cfg = load_config(
        str(repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.CONTRASTIVE.LOSS", loss, *options],
        needs_datasets=False,
    )
    torch.manual_seed(0)
    names = [f"thing {n}" for n in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    card = ModelCard(config_to_plain(cfg), names)
    model = build_model(cfg)
    assert model.contrastive_branch is not None
    VIDCheckpointer(model, str(folder), card=card).save_model("model_final", model, 1, {})
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def tracks(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    memory = ["MODEL.CONTRASTIVE.MEMORY_SIZE", "8"]
    return written(tmp_path_factory.mktemp("tracks"), repo_root, "TrackContrast", *memory)


def test_the_embedding_is_kept_and_nothing_else_of_the_branch(tracks: Path) -> None:
    for name in ("model_final.pth", "model_final.safetensors"):
        detector = VideoDetector.from_file(tracks.with_name(name), device="cpu")
        assert detector.model.appearance is not None
    kept = [n for n in torch.load(tracks)["model"] if n.startswith("contrastive_branch.")]
    assert len(kept) == 6 and all(name.startswith(EMBEDDING) for name in kept)
    assert detector.model.contrastive_branch.loss.memory is None  # it was of the training


def test_it_is_computed_only_where_it_is_asked_for(tracks: Path) -> None:
    detector = VideoDetector.from_file(tracks, device="cpu")
    calls: list[object] = []
    detector.model.appearance.conv.register_forward_hook(lambda *call: calls.append(call))
    plain = list(detector.detect(PICTURES, track=True))
    assert not calls and not plain[0].instances.has("appearance")
    looked_at = list(detector.detect(PICTURES, track=True, appearance=True))
    assert len(calls) == len(PICTURES)
    for ours, theirs in zip(looked_at, plain, strict=True):
        assert torch.equal(ours.instances.pred_boxes.tensor, theirs.instances.pred_boxes.tensor)
        lengths = ours.instances.appearance.norm(dim=1)
        assert len(lengths) and torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)


def test_embeddings_are_those_that_the_loss_has_seen(tracks: Path) -> None:
    """Of the boxes, on the tapped map of the image that went through the model."""
    options = ["INPUT.MIN_SIZE_TEST", "0", "TEST.OPTIMIZE", "False"]
    detector = VideoDetector.from_file(tracks, device="cpu", options=options)
    model = detector.model
    for result in detector.detect(PICTURES, track=True, appearance=True):
        image = torch.as_tensor(result.image[:, :, ::-1].transpose(2, 0, 1).copy())
        if detector.cfg.INPUT.FORMAT == "RGB":
            image = image.flip(0)
        branch = model.contrastive_branch
        with torch.no_grad(), branch.tap(model.backbone) as tapped:
            maps = tapped(model.backbone(model.preprocess([image]).tensor))
            expected = model.appearance.of_boxes(maps, [result.instances.pred_boxes])[0]
        found = result.instances.appearance
        assert torch.allclose(found, F.normalize(expected, dim=1), atol=1e-4)


@pytest.mark.parametrize("what", ["another loss", "no weights", "another shape"])
def test_without_such_embeddings_it_is_told(
    what: str, repo_root: Path, tracks: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth"
    if what == "another loss":
        path = written(tmp_path, repo_root, "ClipContrast")
        assert not [n for n in torch.load(path)["model"] if n.startswith("contrastive_branch.")]
    else:
        content = torch.load(tracks)
        for name in [n for n in content["model"] if n.startswith(f"{EMBEDDING}projection.2")]:
            bias = content["model"].pop(name)
            if what == "another shape":
                content["model"][name] = bias[:-1]
        torch.save(content, path)
    detector = VideoDetector.from_file(path, device="cpu")
    assert detector.model.contrastive_branch is None
    assert list(detector.detect(PICTURES[:2], track=True))
    with pytest.raises(ConfigError, match=r"no embeddings that tell objects apart.*TrackContrast"):
        detector.detect(PICTURES, track=True, appearance=True)
    with pytest.raises(ConfigError, match=r"appearance serves tracks only.*--track"):
        detector.detect(PICTURES, appearance=True)


def test_several_views_have_embeddings_too(tracks: Path) -> None:
    options = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.FLIP", "True"]
    detector = VideoDetector.from_file(tracks, device="cpu", options=options)
    for result in detector.detect(PICTURES[:2], track=True, appearance=True):
        assert len(result.instances.appearance) == len(result.instances)

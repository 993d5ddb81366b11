from __future__ import annotations

import copy
import urllib.error

import pytest
import torch
import torch.nn.functional as F
from made_clips import assert_same, build, decisive, image, losses_of, test_clips, training_clip
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_small
from torchvision.models.optical_flow._utils import upsample_flow

from clab_d2.engine.checkpointer import VIDCheckpointer
from clab_d2.errors import ConfigError
from clab_d2.modeling.aggregation.base import FrameMaps
from clab_d2.modeling.aggregation.dis_flow import DISFlow
from clab_d2.modeling.aggregation.flow_guided import FlowGuided
from clab_d2.modeling.aggregation.optical_flow import warp
from clab_d2.modeling.aggregation.raft_flow import RAFTFlow, read_raft_weights

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 58.0, 56.0)


class GivenFlow(nn.Module):
    """A flow network that says what it is told."""

    def __init__(self, *flows: Tensor) -> None:
        super().__init__()
        self.flows = flows

    def encode(self, images: Tensor) -> list[Tensor]:
        return []

    def forward(self, key: object, references: object) -> Tensor:
        return torch.stack(self.flows)


def constant_flow(dx: float, dy: float) -> Tensor:
    return torch.tensor([dx, dy], dtype=torch.float64).view(2, 1, 1).expand(2, 5, 7)


def raft(**options) -> RAFTFlow:
    torch.manual_seed(0)
    options = {"weights": "random", "pixel_mean": MEAN, "pixel_std": STD, **options}
    return RAFTFlow(**options)


def frames_of(*maps: Tensor) -> list[FrameMaps]:
    return [FrameMaps({"c5": each}, (64, 96)) for each in maps]


def aggregation(flow: nn.Module, channels: int = 6) -> FlowGuided:
    torch.manual_seed(0)
    return FlowGuided({"c5": channels}, flow, (8, 8, 12)).double()


def random_map(seed: int, height: int = 10, width: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 6, height, width, generator=generator, dtype=torch.float64)


# -------------------------------------------------------------------- warping


def test_a_known_shift_is_undone():
    """The reference shows everything 3 positions further right and 2 further down."""
    key = random_map(0)
    reference = torch.roll(key, (2, 3), dims=(2, 3))
    flow = constant_flow(3 / 14, 2 / 10)[None]
    warped = warp(reference, flow, (10, 14))
    torch.testing.assert_close(warped[..., :8, :11], key[..., :8, :11])
    # What lies beyond the border is what is on it.
    torch.testing.assert_close(warped[..., :8, 12], reference[..., 2:, 13])


def test_a_shift_of_half_a_position_is_the_mean_of_two():
    reference = random_map(0)
    warped = warp(reference, constant_flow(0.5 / 14, 0)[None], (10, 14))
    mean = (reference[..., :-1] + reference[..., 1:]) / 2
    torch.testing.assert_close(warped[..., :-1], mean)


def test_a_reference_of_another_size_is_stretched():
    """A map that is linear in position tells where a sample was taken."""
    ramp = torch.linspace(1 / 40, 1 - 1 / 40, 20, dtype=torch.float64).expand(1, 1, 16, 20)
    warped = warp(ramp, constant_flow(0.1, 0)[None], (8, 10))
    expected = torch.linspace(0.05, 0.95, 10, dtype=torch.float64) + 0.1
    torch.testing.assert_close(warped[0, 0, 3, :8], expected[:8])


def test_flow_is_resized_to_the_map():
    """Flow that grows along x, at half the map's resolution, still leads where it says."""
    ramp = torch.linspace(1 / 40, 1 - 1 / 40, 20, dtype=torch.float64).expand(1, 1, 16, 20)
    x = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    flow = torch.stack([-0.2 * x.expand(8, 10), torch.zeros(8, 10, dtype=torch.float64)])[None]
    warped = warp(ramp, flow, (16, 20))
    torch.testing.assert_close(warped[0, 0, 5, 1:-1], 0.8 * ramp[0, 0, 5, 1:-1])


# -------------------------------------------------------------------- weights


def test_zero_flow_and_equal_frames_give_the_map_itself():
    own = random_map(0)
    module = aggregation(GivenFlow(constant_flow(0, 0), constant_flow(0, 0)))
    key, *references = frames_of(own, own.clone(), own.clone())
    torch.testing.assert_close(module(key, references, [1, 3])["c5"], own)


def test_equals_the_formula():
    """Position by position, as the paper has it; frames that count twice come twice."""
    own, first, second = random_map(0), random_map(1), random_map(2)
    module = aggregation(GivenFlow(constant_flow(1 / 14, 0), constant_flow(0, -1 / 10)))
    key, *references = frames_of(own, first, second)
    result = module(key, references, [1, 2])["c5"]
    second_warped = warp(second, constant_flow(0, -1 / 10)[None], (10, 14))
    maps = [own, warp(first, constant_flow(1 / 14, 0)[None], (10, 14)), second_warped]
    maps.append(second_warped)
    embedded = [module.embed["c5"](each)[0] for each in maps]
    for y, x in ((0, 0), (4, 7), (9, 13)):
        e = [each[:, y, x] for each in embedded]
        w = [(each @ e[0] / (each.norm() * e[0].norm())).exp() for each in e]
        expected = sum(a * each[0, :, y, x] for a, each in zip(w, maps, strict=True)) / sum(w)
        torch.testing.assert_close(result[0, :, y, x], expected)


def test_the_key_frame_counts_as_often_as_it_is_a_reference_and_at_least_once():
    own, other = random_map(0), random_map(1)
    module = aggregation(GivenFlow(constant_flow(0.1, 0)))
    key, reference = frames_of(own, other)
    apart = module(key, [reference], [1])["c5"]
    torch.testing.assert_close(module(key, [key, reference], [1, 1])["c5"], apart)
    twice = module(key, [key, reference], [2, 1])["c5"]
    assert not torch.allclose(twice, apart)
    copies = aggregation(GivenFlow(constant_flow(0, 0), constant_flow(0.1, 0)))
    again, _ = frames_of(own, other)
    torch.testing.assert_close(copies(key, [again, reference], [1, 1])["c5"], twice)
    assert torch.equal(module(key, [key], [4])["c5"], own)


def test_gradients_reach_maps_flow_and_embedding():
    own, other = random_map(0, 4, 5).requires_grad_(), random_map(1, 4, 5).requires_grad_()
    flow = (0.05 * torch.randn(2, 4, 5, dtype=torch.float64)).requires_grad_()
    module = aggregation(GivenFlow())

    def aggregate(own: Tensor, other: Tensor, flow: Tensor) -> Tensor:
        module.flow = GivenFlow(flow)
        key, reference = frames_of(own, other)
        return module(key, [reference], [1])["c5"]

    assert torch.autograd.gradcheck(aggregate, (own, other, flow))
    aggregate(own, other, flow).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.embed.parameters())


# -------------------------------------------------------------------- RAFT


def test_flow_is_that_of_torchvisions_raft():
    flow = raft(scale=1.0, num_updates=3)
    torch.manual_seed(1)
    images = torch.rand(3, 3, 128, 160) * 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    features, context = flow.encode((images - mean) / std)
    encoded = [(features[i : i + 1], context[i : i + 1]) for i in range(3)]
    ours = flow(encoded[0], encoded[1:])
    model = raft_small(weights=None)
    model.load_state_dict(flow.raft.state_dict())
    unit = images / 127.5 - 1
    theirs = model(unit[:1].expand(2, -1, -1, -1), unit[1:], num_flow_updates=3)[-1]
    pixels = ours * torch.tensor([20.0, 16.0]).view(1, 2, 1, 1)
    assert theirs.abs().max() > 1
    torch.testing.assert_close(upsample_flow(pixels), theirs, atol=1e-3, rtol=1e-3)


def test_channel_order_scale_and_least_size():
    rgb, bgr = raft(), raft(channel_order="BGR", pixel_mean=MEAN[::-1], pixel_std=STD[::-1])
    pixels = torch.randn(1, 3, 256, 320)
    for left, right in zip(rgb.encode(pixels), bgr.encode(pixels.flip(1)), strict=True):
        torch.testing.assert_close(left, right)
    assert rgb.encode(pixels)[0].shape == (1, 128, 16, 20)
    assert rgb.size_for(608, 1008) == (304, 504)
    assert rgb.size_for(64, 96) == (128, 192)
    assert rgb.size_for(130, 130) == (128, 128)


def test_a_reference_of_another_size_has_flow_too():
    flow = raft(num_updates=2)
    key, other = flow.encode(torch.randn(1, 3, 256, 320)), flow.encode(torch.randn(1, 3, 320, 256))
    assert torch.isfinite(flow(key, [other, key])).all()
    assert flow(key, [other, key]).shape == (2, 2, 16, 20)


@pytest.mark.parametrize("number", [3, 20])
def test_pairs_together_equal_pairs_alone(number):
    flow = raft(num_updates=2)
    encoded = [flow.encode(torch.randn(1, 3, 128, 128)) for _ in range(4)]
    others = [encoded[i % 4] for i in range(number)]
    apart = torch.cat([flow(encoded[0], [other]) for other in others])
    torch.testing.assert_close(flow(encoded[0], others), apart, atol=1e-4, rtol=1e-4)


def test_flow_is_computed_in_single_precision_under_autocast():
    flow = raft(num_updates=2)
    images = torch.randn(2, 3, 128, 128)

    def compute() -> Tensor:
        features, context = flow.encode(images)
        return flow((features[:1], context[:1]), [(features[1:], context[1:])])

    expected = compute()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute(), expected)


# -------------------------------------------------------------------- dense inverse search


def dis(**options) -> DISFlow:
    return DISFlow(**{"pixel_mean": MEAN, "pixel_std": STD, "scale": 1.0, **options})


def moving_scene(dx: int, dy: int) -> Tensor:
    """(2, 3, 96, 144), normalised: a random texture, and the same dx further right, dy down."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, 16, 24), generator=generator)
    first = F.interpolate(coarse, scale_factor=6, mode="bicubic").clamp(0, 1) * 255
    images = torch.cat([first, torch.roll(first, (dy, dx), dims=(2, 3))])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (images - mean) / std


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, -2), (-6, 4)])
def test_dense_inverse_search_finds_a_motion(dx, dy):
    flow = dis()
    (luma,) = flow.encode(moving_scene(dx, dy))
    assert luma.dtype == torch.uint8 and luma.shape == (2, 1, 96, 144)
    found = flow((luma[:1],), [(luma[1:],), (luma[:1],)])
    assert found.shape == (2, 2, 96, 144)
    inner = found[..., 16:-16, 16:-16].mean(dim=(2, 3)) * torch.tensor([144, 96])
    torch.testing.assert_close(inner[0], torch.tensor([dx, dy]).float(), atol=0.3, rtol=0)
    torch.testing.assert_close(inner[1], torch.zeros(2), atol=0.01, rtol=0)


def test_brightness_is_that_of_the_channel_order():
    images = moving_scene(3, 2)
    bgr = dis(channel_order="BGR", pixel_mean=MEAN[::-1], pixel_std=STD[::-1])
    assert torch.equal(dis().encode(images)[0], bgr.encode(images.flip(1))[0])


def test_a_reference_of_another_size_is_stretched_before_the_search():
    flow, images = dis(), moving_scene(4, 2)
    (key,) = flow.encode(images[:1])
    (other,) = flow.encode(F.interpolate(images[1:], scale_factor=2, mode="bicubic"))
    assert other.shape[-2:] == (192, 288)
    inner = flow((key,), [(other,)])[0, :, 16:-16, 16:-16].mean(dim=(1, 2))
    torch.testing.assert_close(
        inner * torch.tensor([144, 96]), torch.tensor([4.0, 2.0]), atol=0.3, rtol=0
    )


def test_small_images_are_searched_larger():
    assert dis().size_for(32, 48) == (64, 96)


def test_dense_inverse_search_has_nothing_to_train_and_no_weights(config):
    model = build(config("flow_guided_quick", "MODEL.FLOW_GUIDED.FLOW", "DIS"))
    assert not any(".flow." in name for name in model.state_dict())
    with pytest.raises(ConfigError, match="TRAIN_FLOW is True, but DIS"):
        build(
            config(
                "flow_guided_quick",
                *("MODEL.FLOW_GUIDED.FLOW", "DIS", "MODEL.FLOW_GUIDED.TRAIN_FLOW", True),
            )
        )


# -------------------------------------------------------------------- RAFT's weights


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty hub folder."""

    def fetch(url: str, *_: object, **__: object) -> None:
        raise urllib.error.URLError(f"no route to {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_weights_that_can_not_be_fetched_are_one_line_with_the_remedy(offline):
    flow = raft(weights="torchvision")
    with pytest.raises(ConfigError) as error:
        flow.encode(torch.zeros(1, 3, 128, 128))
    message = str(error.value)
    assert "\n" not in message
    assert f"put that file into {offline}" in message
    assert "MODEL.FLOW_GUIDED.FLOW_WEIGHTS" in message and "raft_small_C_T_V2" in message
    assert "MODEL.FLOW_GUIDED.FLOW DIS" in message


def test_weights_in_the_hub_folder_are_used(offline):
    state = raft().raft.state_dict()
    offline.mkdir(parents=True)
    torch.save(state, offline / "raft_small_C_T_V2-01064c6d.pth")
    torch.manual_seed(5)
    flow = RAFTFlow(weights="torchvision", pixel_mean=MEAN, pixel_std=STD)
    flow.encode(torch.zeros(1, 3, 128, 128))
    for name, value in flow.raft.state_dict().items():
        assert torch.equal(value, state[name])


def test_files_of_weights(tmp_path):
    wanted = raft().raft.state_dict()
    with pytest.raises(ConfigError, match=r"gone\.pth': there is no such file"):
        read_raft_weights(str(tmp_path / "gone.pth"), wanted)
    path = tmp_path / "raft.pth"
    torch.save({"model": wanted}, path)
    assert read_raft_weights(str(path), wanted).keys() == wanted.keys()
    name = "update_block.flow_head.conv2.weight"
    torch.save({**wanted, name: torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match=f"raft_small \\({name} is not as there"):
        read_raft_weights(str(path), wanted)
    torch.save({**wanted, "more": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="holds others, too"):
        read_raft_weights(str(path), wanted)


def test_a_trained_detector_needs_no_file_of_flow_weights(config, offline):
    trained = build(config("flow_guided_quick")).eval()
    model = build(config("flow_guided_quick", "MODEL.FLOW_GUIDED.FLOW_WEIGHTS", "gone.pth")).eval()
    model.load_state_dict(trained.state_dict())
    for clip in test_clips(1, 2):
        assert_same(model([clip])[0], trained([clip])[0])


def test_a_training_that_starts_from_a_backbone_reads_the_flow_weights(config, tmp_path, caplog):
    raft_state = raft().raft.state_dict()
    torch.save(raft_state, tmp_path / "raft.pth")
    whole = build(config("flow_guided_quick")).state_dict()
    backbone = {name: w for name, w in whole.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    key = "MODEL.FLOW_GUIDED.FLOW_WEIGHTS"
    model = build(config("flow_guided_quick", key, str(tmp_path / "raft.pth")))
    VIDCheckpointer(model, str(tmp_path), purpose="train").load(str(tmp_path / "backbone.pth"))
    for name, value in model.map_aggregation.flow.raft.state_dict().items():
        assert torch.equal(value, raft_state[name])
    told = [r.getMessage() for r in caplog.records if "start from random values" in r.getMessage()]
    assert len(told) == 1 and "embed" in told[0] and "flow" not in told[0].split("values:")[1]
    missing = build(config("flow_guided_quick", key, "gone.pth"))
    with pytest.raises(ConfigError, match=r"FLOW_WEIGHTS 'gone\.pth': .* fetched$"):
        VIDCheckpointer(missing, str(tmp_path), purpose="train").load(
            str(tmp_path / "backbone.pth")
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [("EMBED_DIMS", [8, 8]), ("FLOW_SCALE", 0.0), ("FLOW_UPDATES", 0), ("FLOW", "Farneback")],
)
def test_impossible_settings_are_named(config, key, value):
    with pytest.raises(ConfigError, match=f"MODEL.FLOW_GUIDED.{key}"):
        build(config("flow_guided_quick", f"MODEL.FLOW_GUIDED.{key}", value))


# -------------------------------------------------------------------- in the detector

WITH = {
    "alone": ("flow_guided_quick",),
    "by inverse search": ("flow_guided_quick", "MODEL.FLOW_GUIDED.FLOW", "DIS"),
    "with SELSA": ("flow_guided_quick", "MODEL.AGGREGATION.BOX_FEATURES", "SELSA"),
    "with both": (
        "flow_guided_quick",
        "MODEL.AGGREGATION.BOX_FEATURES", "SELSA",
        "MODEL.AGGREGATION.ROI_FEATURES", "TemporalRoIAlign",
    ),
    "on a pyramid": ("clab_fpn_quick", "MODEL.AGGREGATION.MAPS", "FlowGuided"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("where", "trained"),
    [(where, False) for where in WITH]
    + [(where, True) for where in WITH if "inverse" not in where],
)
def test_trains_with_a_gradient_for_every_parameter(config, where, trained):
    model = build(config(*WITH[where], "MODEL.FLOW_GUIDED.TRAIN_FLOW", trained)).train()
    losses = losses_of(model, [training_clip(1), training_clip(2, (48, 80))])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        if name.startswith("map_aggregation.flow."):
            assert parameter.requires_grad == trained
        assert (parameter.grad is not None) == parameter.requires_grad, name
    copy.deepcopy(model)  # evaluation during a training takes a copy


@pytest.mark.parametrize("trained", [False, True], ids=["frozen flow", "trained flow"])
def test_stills_alone_leave_no_parameter_without_a_gradient(config, trained):
    model = build(config("flow_guided_quick", "MODEL.FLOW_GUIDED.TRAIN_FLOW", trained)).train()
    still = {**training_clip(1), "reference_frame_ids": [5, 5]}
    sum(losses_of(model, [still]).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_batch_of_clips_equals_the_clips_one_by_one(config):
    cfg = config(
        "flow_guided_quick",
        "MODEL.BACKBONE.FIX_BN_STATISTICS", True,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5,
    )  # fmt: skip
    model = build(cfg).train()
    clips = [training_clip(1), training_clip(2), training_clip(3, (48, 80))]
    together = losses_of(model, clips)
    apart = [losses_of(model, [clip]) for clip in clips]
    for key in ("loss_rpn_cls", "loss_rpn_loc"):
        mean = sum(losses[key] for losses in apart) / 3
        torch.testing.assert_close(together[key], mean, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("where", ["alone", "by inverse search", "with both", "on a pyramid"])
def test_memory_and_batches_give_what_computing_all_frames_anew_gives(config, where):
    # On large maps, rounding now and then decides which of two positions is the more similar.
    no_choice = ("MODEL.AGGREGATION.ROI_FEATURES", "") if where == "on a pyramid" else ()
    model = decisive(build(config(*WITH[where], *no_choice))).eval()
    if where != "by inverse search":
        model.map_aggregation.flow.double()  # a random flow network magnifies rounding
    clips = test_clips(1, 3, window=1)
    remembered = [model([clip])[0] for clip in clips]
    model.frames_per_batch = 3
    for left, right in zip(remembered, model(clips[:2]) + model(clips[2:]), strict=True):
        assert_same(left, right)
    for clip, result in zip(clips, remembered, strict=True):
        model.memory.clear()
        ids = {*clip["reference_frame_ids"], clip["frame_id"]}
        assert_same(model([{**clip, "images": {i: image(100 + i) for i in ids}}])[0], result)


def test_each_frame_is_encoded_once_and_none_flows_to_itself(config):
    model = build(config("flow_guided_quick")).eval()
    flow = model.map_aggregation.flow
    encoded, pairs = [], []
    flow.raft.feature_encoder.register_forward_hook(
        lambda module, arguments, output: encoded.append(len(output))
    )
    flow.register_forward_pre_hook(lambda module, arguments: pairs.append(len(arguments[1])))
    clips = test_clips(1, 6)
    for clip in clips:
        model([clip])
    assert sum(encoded) == 6
    assert pairs == [len({*clip["reference_frame_ids"]} - {clip["frame_id"]}) for clip in clips]
    assert all(clip["frame_id"] in clip["reference_frame_ids"] for clip in clips)


def test_a_video_whose_size_changes(config):
    model = build(config("flow_guided_quick")).eval()
    clips = test_clips(1, 4)
    for clip in clips:
        clip["images"] = {
            i: frame if i < 2 else image(i, (80, 64)) for i, frame in clip["images"].items()
        }
        assert torch.isfinite(model([clip])[0]["instances"].scores).all()


def test_mixed_precision(config):
    model = build(config("flow_guided_quick")).train()
    torch.manual_seed(0)
    full = losses_of(model, [training_clip(1)])
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses_of(model, [training_clip(1)])
        sum(mixed.values()).backward()
    for key, value in full.items():
        assert mixed[key].item() == pytest.approx(value.item(), rel=0.2, abs=0.02)
    model.eval()
    model.precision = "bf16"
    for clip in test_clips(1, 2):
        assert torch.isfinite(model([clip])[0]["instances"].scores).all()


def test_references_change_detections(config):
    model = build(config("flow_guided_quick")).eval()
    clips = test_clips(1, 2, window=1)
    scores = model([clips[0]])[0]["instances"].scores
    other = {**clips[0], "images": {**clips[0]["images"], 1: image(999)}}
    changed = model([other])[0]["instances"].scores
    assert len(scores) != len(changed) or not torch.allclose(scores, changed, atol=1e-7)
    assert model.aggregates and not model.head_needs_references


def test_embeddings_decide_the_weights():
    """A frame that is embedded as the key frame is outweighs one that is embedded oppositely."""
    own = torch.ones(1, 6, 4, 5, dtype=torch.float64)
    module = aggregation(GivenFlow(constant_flow(0, 0), constant_flow(0, 0)))
    module.embed["c5"] = nn.Conv2d(6, 6, 1, bias=False).double()
    with torch.no_grad():
        module.embed["c5"].weight.copy_(torch.eye(6)[..., None, None])
    key, *references = frames_of(own, 2 * own, -own)
    result = module(key, references, [1, 1])["c5"]
    e = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64).exp()
    expected = (e * torch.tensor([1.0, 2.0, -1.0])).sum() / e.sum()
    torch.testing.assert_close(result, F.pad(own[..., :0], (0, 5), value=float(expected)))

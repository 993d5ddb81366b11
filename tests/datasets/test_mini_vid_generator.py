"""Mini VID: layout, determinism, boxes that fit the picture, and what its videos hold."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from defusedxml.ElementTree import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from mini_vid_generator import coats, hiding, scene, shapes, summary, writer
from mini_vid_generator.plan import VideoPlan, plan_still, plan_video
from mini_vid_generator.writer import Size

from clab_d2.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden" / "ilsvrc_annotations"
TINY = Size(train=4, val=4, stills=3)
SEED = 5


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "mini_vid"
    writer.make(root, SEED, jobs=1, size=TINY)
    return root


WITH_THREADS = """
import sys
from pathlib import Path
import cv2
import numpy as np
from mini_vid_generator import writer

cv2.setNumThreads(4)
noise = np.random.default_rng(0).integers(0, 255, (400, 600), np.uint8)
cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(noise, noise, None)
writer.make(Path(sys.argv[1]), 5, jobs=2, size=writer.Size(train=1, val=1, stills=1))
"""


def test_is_made_beside_opencvs_own_threads(tmp_path: Path) -> None:
    """They don't survive the fork of the generator's processes, which must not wait for them."""
    command = [sys.executable, "-c", WITH_THREADS, str(tmp_path / "mini_vid")]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT / "datasets")
    assert (tmp_path / "mini_vid" / "preview.png").is_file()


@pytest.fixture(scope="module")
def full() -> dict[str, list[tuple[VideoPlan, summary.VideoRecord]]]:
    """The whole of Mini VID as planned: boxes and degradations, nothing drawn."""
    size = Size()
    return {
        split: [recorded(plan_video(0, split, i)) for i in range(count)]
        for split, count in (("train", size.train), ("val", size.val))
    }


def recorded(plan: VideoPlan) -> tuple[VideoPlan, summary.VideoRecord]:
    kinds = [[None if d is None else d.kind for d in t.degradations] for t in plan.tracks]
    boxes = [plan.boxes(frame) for frame in range(plan.length)]
    return plan, summary.VideoRecord("", plan.width, plan.height, boxes, kinds)


def script():
    path = ROOT / "datasets" / "make_mini_vid.py"
    spec = importlib.util.spec_from_file_location("make_mini_vid", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- files ----------------------------------------------------------------------------------------


def test_layout_is_that_of_ilsvrc(tiny: Path) -> None:
    names = set(files_of(tiny))
    assert {"preview.png", "mini_vid.json"} <= names
    video = "VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000/000000"
    assert f"Data/{video}.JPEG" in names and f"Annotations/{video}.xml" in names
    assert "Data/VID/val/ILSVRC2015_val_00000003/000000.JPEG" in names
    # Every picture has its annotation and the other way round.
    pictures = {n[5:-5] for n in names if n.startswith("Data/")}
    assert pictures == {n[12:-4] for n in names if n.startswith("Annotations/")}
    lists = {n for n in names if n.startswith("Lists/")}
    expected = ("VID_train_15frames", "VID_val_videos", "DET_train_30classes")
    assert lists == {f"Lists/{name}.txt" for name in expected}


def test_lists_have_the_form_of_the_golden_tree(tiny: Path) -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden data at {GOLDEN}")
    for ours in sorted((tiny / "Lists").iterdir()):
        theirs = (GOLDEN / "ILSVRC" / "Lists" / ours.name).read_text().splitlines()
        pattern = shape_of(theirs[0])
        for line in ours.read_text().splitlines():
            assert re.fullmatch(pattern, line), (line, pattern)


def shape_of(line: str) -> str:
    """A pattern for a line like this one, whatever its numbers."""
    return re.sub(r"\d+", r"\\d+", re.escape(line))


def test_15_frames_are_spread_as_in_the_golden_list() -> None:
    path = GOLDEN / "ILSVRC" / "Lists" / "VID_train_15frames.txt"
    if not path.is_file():
        pytest.skip(f"no golden data at {GOLDEN}")
    golden: dict[str, tuple[int, list[int]]] = {}
    for line in path.read_text().splitlines():
        name, _, frame, length = line.split()
        golden.setdefault(name, (int(length), []))[1].append(int(frame))
    for length, frames in golden.values():
        assert writer.train_frames(length) == frames


@given(st.integers(1, 500))
def test_15_frames_lie_in_the_video(length: int) -> None:
    frames = writer.train_frames(length)
    assert len(frames) == min(length, 15)
    assert frames == sorted(set(frames)) and frames[0] == 1 and frames[-1] == length


def test_lists_name_what_is_there(tiny: Path) -> None:
    for line in (tiny / "Lists" / "VID_train_15frames.txt").read_text().splitlines():
        name, one, frame, length = line.split()
        folder = tiny / "Data" / "VID" / name
        assert one == "1" and len(list(folder.iterdir())) == int(length)
        assert (folder / f"{int(frame) - 1:06d}.JPEG").is_file()
    val = (tiny / "Lists" / "VID_val_videos.txt").read_text().splitlines()
    assert len(val) == TINY.val
    for line in val:
        name, _, start, length = line.split()
        assert start == "0" and len(list((tiny / "Data/VID" / name).iterdir())) == int(length)
    for line in (tiny / "Lists" / "DET_train_30classes.txt").read_text().splitlines():
        assert (tiny / "Data" / "DET" / f"{line.split()[0]}.JPEG").is_file()


def test_annotations_say_what_the_golden_ones_say(tiny: Path) -> None:
    def tags(path: Path) -> set[str]:
        root = parse(path).getroot()
        return {child.tag for child in root} | {
            "object/" + child.tag for item in root.iter("object") for child in item
        }

    ours = {kind: next((tiny / "Annotations" / kind).rglob("*.xml")) for kind in ("VID", "DET")}
    vid = {"folder", "filename", "source", "size", "object"} | {
        f"object/{tag}" for tag in ("trackid", "name", "bndbox", "occluded", "generated")
    }
    assert tags(ours["VID"]) == vid
    assert tags(ours["DET"]) == vid - {f"object/{t}" for t in ("trackid", "occluded", "generated")}
    if GOLDEN.is_dir():
        for kind in ours:
            theirs = sorted((GOLDEN / "ILSVRC" / "Annotations" / kind).rglob("*.xml"))[0]
            assert tags(theirs) == tags(ours[kind])


def test_annotations_agree_with_the_plan_and_the_picture(tiny: Path) -> None:
    wnids = {wnid: name for name, (wnid, _, _) in coats.CLASSES.items()}
    plan = plan_video(SEED, "val", 0)
    folder = tiny / "Annotations" / "VID" / writer.video_name("val", 0)
    for frame in range(plan.length):
        root = parse(folder / f"{frame:06d}.xml").getroot()
        assert (
            root.findtext("folder") == folder.name and root.findtext("filename") == f"{frame:06d}"
        )
        picture = cv2.imread(
            str(tiny / "Data/VID" / writer.video_name("val", 0) / f"{frame:06d}.JPEG")
        )
        size = (int(root.findtext("size/height")), int(root.findtext("size/width")))
        assert picture.shape[:2] == size == (plan.height, plan.width)
        found = [
            (
                int(o.findtext("trackid")),
                wnids[o.findtext("name")],
                *(int(o.findtext(f"bndbox/{t}")) for t in ("xmin", "ymin", "xmax", "ymax")),
                o.findtext("occluded") == "1",
            )
            for o in root.iter("object")
        ]
        assert found == [dataclasses.astuple(box) for box in plan.boxes(frame)]


def test_same_seed_same_bytes_whatever_the_number_of_processes(tiny: Path, tmp_path: Path) -> None:
    writer.make(tmp_path / "two", SEED, jobs=2, size=TINY)
    assert files_of(tmp_path / "two") == files_of(tiny)


def test_another_seed_other_pictures() -> None:
    names = [plan_video(seed, "train", 0).tracks[0].look for seed in (0, 1)]
    assert names[0] != names[1]


def test_pictures_differ_between_splits_and_videos() -> None:
    looks = [plan_video(0, s, i).tracks[0].look.mean for s in ("train", "val") for i in range(6)]
    assert len(set(looks)) == len(looks)


def test_converter_takes_the_tree(tiny: Path, tmp_path: Path) -> None:
    from clab_d2.converters.ilsvrc import convert

    convert(tiny, tmp_path, jobs=1, progress=False)
    facts = json.loads((tiny / "mini_vid.json").read_text())["splits"]
    for split, file in (("train", "imagenet_vid_train"), ("val", "imagenet_vid_val")):
        data = json.loads((tmp_path / f"{file}.json").read_text())
        assert len(data["videos"]) == facts[split]["videos"]
        assert len(data["images"]) == facts[split]["frames"]
        assert len(data["annotations"]) == facts[split]["objects"]
        for image in data["images"]:
            assert (tiny / "Data" / "VID" / image["file_name"]).is_file()
    stills = json.loads((tmp_path / "imagenet_det_30plus1cls.json").read_text())
    assert len(stills["images"]) == TINY.stills
    assert len(stills["annotations"]) == facts["det"]["objects"]


# --- the folder is made whole or not at all -------------------------------------------------------


def test_made_already(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_job", None)
    assert writer.make(tiny, SEED, size=TINY)["seed"] == SEED


def test_foreign_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="other files than Mini VID"):
        writer.make(tmp_path, SEED, size=TINY)
    assert script().main(["--output", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(tmp_path) in message
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_other_seed_is_refused(tiny: Path) -> None:
    with pytest.raises(DataError, match=f"Mini VID of seed {SEED}"):
        writer.make(tiny, SEED + 1, size=TINY)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        writer.make(tmp_path / "file", SEED, size=TINY)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_interrupted_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(root: Path, output: Path) -> None:
        raise error

    with pytest.raises(error):
        writer.make(tmp_path / "out", SEED, 1, Size(1, 1, 1), convert=fail)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(writer.Size.__init__, "__defaults__", (9, 1, 1))
    output = str(tmp_path / "out")
    assert script().main(["--output", output, "--seed", "3", "--jobs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["train", "val", "det", "Written"]
    assert "9 videos" in lines[0] and "slow" in lines[0] and "degraded" in lines[0]
    annotations = tmp_path / "out" / "annotations"
    whole = json.loads((annotations / "imagenet_vid_val.json").read_text())
    thinned = json.loads((annotations / "imagenet_vid_val_every_3rd.json").read_text())
    assert len(whole["images"]) == len(thinned["images"])
    few = json.loads((annotations / "imagenet_vid_train_8.json").read_text())
    assert len(few["videos"]) == 8 and {v["id"] for v in few["videos"]} == set(range(1, 9))
    assert len({a["category_id"] for a in few["annotations"]}) == 8
    assert not (annotations / "imagenet_vid_train_32.json").exists()
    measured = sum(image["annotated"] for image in thinned["images"])
    assert measured == round(len(whole["images"]) / 3)
    # Each object's condition is that of its track in the plan.
    plan = plan_video(3, "val", 0)
    boxes = [box for frame in range(plan.length) for box in plan.boxes(frame)]
    frames = [frame for frame in range(plan.length) for _ in plan.boxes(frame)]
    states = [plan.tracks[b.track].degradations[f] for b, f in zip(boxes, frames, strict=True)]
    conditions = [annotation["condition"] for annotation in whole["annotations"]]
    assert conditions == ["clear" if state is None else state.kind for state in states]
    assert len(set(conditions)) > 1
    assert script().main(["--output", output, "--seed", "3"]) == 0
    assert "nothing to do" in capsys.readouterr().out


# --- boxes ----------------------------------------------------------------------------------------


def covered(plan: VideoPlan, number: int, frame: int) -> np.ndarray:
    """Where an object is in its frame, as drawn: (H, W) bool, hidden or not."""
    track = plan.tracks[number]
    canvas = np.zeros((plan.height * scene.SS, plan.width * scene.SS, 3), np.float32)
    alpha = np.zeros(canvas.shape[:2], np.float32)
    scene.draw_figure(
        canvas,
        coats.CLASSES[track.look.name][1],
        track.build,
        track.poses[frame],
        track.placements[frame],
        track.look,
        1.0,
        alpha,
    )
    return cv2.resize(alpha, (plan.width, plan.height), interpolation=cv2.INTER_AREA) > 0.3


def test_boxes_are_tight_on_what_is_drawn() -> None:
    off: list[int] = []
    for index in range(24):
        plan = plan_video(0, "train", index)
        for frame in range(0, plan.length, 7):
            for box in plan.boxes(frame):
                ys, xs = np.nonzero(covered(plan, box.track, frame))
                drawn = (xs.min(), ys.min(), xs.max(), ys.max())
                gap = np.abs(np.subtract(drawn, (box.xmin, box.ymin, box.xmax, box.ymax)))
                off.append(int(gap.max()))
    # The tip of an ear or a tail can be too thin to colour a pixel.
    assert len(off) > 100 and max(off) <= 2 and np.mean(np.array(off) <= 1) > 0.9


def test_boxes_lie_inside_the_frame(full) -> None:
    for plan, record in full["train"] + full["val"]:
        for boxes in record.boxes:
            assert len({box.track for box in boxes}) == len(boxes)
            for b in boxes:
                assert 0 <= b.xmin < b.xmax < plan.width and 0 <= b.ymin < b.ymax < plan.height


def test_who_is_hardly_in_the_frame_is_not_annotated(full) -> None:
    some = 0
    for plan, record in full["train"][:40]:
        for frame, boxes in enumerate(record.boxes):
            for number in set(range(len(plan.tracks))) - {box.track for box in boxes}:
                polygons = plan.tracks[number].polygons(frame)
                inside = [shapes.clip(p, plan.width, plan.height) for p in polygons]
                share = sum(map(shapes.area, inside)) / sum(map(shapes.area, polygons))
                assert share < 0.26
                some += 1
    assert some > 0


@settings(deadline=None)
@given(st.floats(-50, 150), st.floats(-50, 150), st.floats(1, 80), st.floats(1, 80))
def test_clipped_polygon_is_inside_and_not_larger(x: float, y: float, rx: float, ry: float) -> None:
    whole = shapes.ellipse(x, y, rx, ry)
    inside = shapes.clip(whole, 100, 60)
    assert shapes.area(inside) <= shapes.area(whole) + 1e-6
    if len(inside):
        assert inside.min() >= -1e-9
        assert inside[:, 0].max() <= 100 + 1e-9 and inside[:, 1].max() <= 60 + 1e-9
    if rx <= x <= 100 - rx and ry <= y <= 60 - ry:
        assert np.array_equal(inside, whole)


def test_clip_knows_the_area_of_a_square() -> None:
    square = np.array([(-10.0, -10.0), (10.0, -10.0), (10.0, 10.0), (-10.0, 10.0)])
    assert shapes.area(square) == 400
    assert shapes.area(shapes.clip(square, 100, 100)) == 100
    assert len(shapes.clip(square + 500, 100, 100)) == 0


# --- look-alikes ----------------------------------------------------------------------------------


def twins() -> list[tuple[str, str]]:
    return sorted({tuple(sorted((name, twin))) for name, (_, _, twin) in coats.CLASSES.items()})


def test_classes_are_in_pairs_of_one_figure() -> None:
    from clab_d2.data.imagenet_vid import IMAGENET_VID_CLASSES, IMAGENET_VID_WNIDS

    assert len(coats.CLASSES) >= 8 and len(twins()) * 2 == len(coats.CLASSES)
    known = dict(zip(IMAGENET_VID_CLASSES, IMAGENET_VID_WNIDS, strict=True))
    for name, (wnid, kind, twin) in coats.CLASSES.items():
        assert known[name] == wnid
        assert coats.CLASSES[twin][1:] == (kind, name)


def drawn(name: str, visibility: float, turn: float = 1.0) -> np.ndarray:
    # The draws of an individual must not depend on which of the two it is.
    look = coats.draw_look(name, np.random.default_rng(3))
    canvas = np.full((128 * scene.SS, 192 * scene.SS, 3), 0.5, np.float32)
    placement = shapes.Placement(90, 120, 75, turn)
    kind = coats.CLASSES[name][1]
    pose = shapes.Pose(phase=1.0, stride=0.3, tail=0.2)
    scene.draw_figure(canvas, kind, shapes.Build(), pose, placement, look, visibility)
    return canvas


@pytest.mark.parametrize("pair", twins())
@pytest.mark.parametrize("turn", [1.0, -0.6])
def test_hidden_markings_leave_no_trace(pair: tuple[str, str], turn: float) -> None:
    one, other = (drawn(name, 0.0, turn) for name in pair)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("pair", twins())
def test_markings_tell_a_pair_apart(pair: tuple[str, str]) -> None:
    one, other = (drawn(name, 1.0) for name in pair)
    object_pixels = np.abs(drawn(pair[0], 0.0) - 0.5).max(axis=2) > 0.02
    assert np.abs(one - other).max(axis=2)[object_pixels].mean() > 0.1
    # ... and by nothing but colour: not a pixel outside the common figure.
    shown = [np.any(drawn(name, 1.0) != 0.5, axis=2) for name in pair]
    assert np.array_equal(*shown)


@pytest.mark.parametrize("index", range(6))
def test_a_degraded_frame_can_not_tell(index: int) -> None:
    """Exchange the class of every object for its twin: degraded frames stay the same."""
    plan = plan_video(0, "train", index)
    other = dataclasses.replace(
        plan,
        tracks=[
            dataclasses.replace(
                t, look=dataclasses.replace(t.look, name=coats.CLASSES[t.look.name][2])
            )
            for t in plan.tracks
        ],
    )
    from mini_vid_generator.background import make_background

    ground = make_background(
        plan.ground, plan.width, plan.height, plan.horizon, np.random.default_rng(0)
    )
    for frame in range(0, plan.length, 3):
        same = np.array_equal(*(scene.render(p, ground, frame) for p in (plan, other)))
        hidden = [t.degradations[frame] is not None for t in plan.tracks]
        if all(hidden):
            assert same
        elif plan.boxes(frame) and not any(hidden):
            assert not same


@given(st.floats(1, 60), st.floats(-3.2, 3.2))
def test_motion_kernel_keeps_brightness(length: float, angle: float) -> None:
    kernel = hiding.motion_kernel(length, angle)
    assert kernel.shape[0] % 2 == 1 and kernel.sum() == pytest.approx(1, abs=1e-4)


# --- what it holds --------------------------------------------------------------------------------


def test_counts_of_the_whole(full) -> None:
    assert len(full["train"]) >= 80 and len(full["val"]) >= 30
    for videos in full.values():
        lengths = [plan.length for plan, _ in videos]
        assert min(lengths) == 1 and sum(1 < n < 14 for n in lengths) >= 2
        assert 18 <= np.mean(lengths) <= 25
        facts = summary.describe([record for _, record in videos])
        assert set(facts["objects_per_class"]) == set(coats.CLASSES)
        counts = facts["objects_per_class"].values()
        assert max(counts) < 3 * min(counts)
        sizes = Counter((plan.width, plan.height) for plan, _ in videos)
        assert sizes.most_common(1)[0][0] == (192, 128) and len(sizes) >= 3


def test_every_speed_and_enough_of_it(full) -> None:
    for videos in full.values():
        facts = summary.describe([record for _, record in videos])
        assert all(facts["speed"][name] >= 0.15 for name in ("slow", "medium", "fast"))
        assert sum(facts["speed"].values()) == pytest.approx(1, abs=1e-3)


def test_objects_turn_cross_leave_and_come_back(full) -> None:
    for videos in full.values():
        turning = back = crossing = camera = 0
        for plan, record in videos:
            seen = [{box.track: box for box in boxes} for boxes in record.boxes]
            for number, track in enumerate(plan.tracks):
                turning += len({p.turn > 0 for p in track.placements}) == 2
                frames = [f for f, boxes in enumerate(seen) if number in boxes]
                assert frames, "an object that is never seen"
                back += any(b - a > 1 for a, b in itertools.pairwise(frames))
            order = {
                tuple(sorted(boxes, key=lambda n, boxes=boxes: boxes[n].xmin + boxes[n].xmax))
                for boxes in seen
                if len(boxes) == len(plan.tracks)
            }
            crossing += len(order) > 1
            camera += np.ptp(plan.camera.x) > 5
        assert turning >= 5 and back >= 3 and crossing >= 3 and camera >= 5


def test_degraded_runs_are_short_and_clear_frames_near(full) -> None:
    for videos in full.values():
        share = summary.describe([record for _, record in videos])
        assert 0.35 <= share["degraded_frames"] <= 0.5
        for plan, record in videos:
            for states in record.degradations:
                clear = [f for f, state in enumerate(states) if state is None]
                assert clear
                if plan.length >= 14:
                    assert len(clear) >= 0.4 * plan.length
                    assert all(min(abs(f - c) for c in clear) <= 9 for f in range(plan.length))


def test_twins_seldom_meet(full) -> None:
    for videos in full.values():
        names = [{track.look.name for track in plan.tracks} for plan, _ in videos]
        meet = sum(any(coats.CLASSES[n][2] in group for n in group) for group in names)
        assert meet <= 0.08 * len(names)


def test_stills_are_single_frames_some_with_two_objects() -> None:
    plans = [plan_still(0, index) for index in range(Size().stills)]
    assert {plan.length for plan in plans} == {1}
    counts = Counter(len(plan.boxes(0)) for plan in plans)
    assert counts[0] == 0 and counts[2] >= 5

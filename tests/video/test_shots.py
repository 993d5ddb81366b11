"""Detection in a film with a cut: as in two films."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from numbered_frames import grey
from stub_detector import NotingModel, make_cfg
from two_scenes import CUT, NUM_FRAMES, two_scenes

from clab_d2.errors import ConfigError
from clab_d2.video import FrameResult, VideoDetector

pytest.importorskip("scenedetect")

FILM = two_scenes()


def detect(source: Any, sampling: str = "adaptive", **options: Any) -> list[FrameResult]:
    cfg = make_cfg(sampling, 4, **options.pop("cfg", {}))
    return list(VideoDetector(cfg, NotingModel()).detect(source, **options))


def found(results: list[FrameResult]) -> list[Any]:
    return [
        (r.image.tolist(), r.instances.scores.tolist(), r.instances.pred_boxes.tensor.tolist())
        for r in results
    ]


@pytest.mark.parametrize("postprocess", ["", "seq_nms", "smooth_scores"])
@pytest.mark.parametrize(
    ("sampling", "mode"),
    [
        ("adaptive", "offline"),
        ("adaptive", "windowed"),
        ("adaptive", "online"),
        ("fixed", "offline"),
        ("causal", "offline"),
    ],
)
def test_two_shots_are_as_two_files(sampling: str, mode: str, postprocess: str) -> None:
    options = {
        "sampling": sampling,
        "mode": mode,
        "cfg": {"TEST.POSTPROCESS.NAME": postprocess, "TEST.KEY_FRAMES_PER_BATCH": 3},
    }
    film = detect(FILM, shots=True, **options)
    parts = detect(FILM[:CUT], **options) + detect(FILM[CUT:], **options)
    assert found(film) == found(parts)
    assert [r.index for r in film] == list(range(NUM_FRAMES))
    assert [r.shot for r in film] == [0] * CUT + [1] * (NUM_FRAMES - CUT)
    blind = detect(FILM, **options)
    assert found(blind) != found(parts), "the cut would have made no difference"
    assert {r.shot for r in blind} == {0}


def test_a_stream_forgets_at_a_cut() -> None:
    stream = detect(iter(FILM), shots=True)
    parts = detect(iter(FILM[:CUT])) + detect(iter(FILM[CUT:]))
    assert found(stream) == found(parts) != found(detect(iter(FILM)))


def test_the_config_may_ask_for_it() -> None:
    key = {"TEST.REFERENCES.FIND_SHOTS": True}
    assert found(detect(FILM, cfg=key)) == found(detect(FILM, shots=True))
    assert found(detect(FILM, cfg=key, shots=False)) == found(detect(FILM))


def test_a_film_without_a_cut_is_detected_as_ever() -> None:
    frames = [grey(n) for n in range(9)]
    for mode in ("offline", "windowed", "online"):
        assert found(detect(frames, mode=mode, shots=True)) == found(detect(frames, mode=mode))


def test_a_single_frame_detector_tells_shots_too() -> None:
    model = NotingModel()
    model.needs_references = False
    results = list(VideoDetector(make_cfg(), model).detect(FILM, shots=True))
    assert [r.shot for r in results] == [0] * CUT + [1] * (NUM_FRAMES - CUT)


def test_tracks_end_at_a_cut() -> None:
    pytest.importorskip("trackers")

    class Sure(NotingModel):
        def forward(self, clips: list[dict[str, Any]]) -> Any:
            outputs = super().forward(clips)
            for output in outputs:
                output["instances"].scores[:] = 0.9
            return outputs

    detector = VideoDetector(make_cfg(), Sure())
    tracks = [r.track_ids for r in detector.detect(FILM, track=True, shots=True)]
    assert tracks[CUT - 1] == [1] and tracks[-1] == [2]
    assert tracks[CUT] == [None], "confirmed in the second frame, as in a new video"
    tracks = [r.track_ids for r in detector.detect(FILM, track=True)]
    assert tracks[CUT - 1] == tracks[-1] == [1]


def test_the_missing_package_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    detector = VideoDetector(make_cfg(), NotingModel())
    with pytest.raises(ConfigError, match=r"needs scenedetect"):
        detector.detect(FILM, shots=True)

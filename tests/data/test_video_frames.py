"""Random access to frames of video files: always what playing the file gives."""

from __future__ import annotations

import gc
import os
import pickle
import random
import socket
import subprocess
import sys
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from encoded_videos import (
    encode,
    encode_colour,
    join_without_encoding,
    moving_pictures,
    play,
    set_display_matrix,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clab_d2.data import video_container, video_frames, video_index
from clab_d2.data.video_frames import VideoFrameReader, read_video_frame, split_frame_name
from clab_d2.errors import DataError

NUM_FRAMES = 50

# name -> (file name, how it is encoded)
KINDS = {
    "b-frames": ("a.mp4", {}),
    "matroska": ("a.mkv", {}),
    "open groups of pictures": (
        "a.mp4",
        {"options": {"x264-params": "open-gop=1:b-pyramid=2:keyint=12"}},
    ),
    "rolling refresh without key frames": (
        "a.mp4",
        {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    ),
    "one key frame": ("a.mp4", {"keyframe_every": 1000}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4"}),
    "vp8 with hidden frames": (
        "a.webm",
        {
            "codec": "libvpx",
            "b_frames": 0,
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"},
        },
    ),
    "vp9 with hidden frames": (
        "a.webm",
        {
            "codec": "libvpx-vp9",
            "b_frames": 0,
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"},
        },
    ),
    "hevc with open groups": (
        "a.mp4",
        {"codec": "libx265", "options": {"x265-params": "open-gop=1:keyint=12:log-level=none"}},
    ),
    "mpeg4 in matroska": ("a.mkv", {"codec": "mpeg4"}),
    "program stream": ("a.mpg", {"codec": "mpeg2video"}),
    "flash": ("a.flv", {}),
    "quicktime": ("a.mov", {"codec": "mjpeg", "b_frames": 0}),
    "times before zero": ("a.mkv", {"times": list(range(-20, NUM_FRAMES - 20))}),
    "raw stream": ("a.h264", {}),
    "uneven times": ("a.mkv", {"times": [n + n * n // 9 for n in range(NUM_FRAMES)]}),
    "without times": ("a.avi", {"codec": "mpeg4", "b_frames": 0}),
    "b-frames without times": ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    "transport stream": ("a.ts", {}),
    "motion jpeg": ("a.avi", {"codec": "mjpeg", "b_frames": 0}),
}


def make(folder: Path, kind: str) -> Path:
    name, how = KINDS[kind]
    codec = how.get("codec", "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    return encode(folder / name, moving_pictures(NUM_FRAMES), **how)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order_gives_the_frames_of_playing(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path, kind)
    played = play(path)
    reader = VideoFrameReader(path)
    assert len(reader) == len(played) == NUM_FRAMES
    order = list(range(NUM_FRAMES)) * 2
    random.Random(3).shuffle(order)
    for index in [*order, *range(NUM_FRAMES), *reversed(range(NUM_FRAMES))]:
        np.testing.assert_array_equal(reader.read(index), played[index], err_msg=f"{index}")


@pytest.mark.parametrize("groups", ["closed", "open"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_losslessly_joined_pieces_give_the_frames_of_playing(
    suffix: str, groups: str, tmp_path: Path
) -> None:
    """Time stamps of neighbouring pieces overlap at the joints."""
    options = {"x264-params": "open-gop=1:b-pyramid=2:keyint=12"} if groups == "open" else None
    source = encode(tmp_path / "source.mp4", moving_pictures(90), options=options)
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    path = join_without_encoding(
        tmp_path / f"joined{suffix}", source, [(keys[1], 30, 0), (keys[3], 29, 22.3), (0, 31, 43.6)]
    )
    played = play(path)
    reader = VideoFrameReader(path)
    assert len(reader) == len(played)
    order = list(range(len(played))) * 2
    random.Random(3).shuffle(order)
    for index in [*order, *range(len(played))]:
        np.testing.assert_array_equal(reader.read(index), played[index], err_msg=f"{index}")


def test_times_of_decoding_in_place_of_those_of_display_are_noticed(tmp_path: Path) -> None:
    """What becomes of an AVI with B-frames that is put into an MP4."""
    # The first frames show in the file's order, so that the start doesn't tell.
    source = encode(tmp_path / "source.mp4", moving_pictures(40), kinds="IPPPPPP")
    path = tmp_path / "a.mp4"
    with av.open(str(source)) as opened, av.open(str(path), "w") as container:
        copy = container.add_stream_from_template(opened.streams.video[0])
        for packet in opened.demux(video=0):
            if packet.size:
                packet.pts = packet.dts
                packet.stream = copy
                container.mux(packet)
    played = play(path)
    reader = VideoFrameReader(path)
    assert len(reader) == len(played)
    for index in (30, 12, *range(len(played)), 17):
        np.testing.assert_array_equal(reader.read(index), played[index], err_msg=f"{index}")


def test_frames_that_a_recording_begins_with_and_cannot_show_are_no_frames(tmp_path: Path) -> None:
    """Of a broadcast, tuned in to amid a group of pictures."""
    source = encode(tmp_path / "source.ts", moving_pictures(60), options={"x264-params": "aud=1"})
    with av.open(str(source)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "a.ts"
    content = source.read_bytes()
    path.write_bytes(content[: 3 * 188] + content[positions[7] :])
    played = play(path)
    reader = VideoFrameReader(path)
    assert 0 < len(reader) == len(played) < 53
    for index in (30, 0, 12, len(played) - 1):
        np.testing.assert_array_equal(reader.read(index), played[index], err_msg=f"{index}")


@pytest.mark.parametrize(
    "kind",
    ["without times", "b-frames without times", "transport stream", "raw stream", "program stream"],
)
def test_a_file_without_exact_times_is_decoded_from_its_start_once_only(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, kind)
    played = play(path)
    reader = VideoFrameReader(path)
    reader.read(0)
    monkeypatch.setattr(VideoFrameReader, "_rewind", lambda self: pytest.fail("from the start"))
    for index in (40, 20, 45, 30, 49, 14):
        np.testing.assert_array_equal(reader.read(index), played[index])


@pytest.mark.parametrize(("patience", "level"), [(60.0, "DEBUG"), (-1.0, "INFO")])
def test_reading_a_file_through_is_told_where_it_takes_long_and_once(
    patience: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(video_index, "_LONG_SECONDS", patience)
    caplog.set_level("DEBUG", "clab_d2")
    path = make(tmp_path, "transport stream")
    for _ in range(2):
        VideoFrameReader(path)
    (told,) = [record for record in caplog.records if "read once through" in record.getMessage()]
    assert told.levelname == level
    assert "to index its frames (0 s); nothing is wrong" in told.getMessage()


def test_packets_other_than_before_a_jump_are_noticed(tmp_path: Path) -> None:
    path = make(tmp_path, "b-frames")
    played = play(path)
    reader = VideoFrameReader(path)
    reader.read(0)

    class Leaking:
        """A container that loses a packet after each jump."""

        def __init__(self, container: object) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def demux(self, stream: object) -> Iterator[object]:
            for number, packet in enumerate(self.container.demux(stream)):
                if number != 2:
                    yield packet

    reader._container = Leaking(reader._container)
    for index in (40, 20, 45):
        np.testing.assert_array_equal(reader.read(index), played[index])


@pytest.fixture(scope="module")
def b_frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoFrameReader, list[np.ndarray]]:
    path = make(tmp_path_factory.mktemp("video"), "b-frames")
    return VideoFrameReader(path), play(path)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.lists(st.integers(0, NUM_FRAMES - 1), min_size=1, max_size=12))
def test_any_walk_gives_the_frames_of_playing(
    b_frames: tuple[VideoFrameReader, list[np.ndarray]], order: list[int]
) -> None:
    reader, played = b_frames
    for index in order:
        np.testing.assert_array_equal(reader.read(index), played[index])


def test_a_result_belongs_to_the_caller(b_frames) -> None:
    reader, played = b_frames
    reader.read(7)[:] = 0
    np.testing.assert_array_equal(reader.read(7), played[7])


def test_reading_forwards_decodes_each_frame_once(tmp_path: Path, monkeypatch) -> None:
    reader = VideoFrameReader(make(tmp_path, "b-frames"))
    seeks = []
    monkeypatch.setattr(
        VideoFrameReader, "_seek", lambda self, *args: pytest.fail(f"sought {args}; {seeks}")
    )
    for index in range(NUM_FRAMES):
        reader.read(index)


@pytest.mark.parametrize("kind", ["b-frames", "without times"])
def test_a_short_way_back_decodes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a training clip's key frame to the reference ahead of it."""
    path = make(tmp_path, kind)
    played = play(path)
    reader = VideoFrameReader(path)
    reader.read(30)
    with monkeypatch.context() as patch:
        for way in ("_seek", "_rewind", "_decode_forwards"):
            patch.setattr(VideoFrameReader, way, lambda *args: pytest.fail("decoded again"))
        # On the way from a key frame to frame 30, these were passed.
        for index in (30, 29, 27, 30, 26):
            np.testing.assert_array_equal(reader.read(index), played[index])
    for index in (31, 3, 33):
        np.testing.assert_array_equal(reader.read(index), played[index])
    assert len(reader._recent) <= 10
    # Of large frames, few are kept.
    monkeypatch.setattr(video_frames, "_MAX_RECENT_BYTES", 1)
    for index in (40, 39, 38, 45):
        np.testing.assert_array_equal(reader.read(index), played[index])
        assert len(reader._recent) == 1
    reader.forget_recent()
    np.testing.assert_array_equal(reader.read(44), played[44])


def test_out_of_range(b_frames) -> None:
    reader, _ = b_frames
    for index in (-1, NUM_FRAMES):
        with pytest.raises(IndexError, match=f"no frame {index}; the video has frames 0 to 49"):
            reader.read(index)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=str)
def test_a_turned_phone_gives_upright_frames(matrix: tuple[int, ...], tmp_path: Path) -> None:
    path = set_display_matrix(encode(tmp_path / "a.mp4", moving_pictures(3)), matrix)
    reader = VideoFrameReader(path)
    _, upright = cv2.VideoCapture(str(path)).read()  # OpenCV turns by itself
    assert (reader.height, reader.width) == upright.shape[:2]
    difference = np.abs(reader.read(0).astype(int) - upright[:, :, ::-1])
    assert difference.max() <= 3


# (a, b, c, d) of the matrix: how the picture is displayed
DISPLAYS = {
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): lambda x: x[:, ::-1],
    (1, 0, 0, -1): lambda x: x[::-1],
    (-1, 0, 0, -1): lambda x: x[::-1, ::-1],
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (0, -1, 1, 0): lambda x: np.rot90(x),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", DISPLAYS, ids=str)
def test_turned_and_mirrored_as_the_file_asks(matrix: tuple[int, ...], tmp_path: Path) -> None:
    """Compared by hand with what ffmpeg's own tool shows of each."""
    path = encode(tmp_path / "a.mp4", moving_pictures(3))
    stored = play(path)[1]
    set_display_matrix(path, matrix)
    reader = VideoFrameReader(path)
    frame = reader.read(1)
    np.testing.assert_array_equal(frame, DISPLAYS[matrix](stored))
    assert frame.shape[:2] == (reader.height, reader.width)
    assert frame.flags.c_contiguous


@pytest.mark.parametrize(
    ("matrix", "luma"),
    [(1, (0.2126, 0.0722)), (5, (0.299, 0.114)), (6, (0.299, 0.114)), (9, (0.2627, 0.0593))],
    ids=["BT.709", "BT.601 of 625 lines", "BT.601 of 525 lines", "BT.2020"],
)
def test_colours_are_those_of_the_standard_that_the_file_names(
    matrix: int, luma: tuple[float, float], tmp_path: Path
) -> None:
    colour = (200, 60, 10)
    path = encode_colour(tmp_path / "a.mp4", colour, matrix, luma)
    assert np.abs(VideoFrameReader(path).read(0).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("version", ["12.3.0", "16.1.0", "17.0.0", "17.0.0rc1"])
def test_a_pyav_that_reads_wrongly_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", moving_pictures(2))
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(
        DataError, match=rf"^PyAV {version} is too old.*run pip install \"av>=17\.0\.1\"$"
    ):
        video_container.open_container(str(path), threads=1)


def test_messages_of_decoding_threads_wait_for_nothing(tmp_path: Path) -> None:
    """With PyAV's messages on, as torchvision 0.19 has them, reading came to a stop for ever."""
    path = make(tmp_path, "open groups of pictures")
    code = """
import random, sys
import av
from clab_d2.data.video_frames import VideoFrameReader
av.logging.set_level(av.logging.ERROR)
for number in range(10):
    reader = VideoFrameReader(sys.argv[1], threads=0)
    for index in random.Random(number).sample(range(len(reader)), 20):
        reader.read(index)
    reader.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_decoders_are_let_go_without_garbage_collection(tmp_path: Path) -> None:
    """A forked worker that collects one waits for ever for its threads, which are the parent's."""
    path = encode(tmp_path / "a.mp4", moving_pictures(20))

    def num_streams() -> int:
        return sum(isinstance(thing, av.stream.Stream) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = num_streams()
        with closing(VideoFrameReader(path)) as reader:
            reader.read(5)
            assert num_streams() > before  # that of the open file, so they are counted
        assert num_streams() == before
    finally:
        gc.enable()


def test_reads_in_a_forked_process(tmp_path: Path) -> None:
    # Noise makes the file larger than what is read ahead, so that the place in it matters.
    noise = np.random.default_rng(0).integers(0, 255, (NUM_FRAMES, 96, 128, 3), dtype=np.uint8)
    path = encode(tmp_path / "a.mp4", list(noise), options={"crf": "5"})
    assert path.stat().st_size > 500_000
    played = play(path)
    reader = VideoFrameReader(path)
    reader.read(20)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = all(np.array_equal(reader.read(i), played[i]) for i in (21, 3, 40))
        finally:
            os.write(write_end, b"1" if good else b"0")
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read_end, 1) == b"1"
    for index in (*range(21, NUM_FRAMES), 5):  # the child has not moved the parent's place
        np.testing.assert_array_equal(reader.read(index), played[index])


def test_a_seek_that_goes_too_far_is_noticed(tmp_path: Path, monkeypatch) -> None:
    path = make(tmp_path, "open groups of pictures")
    played = play(path)
    reader = VideoFrameReader(path)
    reader.read(0)

    class Overshooting:
        """A container that seeks to the key frame after the one asked for."""

        def __init__(self, container: object) -> None:
            self.container = container

        def __getattr__(self, name: str) -> object:
            return getattr(self.container, name)

        def seek(self, pts: int, **how: object) -> None:
            keyframes = [*reader._index.keys.pts.tolist(), 10**9]
            later = keyframes[min(bisect_left(keyframes, pts) + 1, len(keyframes) - 2)]
            self.container.seek(later, **how)

    reader._container = Overshooting(reader._container)
    for index in (40, 41, 14, 30, 2):
        np.testing.assert_array_equal(reader.read(index), played[index])


def test_a_reader_ends_without_garbage_collection(tmp_path: Path) -> None:
    """Which may come in a forked process, where a decoder's threads are not."""
    reader = VideoFrameReader(make(tmp_path, "b-frames"), threads=2)
    reader.read(20)
    gone = weakref.ref(reader)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


def test_what_an_edit_list_trims_is_no_frame(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", moving_pictures(40), b_frames=0)
    path = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as source:
        stream = source.streams.video[0]
        options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
        with av.open(str(path), "w", options=options) as target:
            copy = target.add_stream_from_template(stream)
            shift = int(5 / 25 / stream.time_base)  # the first five frames go before time 0
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = copy
                    target.mux(packet)
    played = play(path)
    assert len(played) == 35
    reader = VideoFrameReader(path)
    assert len(reader) == 35
    for index in (20, 0, 34, 3):
        np.testing.assert_array_equal(reader.read(index), played[index])


def test_pickles_without_its_open_file(b_frames) -> None:
    reader, played = b_frames
    reader.read(4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(30), played[30])


def test_damage_costs_the_damaged_frames_only(tmp_path: Path) -> None:
    # Motion JPEG: each frame stands alone, so it is known which ones are hit.
    path = encode(tmp_path / "a.mp4", moving_pictures(20), codec="mjpeg", b_frames=0)
    played = play(path)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for number in (6, 7):
        position, size = packets[number]
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    reader = VideoFrameReader(path)
    assert len(reader) == 20
    for index in [*range(20), 12, 6, 3, 7, 8]:
        if index in (6, 7):
            with pytest.raises(DataError, match=f"a.mp4#{index}: the frame cannot be decoded"):
                reader.read(index)
        else:
            np.testing.assert_array_equal(reader.read(index), played[index])


def test_a_file_cut_off_gives_what_it_has(tmp_path: Path) -> None:
    path = make(tmp_path, "matroska")
    played = play(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    reader = VideoFrameReader(path)
    assert 5 < len(reader) < NUM_FRAMES
    np.testing.assert_array_equal(reader.read(5), played[5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such video file; check the path"),
        (b"", "cannot be opened as a video"),
        (b"not a video" * 100, "cannot be opened as a video"),
    ],
)
def test_what_is_no_video_is_told_in_one_line(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        VideoFrameReader(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        for path, kind in (
            (tmp_path / "pipe.mp4", "a named pipe"),
            (tmp_path / "socket.mp4", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(DataError, match=f"{path}: {kind}, not a file"):
                VideoFrameReader(path)


def test_a_sound_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="holds no video stream"):
        VideoFrameReader(path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/b.mp4#12", ("a/b.mp4", 12)),
        ("a#b.MOV#0", ("a#b.MOV", 0)),
        ("a/b.mp4", None),
        ("a/b.mp4#x", None),
        ("a/b.mp4#-1", None),
        ("a/b#12.jpg", None),
        ("a/b.jpg#12", None),
    ],
)
def test_names_of_frames(name: str, parts: tuple[str, int] | None) -> None:
    assert split_frame_name(name) == parts


def test_read_by_name_keeps_few_files_open(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(video_frames, "_MAX_OPEN_VIDEOS", 2)
    frames = moving_pictures(4)
    paths = [encode(tmp_path / f"{n}.mp4", frames[n:]) for n in range(3)]
    played = [play(path) for path in paths]
    for n in (0, 1, 2, 0, 2):
        np.testing.assert_array_equal(read_video_frame(f"{paths[n]}#0"), played[n][0])
        *others, _ = video_frames._open_videos.readers.values()
        assert len(others) <= 1
        assert not any(reader._recent for reader in others), "recent frames of the last one only"
    with pytest.raises(DataError, match=r"no frame 9; the video has frames 0 to 3"):
        read_video_frame(f"{paths[0]}#9")
    with pytest.raises(DataError, match="not a frame of a video file"):
        read_video_frame(str(paths[0]))


def test_open_files_end_quietly_with_python(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_pictures(4))
    script = (
        "import sys; from clab_d2.data.video_frames import read_video_frame\n"
        "print(read_video_frame(sys.argv[1]).shape)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, f"{path}#1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "(48, 64, 3)\n"
    assert "Exception" not in done.stderr


def test_a_file_made_anew_is_indexed_anew(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", moving_pictures(10))
    assert len(VideoFrameReader(path)) == 10
    encode(path, moving_pictures(6))
    assert len(VideoFrameReader(path)) == 6


@pytest.mark.parametrize("kind", ["b-frames", "b-frames without times"])
@pytest.mark.parametrize("damage", [b"damaged", b"PK\x03\x04 damaged"])
def test_a_slow_index_is_kept_on_disk(
    kind: str, damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAB_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(video_index, "_SLOW_INDEX_SECONDS", 0)
    path = make(tmp_path, kind)
    played = play(path)
    VideoFrameReader(path)
    (stored,) = (tmp_path / "cache" / "video_index").iterdir()
    video_index._indices.clear()
    monkeypatch.setattr(video_index, "_make_index", lambda path: pytest.fail("made again"))
    np.testing.assert_array_equal(VideoFrameReader(path).read(33), played[33])
    # A damaged one is no harm.
    monkeypatch.undo()
    monkeypatch.setenv("CLAB_D2_CACHE", str(tmp_path / "cache"))
    stored.write_bytes(damage)
    video_index._indices.clear()
    assert len(VideoFrameReader(path)) == NUM_FRAMES

"""docs/correct_in_cvat.md: its commands, run from top to bottom on a tiny detector."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from encoded_videos import encode, moving_pictures
from test_one_file import LOW, train
from tiny_videos import CLASSES, make_tiny_videos
from tool_modules import import_tool

from clab_d2_cli.tools import convert_cvat

PAGE = Path(__file__).resolve().parents[2] / "docs" / "correct_in_cvat.md"
BRIEF = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0", *LOW]


def page_commands() -> dict[str, list[str]]:
    """Arguments by script."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines]
    assert all(words[0] == "python" for words in commands)
    return {words[1]: words[2:] for words in commands}


def test_detect_correct_convert_and_train_again(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trackers")
    videos = make_tiny_videos(tmp_path / "videos", lengths=(3, 2))
    assert train(config_file, *videos.options, *BRIEF, "OUTPUT_DIR", str(tmp_path / "first")) == 0
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(tmp_path / "first" / "model_final.pth", mine)
    encode(mine / "clip.mp4", moving_pictures(4, 64, 96))
    commands = page_commands()
    assert list(commands) == ["tools/demo.py", "datasets/convert_cvat.py", "tools/train_net.py"]

    words = commands["tools/demo.py"]
    words[words.index("0.5")] = "0"  # a detector of one iteration is sure of nothing
    options = ["--opts", "TEST.DETECTIONS_PER_IMAGE", "3"]
    assert import_tool("demo").main([*words, *options]) == 0

    # By hand: the first track is a disc, whatever the detector said.
    text = (mine / "found.xml").read_text()
    assert "<track " in text
    corrected = re.sub(r'(<track id="0" label=)"[^"]*"', r'\1"disc"', text)
    (mine / "corrected.xml").write_text(corrected)

    assert convert_cvat.main(commands["datasets/convert_cvat.py"]) == 0
    content = json.loads((mine / "corrected.json").read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASSES)
    assert len(content["images"]) == 4
    assert any(a["category_id"] == 2 for a in content["annotations"])

    words = commands["tools/train_net.py"]
    assert words[:2] == ["--config-file", "configs/OwnVideos/clab_384.yaml"]
    assert train(config_file, *words[2:], *BRIEF) == 0
    assert (mine / "again" / "model_final.pth").is_file()

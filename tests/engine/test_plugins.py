"""Plug-ins: imported by name or path, adding parts and config keys, in every process."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from tiny_videos import make_tiny_videos
from tool_modules import import_tool

import clab_d2.config
from clab_d2 import extend_config, get_clab_cfg
from clab_d2.engine import add_import_option, import_plugins, load_config
from clab_d2.errors import ConfigError

PLUGIN = '''
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from clab_d2 import extend_config

@extend_config
def add_keys(cfg):
    cfg.MODEL.MINE = CfgNode()
    cfg.MODEL.MINE.RATE = 0.5

@META_ARCH_REGISTRY.register()
class MyModel(torch.nn.Module):
    needs_references = needs_reference_truth = False

    def __init__(self, cfg):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(cfg.MODEL.MINE.RATE))

    def forward(self, clips):
        return {"loss_mine": self.weight.square()}
'''


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imports and adds is gone after it."""
    monkeypatch.setattr(clab_d2.config, "_extensions", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_option_may_be_repeated() -> None:
    parser = argparse.ArgumentParser()
    add_import_option(parser)
    assert parser.parse_args([]).imports == []
    assert parser.parse_args(["--import", "a", "--import", "b/c.py"]).imports == ["a", "b/c.py"]


@pytest.mark.parametrize("name", ["inside.one", "inside/one.py"])
def test_modules_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(tmp_path / "inside" / "one.py", "import sys\nsys.plugin_runs.append(__name__)\n")
    monkeypatch.setattr(sys, "plugin_runs", [], raising=False)
    monkeypatch.chdir(tmp_path)
    import_plugins([name, name])
    import_plugins([name])
    assert len(sys.plugin_runs) == 1
    # By its other name, too, it is imported already.
    import_plugins(["inside/one.py"])
    assert len(sys.plugin_runs) == 1
    # What it defines can be pickled by its module's name.
    assert sys.plugin_runs[0] in sys.modules


def test_a_file_here_does_not_hide_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "wave.py", "raise ValueError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    import_plugins(["wave"])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["there is no"]),
        ("x = 1\nraise RuntimeError('out\\nof order')", ["RuntimeError: out of order", "line 2"]),
        ("import not_there_at_all", ["not_there_at_all", "line 1"]),
        ("def (", ["SyntaxError", "line 1"]),
        ("import sys; sys.exit(3)", ["SystemExit"]),
    ],
)
@pytest.mark.parametrize("name", ["broken_plugin", "broken_plugin.py"])
def test_one_line_names_the_plugin(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    parts: list[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        write(tmp_path / "broken_plugin.py", text)
    for _ in range(2):  # a failed import leaves nothing half-made behind
        with pytest.raises(ConfigError) as caught:
            import_plugins([name])
        message = str(caught.value)
        assert "--import" in message and "broken_plugin" in message and "\n" not in message
        assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", ["", ".", "..relative", "no_package_here.module"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="--import"):
        import_plugins([name])


def test_config_keys_of_a_plugin() -> None:
    calls: list[int] = []

    def add_keys(cfg: CfgNode) -> None:
        calls.append(1)
        cfg.MODEL.MINE = CfgNode()
        cfg.MODEL.MINE.RATE = 0.5

    assert extend_config(add_keys) is add_keys
    extend_config(add_keys)
    cfg = get_clab_cfg()
    assert calls == [1], "once, though registered twice"
    assert cfg.MODEL.MINE.RATE == 0.5
    cfg.merge_from_list(["MODEL.MINE.RATE", "0.25"])
    assert cfg.MODEL.MINE.RATE == 0.25
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list(["MODEL.MINE.RATE", "much"])
    with pytest.raises(AssertionError, match="RAT"):
        cfg.merge_from_list(["MODEL.MINE.RAT", "1.0"])


def test_config_keys_that_fail() -> None:
    @extend_config
    def add_keys(cfg: CfgNode) -> None:
        cfg.MODLE.MINE = 1

    with pytest.raises(ConfigError, match=r"add_keys: .*AttributeError.*MODLE"):
        get_clab_cfg()


def test_unknown_key_points_to_plugins(tmp_path: Path) -> None:
    config = write(tmp_path / "config.yaml", "MODEL: {MINE: {RATE: 0.5}}\n")
    with pytest.raises(ConfigError, match=r"MODEL\.MINE.*--import"):
        load_config(str(config), [])


@pytest.mark.parametrize("tool", ["demo", "visualize_dataset", "benchmark", "convert_checkpoint"])
def test_tools_import_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    """Before the config is read, which here is not there."""
    plugin = write(tmp_path / "speaking.py", "raise ValueError('heard')")
    files = {
        "demo": ["--input", "none.mp4", "--output", "drawn.mp4"],
        "visualize_dataset": ["--output", "drawn.png"],
        "convert_checkpoint": ["in.pth", "out.pth"],
    }
    arguments = ["--import", str(plugin), "--config-file", "none.yaml", *files.get(tool, [])]
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    assert import_tool(tool).main() == 2
    assert "ValueError: heard" in capsys.readouterr().err


def test_every_process_of_a_training_has_them(repo_root: Path, tmp_path: Path) -> None:
    write(tmp_path / "here" / "my_plugin.py", PLUGIN)
    made = make_tiny_videos(tmp_path)
    process = subprocess.run(
        [
            *(sys.executable, str(repo_root / "tools" / "train_net.py")),
            *("--config-file", str(repo_root / "configs/quick_schedules/clab_quick.yaml")),
            *("--import", "my_plugin", "--num-gpus", "2"),
            *made.options,
            *("MODEL.META_ARCHITECTURE", "MyModel", "MODEL.MINE.RATE", "2.0"),
            *("MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"),
            *("OUTPUT_DIR", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path / "here",
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert '"total_loss": 4.0' in (tmp_path / "out" / "metrics.json").read_text()

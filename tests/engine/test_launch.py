"""Jobs that end badly: one line and a status, whatever the number of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_videos import make_tiny_videos

from clab_d2.engine import launch
from clab_d2.errors import ConfigError

# Fails on the last rank only, as the RPN's own check (or a data error) does.
PLUGIN = '''
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from clab_d2 import extend_config

@extend_config
def add_keys(cfg):
    cfg.MODEL.DIVERGES = "loss"

@META_ARCH_REGISTRY.register()
class DivergingModel(torch.nn.Module):
    needs_references = needs_reference_truth = False

    def __init__(self, cfg):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.way = cfg.MODEL.DIVERGES

    def forward(self, clips):
        loss = self.weight.sum()
        if get_event_storage().iter == 3 and comm.get_rank() == comm.get_world_size() - 1:
            if self.way == "boxes":
                raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
            loss = loss * float("nan")
        return {"loss_fine": self.weight.sum(), "loss_gone": loss}
'''


@pytest.mark.parametrize(
    ("way", "what", "processes"),
    [
        ("loss", "loss_gone is infinite", 1),
        ("boxes", "a box or score is infinite", 1),
        ("boxes", "a box or score is infinite", 2),
    ],
)
def test_divergence(repo_root: Path, tmp_path: Path, way: str, what: str, processes: int) -> None:
    plugin = tmp_path / "diverging.py"
    plugin.write_text(PLUGIN)
    process = subprocess.run(
        [
            *(sys.executable, str(repo_root / "tools" / "train_net.py")),
            *("--config-file", str(repo_root / "configs/quick_schedules/clab_quick.yaml")),
            *("--import", str(plugin), "--num-gpus", str(processes)),
            *make_tiny_videos(tmp_path).options,
            *("MODEL.META_ARCHITECTURE", "DivergingModel", "MODEL.DIVERGES", way),
            *("MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "9"),
            *("OUTPUT_DIR", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    output = process.stdout + process.stderr
    assert process.returncode == 2, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert "the training diverged at iteration 3" in lines[0]
    log = (tmp_path / "out" / "log.txt").read_text()
    for long_list in ("Environment info:\n", "Running with full config:\n", "Model:\n"):
        assert long_list in log and long_list not in output
    assert f"are in {tmp_path / 'out'}/log.txt" in output
    assert what in lines[0]
    assert "SOLVER.BASE_LR" in lines[0]
    assert "Traceback" not in output
    # What was saved before is still there, and nothing after it.
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize("below", ["", "/out", "/a/b"])
def test_output_dir_at_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"OUTPUT_DIR .*file.*: nothing can be written there"):
        launch._check_output_dir(f"{tmp_path}/file{below}")
    assert (tmp_path / "file").read_text() == "mine"


def test_output_dir_of_others() -> None:
    with pytest.raises(ConfigError, match="OUTPUT_DIR /proc"):
        launch._check_output_dir("/proc/self/out")


def test_output_dir_is_made(tmp_path: Path) -> None:
    launch._check_output_dir(f"{tmp_path}/a/b")
    assert list((tmp_path / "a" / "b").iterdir()) == []

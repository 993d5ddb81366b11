"""tools/serve.py as a command; tests/web has the page in a browser."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from tool_modules import import_tool

from clab_d2 import config
from clab_d2.checkpoint.model_file import ModelCard, write_model_file
from clab_d2.checkpoint.portable_config import config_to_plain
from clab_d2.engine.launch import load_config

serve = import_tool("serve")
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None,
    reason='Gradio is not installed (pip install "clab_d2[web]")',
)


@pytest.fixture(scope="module")
def weights(config_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # Keys of plug-ins that another test has imported: the page's own process has not.
        patch.setattr(config, "_extensions", {})
        cfg = load_config(config_file, ["MODEL.DEVICE", "cpu"], needs_datasets=False)
    names = [f"thing {n}" for n in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    write_model_file(path, build_model(cfg).state_dict(), ModelCard(config_to_plain(cfg), names))
    return path


@needs_gradio
def test_a_page_is_served_until_ctrl_c(weights: Path, repo_root: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(repo_root / "tools" / "serve.py"), "--weights", str(weights)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(repo_root)}
    with subprocess.Popen(
        [*command, "--port", str(port)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A job in the background ignores Ctrl-C, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("open "):
                break
        address = re.search(r"open (http://127\.0\.0\.1:\d+) ", said)
        assert address is not None, said
        with urllib.request.urlopen(address[1], timeout=60) as answer:
            assert b"clab_d2" in answer.read()
        # Another program can't have the port, and is told in a line.
        second = subprocess.run(
            [*command, "--port", str(port)], env=environment, text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert f"error: --port {port} can't be used" in second.stderr
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert not list(tmp_path.glob("clab_d2_page_*"))  # nothing is kept


def test_models_are_told_apart_by_name(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "model_final.pth"
    other.parent.mkdir()
    other.write_bytes(weights.read_bytes())
    models = serve.load_models([str(weights), str(other)], [])
    assert list(models) == [weights.parent.name, "other"]
    assert list(serve.load_models([str(other)], [])) == ["model_final"]


def test_mistakes_are_one_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "gone.pth")
    cases = [
        (["--weights", str(weights), "--port", "0"], "--port is 0"),
        (["--weights", str(weights), "--max-seconds", "0"], "must be above 0"),
    ]
    if importlib.util.find_spec("gradio") is not None:
        cases += [
            (["--weights", missing], "gone.pth"),
            (["--weights", str(weights), str(weights)], "would have the same name"),
        ]
    for arguments, message in cases:
        assert serve.main(arguments) == 2
        error = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("error: ")]
        assert len(error) == 1 and message in error[0]

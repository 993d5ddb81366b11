"""Configs that can't be read, and devices that aren't there, told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clab_d2.engine.config_file import load_config
from clab_d2.errors import ConfigError


def refusal(path: Path, options: list[str] | None = None, num_processes: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), options or [], num_processes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


QUICK = Path(__file__).resolve().parents[2] / "configs" / "quick_schedules" / "clab_quick.yaml"


def test_its_own_base(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "_BASE_: a.yaml\n")
    assert "a.yaml: is its own _BASE_ (a.yaml -> a.yaml)" in refusal(path)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_circle_of_bases(tmp_path: Path, as_list: bool) -> None:
    """Found under a file that is not in it."""
    base = "[fine.yaml, {}]" if as_list else "{}"
    write(tmp_path / "fine.yaml", "SEED: 1\n")
    write(tmp_path / "sub" / "b.yaml", f"_BASE_: {tmp_path / 'c.yaml'}\n")
    write(tmp_path / "c.yaml", "_BASE_: " + base.format("./sub/../sub/b.yaml") + "\n")
    path = write(tmp_path / "a.yaml", "_BASE_: c.yaml\n")
    assert "is its own _BASE_ (c.yaml -> b.yaml -> c.yaml)" in refusal(path)


def test_the_same_base_twice_is_no_circle(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", f"_BASE_: {QUICK}\nSOLVER: {{MAX_ITER: 7}}\n")
    for name in "ab":
        write(tmp_path / f"{name}.yaml", "_BASE_: base.yaml\n")
    path = write(tmp_path / "both.yaml", "_BASE_: [a.yaml, b.yaml]\nSEED: 3\n")
    cfg = load_config(str(path), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.SEED) == (7, 3)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- SEED\n- 1\n", "holds no KEY: VALUE pairs"),
        ("SEED\n", "holds no KEY: VALUE pairs"),
        ("", "holds no KEY: VALUE pairs"),
        ("[" * 100_000, "nested too deeply"),
        ("SEED: " + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("A: {" * 5_000, "nested too deeply"),
        ("SEED: {", "not valid YAML"),
        ("SEED: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("_BASE_: none.yaml\n", "none.yaml: this config can't be read"),
        ("_BASE_: 3\n", "_BASE_ is 3"),
        ("_BASE_: [{a: b}]\n", "_BASE_ is {'a': 'b'}"),
        ("1: 2\n", "1"),
    ],
)
@pytest.mark.parametrize("as_base", [False, True])
def test_bad_yaml(tmp_path: Path, text: str, part: str, as_base: bool) -> None:
    """The message names the file at fault, which may be a base."""
    path = write(tmp_path / "bad.yaml", text)
    given = write(tmp_path / "given.yaml", "_BASE_: bad.yaml\n") if as_base else path
    message = refusal(given)
    assert part in message
    assert part.startswith("none.yaml") or part == "1" or "bad.yaml" in message


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"SEED: \xff\xfe\n")
    assert "a.yaml: not valid YAML" in refusal(path)


@pytest.mark.parametrize("depth", [150, 1_000, 100_000])
def test_deep_values_on_the_command_line(depth: int) -> None:
    assert "command line: " in refusal(QUICK, ["DATASETS.VID", "[" * depth + "]" * depth + "x"])
    assert "command line: " in refusal(QUICK, ["SEED", "[" * depth + "]" * depth])


@pytest.mark.parametrize(
    "device", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "mps", "meta", "cuda 0"]
)
def test_unknown_devices(tmp_path: Path, device: str) -> None:
    path = write(tmp_path / "a.yaml", f"MODEL: {{DEVICE: '{device}'}}\n")
    assert f"MODEL.DEVICE is {device!r}; choose cpu or cuda" in refusal(path)


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    pretend(monkeypatch, gpus)
    for device in ("cuda:8", "cuda:99", "cuda:256"):  # PyTorch takes 256 for 0
        message = refusal(QUICK, ["MODEL.DEVICE", device])
        assert f"MODEL.DEVICE is {device}, but this machine has {gpus} GPU(s)" in message
    for device in ("cuda", "cuda:0", f"cuda:{max(gpus, 1) - 1}"):
        found = load_config(str(QUICK), ["MODEL.DEVICE", device]).MODEL.DEVICE
        assert found == (device if gpus else "cpu")


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    pretend(monkeypatch, gpus)
    assert load_config(str(QUICK), ["MODEL.DEVICE", "cpu"], 8).MODEL.DEVICE == "cpu"
    if gpus:
        assert load_config(str(QUICK), [], 8).MODEL.DEVICE == "cuda"
        assert "set cuda" in refusal(QUICK, ["MODEL.DEVICE", "cuda:0"], 2)
    else:
        assert "add MODEL.DEVICE cpu" in refusal(QUICK, [], 2)

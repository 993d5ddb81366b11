"""``clab-d2``: which subcommands there are, its help, and its own few commands."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clab_d2 import model_zoo
from clab_d2_cli import commands
from clab_d2_cli.completion import SHELLS
from clab_d2_cli.main import help_text, import_command, main

ROOT = Path(__file__).resolve().parents[2]
#: They make the data and the demo of a checkout.
CHECKOUT_ONLY = {"make_demo", "make_mini_vid"}


@pytest.fixture
def arguments_kept() -> Iterator[None]:
    """A subcommand sets the program's name, as does a program that is started."""
    before = list(sys.argv)
    yield
    sys.argv = before


def test_every_tool_is_a_subcommand() -> None:
    tools = {path.stem for folder in ("tools", "datasets") for path in (ROOT / folder).glob("*.py")}
    found = commands.find_commands().values()
    assert {command.module for command in found} == tools - CHECKOUT_ONLY
    for command in found:
        assert (ROOT / command.script).is_file()


def test_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    # With those tools, too, that are not there yet.
    monkeypatch.setattr(commands.Command, "is_there", property(lambda self: True))
    lines = help_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_a_reader_may_stop_early() -> None:
    """As in ``clab-d2 --help | head -3``."""
    command = [sys.executable, "-m", "clab_d2_cli", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("name", commands.find_commands())
def test_tool_has_what_a_subcommand_needs(name: str) -> None:
    module = import_command(commands.find_commands()[name])
    assert callable(module.main)
    parser = module.make_parser()
    assert parser.format_help()
    with pytest.raises(SystemExit) as done:
        module.main(["--help"])
    assert done.value.code == 0


@pytest.mark.parametrize("name", commands.find_commands())
def test_a_tools_help_fits_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = import_command(commands.find_commands()[name]).make_parser()
    lines = parser.format_help().splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_a_tools_help_names_the_subcommand(
    capsys: pytest.CaptureFixture[str], arguments_kept: None
) -> None:
    with pytest.raises(SystemExit):
        main(["split", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: clab-d2 split ")
    assert "    clab-d2 split all.json --train" in text
    assert "split_coco_vid.py" not in text


def test_a_tools_exit_status_is_returned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments_kept: None
) -> None:
    missing = str(tmp_path / "none.json")
    assert main(["evaluate", "--annotations", missing, "--predictions", missing]) == 2
    assert capsys.readouterr().err.startswith(f"error: {missing}")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_each_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in commands.find_commands())


def test_mistyped_command_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "error: 'trian' is no command of clab-d2; did you mean train? (clab-d2 --help lists them)\n"
    )
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: clab-d2")


def test_configs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    assert capsys.readouterr().out.splitlines() == model_zoo.list_configs()


def test_missing_library_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise ImportError("clab_d2: Detectron2 is missing: run clab-d2 install-detectron2")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == (
        "error: clab_d2: Detectron2 is missing: run clab-d2 install-detectron2\n"
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "study"])
def test_without_detectron2_every_command_says_so_in_one_line(command: str) -> None:
    """Where only exported models are to run."""
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "fvcore"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from clab_d2_cli.main import main
sys.exit(main([{command!r}, "--help"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: clab_d2: Detectron2 is missing (need 0.6 or newer): run clab-d2 install-detectron2"
    ]


def test_a_module_of_ones_own_that_is_missing_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="mine"):
        main(["train"])


def test_list_and_installer_start_without_the_heavy_libraries() -> None:
    code = """
import sys
from clab_d2_cli.main import main
main(["--help"])
try:
    main(["install-detectron2", "--help"])
except SystemExit:
    pass
assert not {"torch", "detectron2", "clab_d2"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name in commands.find_commands():
        assert name in script
    for option in ("--config-file", "--score-threshold", "--val-share"):
        assert option in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_of_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "takes a shell: bash, zsh" in capsys.readouterr().err


def test_completion_completes_in_bash(capsys: pytest.CaptureFixture[str]) -> None:
    """What bash is told to offer behind `clab-d2 spl` and `clab-d2 split --va`."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = """
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  $(complete -p clab-d2 | sed -E 's/.*-F ([^ ]+) .*/\\1/'); echo "${COMPREPLY[@]}"; }
offer clab-d2 spl
offer clab-d2 split --va
"""
    done = subprocess.run(
        ["bash", "-c", script + asked], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["split", "--val --val-share --val-videos"]

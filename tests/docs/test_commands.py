"""Commands in the docs: each is of a tool that a named test runs, with options the tool has."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clab_d2_cli.commands import Command, find_commands
from clab_d2_cli.main import import_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]

#: Subcommand -> the test that runs it. Every tool that is there must have one.
RUN_BY = {
    "detect": "tests/tools/test_demo.py",
    "detect-videos": "tests/tools/test_detect_videos.py",
    "serve": "tests/tools/test_serve.py",
    "train": "tests/tools/test_train_net.py",
    "study": "tests/tools/test_study.py",
    "evaluate": "tests/tools/test_evaluate.py",
    "plot": "tests/tools/test_plot_metrics.py",
    "check": "tests/tools/test_check_dataset.py",
    "view-data": "tests/tools/test_visualize_dataset.py",
    "view-attention": "tests/tools/test_visualize_attention.py",
    "analyze": "tests/tools/test_analyze_model.py",
    "benchmark": "tests/tools/test_benchmark.py",
    "convert": "tests/tools/test_convert_checkpoint.py",
    "export": "tests/tools/test_export_model.py",
    "convert-cvat": "tests/tools/test_convert_annotations.py",
    "convert-ilsvrc": "tests/converters/test_ilsvrc.py",
    "convert-mot": "tests/tools/test_convert_annotations.py",
    "split": "tests/tools/test_split_tool.py",
    "thin": "tests/tools/test_thin_tool.py",
    "find-shots": "tests/tools/test_find_shots.py",
    "install-detectron2": "tests/tools/test_install_detectron2.py",
}
#: Of a checkout only -> the test that runs it.
SCRIPTS = {
    "tools/make_demo.py": "tests/tools/test_make_demo.py",
    "datasets/make_mini_vid.py": "tests/datasets/test_mini_vid_generator.py",
    "docs/scripts/measure_parity.py": "tests/test_golden_detections.py",
    "docs/scripts/measure_clip.py": "tests/docs/test_measure_clip.py",
    "docs/scripts/measure_steps.py": "tests/docs/test_measure_steps.py",
    "docs/scripts/measure_postprocessing.py": "tests/docs/test_measure_postprocessing.py",
    "docs/scripts/make_moving_picture.py": "tests/docs/test_make_moving_picture.py",
    "docs/scripts/take_serve_pictures.py": "tests/web/test_page_in_browser.py",
    "docs/scripts/measure_stream.py": None,  # measures speed, for docs/performance.md
    "docs/scripts/draw_architecture.py": None,  # draws a figure of the docs
    "docs/scripts/draw_method.py": "tests/docs/test_method.py",
    "docs/scripts/explain_contrast.py": "tests/docs/test_explain_contrast.py",
}
#: What a command that isn't ours does, and why no test runs it.
OTHERS = {
    "make": "sets up and runs the tests themselves",
    "pip": "downloads packages; tests/test_packaging.py builds and installs ours without a network",
    "pre-commit": "a program of its own",
    "source": "a shell's",
    "mkdir": "a shell's",
    "cp": "a shell's",
    "ls": "a shell's",
    "git": "a program of its own",
    "sbatch": "takes a cluster; tests/docs/test_slurm_scripts.py runs the scripts",
    "torchrun": "takes several machines",
}
#: Above a block: the reason why it isn't run.
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")


@dataclass(frozen=True)
class Line:
    """A command in a page.

    Attributes:
        page: the file.
        words: as the shell parts them.
        not_run: the page's reason why its block isn't run, "" where it is.
    """

    page: Path
    words: tuple[str, ...]
    not_run: str


def commands_of(page: Path) -> Iterator[Line]:
    """The commands in a page's blocks of shell (``bash``, or without a language)."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL):
        if block[2] not in ("", "bash", "sh", "console"):
            continue
        reason = NOT_RUN.search(text[: block.start()])
        for line in block[3].replace("\\\n", " ").splitlines():
            words = _words(line)
            if words:
                yield Line(page, words, reason[1] if reason else "")


def _words(line: str) -> tuple[str, ...]:
    """A command's words; nothing where the line is no command of ours or of another program."""
    line = line.split("   # ")[0].strip()
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return ()
    while words and re.fullmatch(r"\w+=\S*", words[0]):
        words.pop(0)
    if words and words[0] in ("python", "clab-d2", *OTHERS):
        return tuple(words)
    return ()


LINES = [line for page in PAGES for line in commands_of(page)]


def tool_of(words: tuple[str, ...]) -> tuple[Command | str | None, tuple[str, ...]]:
    """The tool that a command calls (None: no tool of ours), and its arguments."""
    if words[0] == "clab-d2":
        name = words[1]
        return find_commands().get(name, name), words[2:]
    if words[0] == "python" and words[1].endswith(".py"):
        for command in find_commands().values():
            if command.script == words[1]:
                return command, words[2:]
        return words[1], words[2:]
    return None, words[1:]


def described(line: Line) -> str:
    return f"{line.page.relative_to(ROOT)}: {' '.join(line.words)[:90]}"


def test_commands_are_found() -> None:
    tools = {tool.name for tool, _ in (tool_of(line.words) for line in LINES) if
             isinstance(tool, Command)}  # fmt: skip
    assert {"train", "detect", "evaluate", "study", "convert-cvat"} <= tools
    assert len(LINES) > 40


@pytest.mark.parametrize("line", LINES, ids=described)
def test_command_is_of_a_tool_that_a_test_runs(line: Line) -> None:
    tool, arguments = tool_of(line.words)
    if isinstance(tool, Command):
        test = ROOT / RUN_BY[tool.name]
        assert test.is_file() and tool.module in test.read_text(encoding="utf-8")
        _check_options(import_command(tool).make_parser(), arguments, line)
    elif tool in ("configs", "completion", "--help", "--version"):
        assert f'main(["{tool}"' in (ROOT / "tests/cli/test_main.py").read_text() or tool in (
            "--help",
            "--version",
        )
    elif tool is not None:
        assert tool in SCRIPTS, f"{described(line)}: neither a subcommand nor a known script"
        assert (ROOT / tool).is_file()
        test = SCRIPTS[tool]
        assert test is None or (ROOT / test).is_file()
    elif line.words[0] == "python":
        assert line.words[1] in ("-c", "-m")
    else:
        assert line.words[0] in OTHERS


def _check_options(
    parser: argparse.ArgumentParser, arguments: tuple[str, ...], line: Line
) -> None:
    """Every option of a command exists, by its whole name."""
    known = {option for action in parser._actions for option in action.option_strings}
    for word in arguments:
        if word in ("|", ">", "&&", ";"):
            break
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{described(line)}: no option {word}"


@pytest.mark.parametrize("name", find_commands())
def test_every_subcommand_has_its_test(name: str) -> None:
    test = ROOT / RUN_BY[name]
    assert test.is_file()
    assert find_commands()[name].module in test.read_text(encoding="utf-8")


def test_reasons_are_given_in_words() -> None:
    reasons = {line.not_run for line in LINES if line.not_run}
    assert len(reasons) >= 3
    assert all(len(reason.split()) >= 2 for reason in reasons)


def test_wrong_option_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "made_up.md"
    line = Line(page, ("clab-d2", "split", "a.json", "--tarin", "t.json"), "")
    tool, arguments = tool_of(line.words)
    assert isinstance(tool, Command)
    with pytest.raises(AssertionError, match="no option --tarin"):
        _check_options(import_command(tool).make_parser(), arguments, line)


def test_scripts_can_be_executed_as_they_are_written() -> None:
    """The docs write ``tools/evaluate.py ...``, without python in front."""
    for script in [*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]:
        if script.read_text(encoding="utf-8").startswith("#!"):
            assert os.access(script, os.X_OK), f"git update-index --chmod=+x {script.name}"

#!/usr/bin/env python
"""Take docs/serve.jpg and docs/serve_phone.jpg: tools/serve.py's page after a video.

    python docs/scripts/take_serve_pictures.py --video datasets/mini_vid/Data/VID/val/VIDEO \\
        --models "single_frame=single/model_final.pth" "CLAB=clab/model_final.pth"

The page is served by the command that users have, and driven by Playwright in the system's
Chromium: at a desktop's width two models are compared with tracks, at a phone's the last model
alone. Takes pip install "clab_d2[web,video,track]" playwright, and Chromium (Debian, Ubuntu: apt
install chromium).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from make_moving_picture import named_files
from PIL import Image

from clab_d2.engine.launch import exit_status
from clab_d2.errors import ConfigError
from clab_d2.optional import import_optional
from clab_d2.video import VideoWriter, open_video
from clab_d2.video.command_line import set_up

ROOT = Path(__file__).resolve().parents[2]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT = 600_000  # milliseconds: a whole video goes through models
_QUALITY = 82  # JPEG's


@dataclass(frozen=True)
class Look:
    """A picture to take.

    Attributes:
        file: its name.
        width: of the browser's window, in CSS pixels.
        picture_width: of the picture, in pixels.
        compares: whether a second model is compared with the first.
    """

    file: str
    width: int
    picture_width: int
    compares: bool


LOOKS = (
    Look("serve.jpg", 1280, 1000, compares=True),
    Look("serve_phone.jpg", 390, 300, compares=False),
)


def find_browser() -> str:
    """The system's Chromium.

    Raises:
        ConfigError: there is none.
    """
    for name in _BROWSERS:
        if path := shutil.which(name):
            return path
    raise ConfigError("no Chromium is installed (Debian, Ubuntu: apt install chromium)")


def as_file(video: Path, folder: Path) -> Path:
    """The video as a visitor drops it: of a folder of pictures a file ``video.mp4`` is made."""
    if not video.is_dir():
        return video
    path = folder / "video.mp4"
    with open_video(video) as source, VideoWriter(path, source.fps) as writer:
        assert source.num_frames is not None
        for number in range(source.num_frames):
            writer.write(source.read(number))
    return path


@contextlib.contextmanager
def served(models: Mapping[str, Path], folder: Path) -> Iterator[str]:
    """tools/serve.py with these models, under these names; yields the page's address.

    Raises:
        ConfigError: it does not begin; with what it said.
    """
    weights = []
    for name, file in models.items():
        link = folder / f"{name}{file.suffix}"
        link.symlink_to(file.resolve())
        weights.append(str(link))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tools/serve.py"), "--weights", *weights]
    with subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            said = ""
            assert process.stdout is not None
            for line in process.stdout:
                said += line
                if address := re.match(r"open (http://\S+)", line):
                    yield address[1]
                    return
            raise ConfigError(f"tools/serve.py did not begin: {said}")
        finally:
            process.send_signal(signal.SIGINT)


def take(browser: Any, address: str, look: Look, names: Sequence[str], video: Path) -> bytes:
    """Go the way of a visitor, from the upload to the table; the whole page as PNG."""
    page = browser.new_page(viewport={"width": look.width, "height": 844})
    page.set_default_timeout(_TIMEOUT)
    page.goto(address)
    page.set_input_files("#original input[type=file]", str(video))
    page.locator("#original video").wait_for()
    _choose(page, "#model", names[0] if look.compares else names[-1])
    if look.compares:
        _choose(page, "#other", names[1])
    page.check("#tracks input")
    page.click("#start")
    page.get_by_text("Done.").wait_for()
    for part in ("#drawn video", "#timeline img", "#table table"):
        page.locator(part).wait_for()
    # All videos at the same frame, in the middle; by itself none is played.
    page.evaluate(
        """() => Promise.all([...document.querySelectorAll("video")].filter(v => v.src).map(
            video => new Promise(resolve => {
                video.pause();
                video.addEventListener("seeked", resolve, {once: true});
                video.currentTime = video.duration / 2;
            })))"""
    )
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)  # what the mouse was over fades
    taken: bytes = page.screenshot(full_page=True)
    page.close()
    return taken


def save_small(shot: bytes, path: Path, width: int) -> None:
    """Write a PNG as a JPEG of that width."""
    with Image.open(io.BytesIO(shot)) as picture:
        height = round(picture.height * width / picture.width)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    small.save(path, quality=_QUALITY, optimize=True)


def _choose(page: Any, field: str, name: str) -> None:
    page.click(f"{field} input")
    page.get_by_role("option", name=name, exact=True).click()
    page.get_by_role("option").first.wait_for(state="detached")  # the list fades


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs=2, required=True, metavar="NAME=FILE")
    parser.add_argument(
        "--video", type=Path, required=True, help="a file, or a folder of frames"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder")
    return parser


def run(args: argparse.Namespace) -> None:
    models = named_files(args.models)
    executable = find_browser()
    import_optional("playwright", "dev", "driving a browser")
    from playwright.sync_api import sync_playwright

    args.output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        video = as_file(args.video, folder)
        address = stack.enter_context(served(models, folder))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=executable)
        stack.callback(browser.close)
        for look in LOOKS:
            path = args.output / look.file
            shot = take(browser, address, look, list(models), video)
            save_small(shot, path, look.picture_width)
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())

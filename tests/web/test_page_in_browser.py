"""The page in a real browser, from the upload to the download, at phone and desktop width."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from encoded_videos import encode, moving_pictures, play
from PIL import Image
from stub_detector import NotingModel
from tool_modules import import_docs_script

from clab_d2.engine.launch import load_config
from clab_d2.video import VideoDetector
from clab_d2.web.video_job import Limits
from clab_d2.web.workspace import Workspace

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None,
        reason='Gradio is not installed (pip install "clab_d2[web]")',
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="Playwright is not installed (pip install playwright)",
    ),
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium is installed (Debian, Ubuntu: apt install chromium)"
    ),
]
FRAMES = 9


@dataclass
class Served:
    """A page that runs."""

    url: str
    workspace: Workspace
    page: Any


@pytest.fixture(scope="module")
def served(repo_root: Path) -> Iterator[Served]:
    with Workspace() as workspace:
        settings = {
            "GRADIO_TEMP_DIR": str(workspace.root), "GRADIO_ANALYTICS_ENABLED": "False",
        }  # fmt: skip
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        from clab_d2.web.page import CSS, Page, theme

        path = repo_root / "configs" / "quick_schedules" / "clab_quick.yaml"
        options = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"]
        cfg = load_config(str(path), options, needs_datasets=False)
        torch.manual_seed(0)
        names = [f"thing {n}" for n in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        detectors = {}
        for name in ("one", "two"):
            model = build_model(cfg).eval()
            predictor = model.roi_heads.box_predictor.cls_score
            with torch.no_grad():  # scores from low to high
                predictor.weight *= 200
                predictor.bias[-1] = -5
            detectors[name] = VideoDetector(cfg, model, names)
        page = Page(detectors, Limits(seconds=2), workspace)
        blocks = page.build()
        _, url, _ = blocks.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, css=CSS, theme=theme(),
            footer_links=[], run_history=False, ssr_mode=False,
        )  # fmt: skip
        try:
            yield Served(url, workspace, page)
        finally:
            blocks.close(verbose=False)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER)
        yield launched
        launched.close()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return encode(tmp_path / "clip.mp4", moving_pictures(FRAMES, 64, 96))


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("width", [390, 1280])
def test_from_upload_to_download(
    width: int, served: Served, browser: Any, clip: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": width, "height": 844}, accept_downloads=True)
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.url)
    page.set_input_files("#original input[type=file]", str(clip))
    expect(page.locator("#original video")).to_be_visible()
    if width > 1000:
        page.click("#other input")
        page.get_by_role("option", name="two").click()
        page.check("#tracks input")
    page.click("#start")
    expect(page.locator("#status")).to_contain_text("Done.")
    expect(page.locator("#drawn video")).to_be_visible()
    table = page.locator("#table")
    expect(table).to_contain_text("thing")
    if width > 1000:
        expect(table).to_contain_text("#1")
    else:
        expect(table).not_to_contain_text("#")
    expect(page.locator("#timeline img")).to_be_visible()
    links = page.locator("#files a[download], #files .download a")
    expect(links).to_have_count(6 if width > 1000 else 3)
    before = page.locator("#table").inner_text()

    downloaded = {}
    for index in range(3):
        with page.expect_download() as download:
            links.nth(index).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        downloaded[path.suffix] = path
    found = json.loads(downloaded[".json"].read_text())
    rows = list(csv.DictReader(downloaded[".csv"].open()))
    assert len(found) == len(rows) > FRAMES
    assert {int(row["frame"]) for row in rows} <= set(range(FRAMES))
    assert {row["class"] for row in rows} <= set(served.page.models["one"].class_names)
    assert len(play(downloaded[".mp4"])) == FRAMES

    # Another threshold shows other rows, and no frame goes through a model for it.
    calls: list[object] = []
    hooks = [
        detector.model.register_forward_hook(lambda *call: calls.append(call))
        for detector in served.page.models.values()
    ]
    number = page.locator("#threshold input[type=number]")
    number.fill("0.95")
    number.blur()
    expect(page.locator("#status")).to_contain_text("Redrawn from score 0.95")
    expect(page.locator("#table")).not_to_have_text(before)
    for hook in hooks:
        hook.remove()
    assert not calls

    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
    hosts = {url.split("/")[2].split(":")[0] for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}  # nothing is fetched from elsewhere

    assert files_of(served.workspace.root)
    page.close()
    deadline = time.monotonic() + 60
    while files_of(served.workspace.root) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not files_of(served.workspace.root)  # the visitor has gone


def test_pictures_of_the_docs(served: Served, browser: Any, clip: Path, tmp_path: Path) -> None:
    """docs/scripts/take_serve_pictures.py goes the same way."""
    script = import_docs_script("take_serve_pictures")
    look = script.LOOKS[0]
    assert look.compares
    shot = script.take(browser, served.url, look, ["one", "two"], clip)
    path = tmp_path / "serve.jpg"
    script.save_small(shot, path, look.picture_width)
    with Image.open(path) as picture:
        assert picture.width == look.picture_width
        assert picture.height > 700  # down to the downloads


def test_what_is_refused_is_told(served: Served, browser: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(served.url)
    page.click("#start")
    expect(page.locator("#status")).to_contain_text("Drop a video first")
    long = encode(tmp_path / "long.mp4", moving_pictures(60, 64, 96))
    page.set_input_files("#original input[type=file]", str(long))
    expect(page.locator("#original video")).to_be_visible(timeout=60_000)
    page.click("#start")
    expect(page.locator("#status")).to_contain_text(
        "Not done: the video lasts 2.4 s; this page takes up to 2 s", timeout=60_000
    )
    page.close()


@pytest.mark.parametrize("missing", [None, "trackers", "supervision"])
def test_tracks_are_offered_where_they_can_be(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clab_d2.web.page import Page

    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with Workspace() as workspace:
        blocks = Page({"one": NotingModel()}, Limits(), workspace).build()
    (tracks,) = (part for part in blocks.blocks.values() if part.elem_id == "tracks")
    assert tracks.interactive is (missing is None)
    if missing is not None:
        assert f"{missing}, which is not installed: pip install \"clab_d2[track]\"" in tracks.info

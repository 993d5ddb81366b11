"""The page itself: what is on it, and which function each part calls. Needs Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from clab_d2.engine.launch import USER_ERRORS, one_line
from clab_d2.errors import ConfigError
from clab_d2.video import VideoDetector
from clab_d2.video.tracks import Tracker
from clab_d2.web.objects import html_table, sum_up, timeline_figure
from clab_d2.web.video_job import Limits, VideoJob
from clab_d2.web.workspace import Workspace

NO_SECOND_MODEL = "none"
# Gradio puts its own container's class before each selector: what is outside can't be reached.
CSS = """
#status { min-height: 1.6em; }
#videos video { max-height: 60vh; }
#table, #table > * { overflow-x: auto; }
#table table { width: 100%; border-collapse: collapse; border: 0; }
#table th, #table td { padding: 0.35em 0.6em; text-align: left; white-space: nowrap; border: 0; }
#table tr { border: 0; border-bottom: 1px solid var(--border-color-primary); }
@media (max-width: 640px) {
  #videos { flex-direction: column; }
  #videos > * { width: 100%; }
  .row, .form, .block, .column { max-width: calc(100vw - 64px); }
}
"""


class Page:
    """Functions behind the page; a visitor's jobs are the page's only state.

    Args:
        models: detectors by the names that the page shows.
        limits: of a video.
        workspace: where files go.
    """

    def __init__(
        self, models: Mapping[str, VideoDetector], limits: Limits, workspace: Workspace
    ) -> None:
        self.models = dict(models)
        self.limits = limits
        self.workspace = workspace

    def build(self) -> gr.Blocks:
        """The page, its queue one job long at a time."""
        names = list(self.models)
        limits = f"up to {self.limits.megabytes:g} MB and {self.limits.seconds:g} s"
        with gr.Blocks(title="clab_d2", delete_cache=(60, 3600)) as page:
            gr.Markdown(f"# Objects in a video\nDrop a video or record one ({limits}).")
            jobs = gr.State([])
            with gr.Row():
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                other = gr.Dropdown(
                    [NO_SECOND_MODEL, *names], value=NO_SECOND_MODEL, label="Compare with",
                    visible=len(names) > 1, elem_id="other",
                )  # fmt: skip
                missing = what_tracks_lack()
                tracks = gr.Checkbox(
                    False, label="Tracks", info=missing or "Objects keep a number and a colour.",
                    interactive=missing is None, elem_id="tracks",
                )  # fmt: skip
                threshold = gr.Slider(
                    0.05, 0.95, 0.5, step=0.05, label="Least score that is shown",
                    elem_id="threshold",
                )  # fmt: skip
            with gr.Row(elem_id="videos"):
                video = gr.Video(
                    label="Original", sources=["upload", "webcam"], elem_id="original",
                    webcam_options=gr.WebcamOptions(mirror=False),
                )  # fmt: skip
                drawn = gr.Video(label="Detections", interactive=False, elem_id="drawn")
                drawn_other = gr.Video(
                    label="Detections of the second model", interactive=False, visible=False,
                    elem_id="drawn_other",
                )  # fmt: skip
            with gr.Row():
                start = gr.Button("Detect", variant="primary", elem_id="start")
                stop = gr.Button("Stop", elem_id="stop")
            status = gr.Markdown(elem_id="status")
            with gr.Column(visible=False, elem_id="results") as results:
                timeline = gr.Plot(show_label=False, elem_id="timeline")
                table = gr.HTML(elem_id="table")
                files = gr.File(
                    label="Download", file_count="multiple", interactive=False, elem_id="files"
                )
            shown = [drawn, drawn_other, timeline, table, files]
            detection = start.click(
                self.detect, [video, model, other, tracks, threshold],
                [jobs, status, results, *shown],
                concurrency_limit=1, concurrency_id="job", show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip
            threshold.release(
                self.redraw, [jobs, threshold], [status, *shown], concurrency_id="job",
                show_progress="hidden", api_visibility="private",
            )  # fmt: skip
            stop.click(
                lambda: "Stopped.", None, status, cancels=[detection], queue=False,
                api_visibility="private",
            )  # fmt: skip
            page.load(self.enter, None, None, api_visibility="private", show_progress="hidden")
            page.unload(self.leave)
        page.queue(max_size=16, default_concurrency_limit=1)
        return page

    def enter(self, request: gr.Request) -> None:
        self.workspace.enter(request.session_hash or "")

    def leave(self, request: gr.Request) -> None:
        self.workspace.leave(request.session_hash or "")

    def detect(
        self,
        video: str | None,
        model: str,
        other: str,
        track: bool,
        threshold: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Detect with one model or two, tell how far it is, and show what was found."""
        nothing = [gr.skip()] * 5
        if not video:
            yield gr.skip(), "Drop a video first, or record one.", gr.skip(), *nothing
            return
        folder = self.workspace.new_job(request.session_hash or "")
        names = [model] if other in (NO_SECOND_MODEL, model) else [model, other]
        jobs = [VideoJob(name, Path(video), folder) for name in names]
        empty = [None, gr.Video(value=None, visible=len(jobs) > 1), None, None, None]
        yield [], "Reading the video.", gr.Column(visible=False), *empty
        try:
            for job in jobs:
                for progress in job.detect(self.models[job.model_name], self.limits, track):
                    text = f"{job.model_name}: {progress.sentence}"
                    yield gr.skip(), text, gr.skip(), *nothing
            yield gr.skip(), "Drawing.", gr.skip(), *nothing
            said = "; ".join(
                f"{job.model_name}: {len(job.instances)} frames in {job.seconds:.1f} s, "
                f"{len(job.instances) / job.seconds:.1f} frames/s"
                for job in jobs
            )
            yield jobs, f"Done. {said}.", gr.Column(visible=True), *self._shown(jobs, threshold)
        except USER_ERRORS as error:
            message = one_line(error).replace(video, Path(video).name)
            yield [], f"**Not done:** {message}", gr.Column(visible=False), *nothing

    def redraw(self, jobs: list[VideoJob], threshold: float) -> tuple[Any, ...]:
        """Show what was found at another threshold."""
        if not jobs:
            return (gr.skip(),) * 6
        try:
            shown = self._shown(jobs, threshold)
        except (*USER_ERRORS, OSError):
            return "The video is no longer here; drop it again.", *[gr.skip()] * 5
        return f"Redrawn from score {threshold:.2f} on, without detecting again.", *shown

    def _shown(self, jobs: list[VideoJob], threshold: float) -> tuple[Any, ...]:
        drawn = [job.draw(threshold) for job in jobs]
        rows = [sum_up(job, threshold) for job in jobs]
        files = [
            str(path)
            for job, video in zip(jobs, drawn, strict=True)
            for path in (job.json_file, job.csv_file, video)
        ]
        second = str(drawn[1]) if len(drawn) > 1 else None
        return (
            gr.Video(str(drawn[0]), label=f"Detections of {jobs[0].model_name}"),
            gr.Video(
                second, visible=second is not None,
                label=f"Detections of {jobs[-1].model_name}",
            ),
            timeline_figure(list(zip(jobs, rows, strict=True))),
            html_table(list(zip(jobs, rows, strict=True))),
            files,
        )  # fmt: skip


def what_tracks_lack() -> str | None:
    """One line that says what to install for tracks; None if it is there."""
    try:
        Tracker()
    except ConfigError as error:
        return one_line(error)
    return None


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: none is fetched from elsewhere."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


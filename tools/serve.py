#!/usr/bin/env python
"""A web page on this machine: drop a video or record one, see what is detected, download it.

    tools/serve.py --weights output/demo/model_final.pth
    tools/serve.py --weights single.pth clab.pth --port 8000      (two models side by side)

Open the address that it prints. It can be reached from this machine only, unless --host says
otherwise; there are no accounts and no encryption. Nothing of a visitor's is kept. Ctrl-C ends it.
docs/serve.md shows it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clab_d2.engine.command_line import add_key_value_option, exit_status, one_line
from clab_d2.engine.plugins import add_import_option, import_plugins
from clab_d2.errors import ConfigError
from clab_d2.optional import import_optional
from clab_d2.video import VideoDetector
from clab_d2.video.command_line import set_up
from clab_d2.web.video_job import Limits
from clab_d2.web.workspace import Workspace


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", required=True, nargs="+", metavar="MODEL", help="files that trainings wrote"
    )
    parser.add_argument("--port", type=int, default=7860, metavar="P", help="(default: 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H",
        help="address to listen at (default: 127.0.0.1, this machine only)",
    )  # fmt: skip
    parser.add_argument(
        "--max-megabytes", type=float, default=Limits.megabytes, metavar="N",
        help="of a video (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-seconds", type=float, default=Limits.seconds, metavar="N",
        help="of a video (default: %(default)s)",
    )  # fmt: skip
    add_import_option(parser)
    add_key_value_option(parser)
    return parser


def load_models(files: Sequence[str], options: Sequence[str]) -> dict[str, VideoDetector]:
    """Detectors by name: the file's, or its folder's where files have the same name."""
    paths = [Path(file) for file in files]
    stems = [path.stem for path in paths]
    names = [
        path.stem if stems.count(path.stem) == 1 else path.resolve().parent.name for path in paths
    ]
    if len(set(names)) < len(names):
        raise ConfigError(f"--weights: two of {', '.join(files)} would have the same name")
    return {
        name: VideoDetector.from_file(path, options=options)
        for name, path in zip(names, paths, strict=True)
    }


def run(args: argparse.Namespace) -> None:
    if not 1 <= args.port <= 65535:
        raise ConfigError(f"--port is {args.port}; it must be from 1 to 65535")
    if min(args.max_megabytes, args.max_seconds) <= 0:
        raise ConfigError("--max-megabytes and --max-seconds must be above 0")
    with Workspace() as workspace:
        # Read when Gradio is imported: its files go where they are deleted, and it tells nobody.
        os.environ["GRADIO_TEMP_DIR"] = str(workspace.root)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import_optional("gradio", "web", "the page")
        from clab_d2.web.page import CSS, Page, theme

        import_plugins(args.imports)
        models = load_models(args.weights, args.opts)
        limits = Limits(megabytes=args.max_megabytes, seconds=args.max_seconds)
        page = Page(models, limits, workspace).build()
        try:
            page.launch(
                server_name=args.host, server_port=args.port, share=False, quiet=True,
                max_file_size=int(args.max_megabytes * 1e6), css=CSS, theme=theme(),
                prevent_thread_lock=True, footer_links=[], run_history=False,
                enable_monitoring=False, ssr_mode=False,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"--port {args.port} can't be used ({one_line(error)}); choose another"
            ) from None
        print(f"open http://{args.host}:{args.port} (Ctrl-C ends it)", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    set_up()
    sys.exit(main())

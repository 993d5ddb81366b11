#!/usr/bin/env python
"""Run a declared grid of trainings with several seeds, and say what their figures show.

    tools/study.py --study studies/mini_vid_methods.yaml --output output/study/methods
    tools/study.py --study S.yaml --output DIR --jobs 2           two runs side by side
    tools/study.py --study S.yaml --output DIR --gpus 0,1,2,3     a run for each GPU
    tools/study.py --study S.yaml --output DIR --dry-run          what would be run
    tools/study.py --study S.yaml --output DIR --tables-only docs/study

However it ends, the same command goes on: finished runs are not repeated, half-done ones resume.
DIR gets table.md, table.json, table.csv, plots and study_results.json, which holds the metrics of
all runs and is all that --tables-only needs. docs/studies.md describes the YAML.

Exit status: 0 if all runs are finished, 1 if some failed, 2 for a mistake in the study.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from clab_d2.engine import add_import_option, import_plugins
from clab_d2.engine.launch import exit_status
from clab_d2.errors import ConfigError
from clab_d2.study.plan import Run, Study, load_study
from clab_d2.study.plots import draw_report
from clab_d2.study.report import make_report
from clab_d2.study.results import (
    FILE_NAME,
    Result,
    collect_results,
    merge_results,
    write_results,
)
from clab_d2.study.runner import (
    Runner,
    Summary,
    delete_intermediate_checkpoints,
    make_slots,
)
from clab_d2.study.state import DeclaredConfigs, State
from clab_d2.study.time_left import duration_text

EXIT_FAILED_RUNS = 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", required=True, metavar="STUDY.yaml", help="what is to be run")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder of its runs and tables"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)"
    )
    where.add_argument(
        "--gpus",
        default="",
        metavar="IDS",
        help="a run for each of these GPUs; 0,0 puts two on one",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of each process (default: shared out)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="S", help="run only these of the study's seeds"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--dry-run", action="store_true", help="list the runs and the time they are going to take"
    )
    only.add_argument(
        "--tables-only",
        nargs="*",
        type=Path,
        metavar="PATH",
        help=f"run nothing: tables and plots from {FILE_NAME} files, and folders with such, put "
        f"together (default: DIR/{FILE_NAME})",
    )
    parser.add_argument(
        "--machine", default="", metavar="NAME", help="noted with each run (default: cpu or cuda)"
    )
    parser.add_argument(
        "--final-checkpoint-only",
        action="store_true",
        help="delete a finished training's other checkpoints",
    )
    parser.add_argument(
        "--train-script",
        type=Path,
        default=Path(__file__).resolve().parent / "train_net.py",
        metavar="FILE",
        help="a training script of your own, with train_net.py's command line",
    )
    add_import_option(parser)
    return parser


def read_study(args: argparse.Namespace) -> Study:
    """The study, of the seeds asked for."""
    study = load_study(args.study)
    if args.seeds is None:
        return study
    unknown = [seed for seed in args.seeds if seed not in study.seeds]
    if unknown:
        raise ConfigError(f"--seeds: {study.source} has no seed {unknown[0]}; add it there")
    return dataclasses.replace(study, seeds=tuple(dict.fromkeys(args.seeds)))


def make_runner(
    args: argparse.Namespace, study: Study, configs: DeclaredConfigs, progress: Progress
) -> Runner:
    for name in ("jobs", "threads"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name} is {number}; it must be at least 1")
    if not args.train_script.is_file():
        raise ConfigError(f"--train-script {args.train_script}: no such file; check the path")
    gpus = [part.strip() for part in args.gpus.split(",") if part.strip()]
    flags = ["--num-gpus", str(study.num_gpus)] if study.num_gpus > 1 else []
    for plugin in args.imports:
        flags += ["--import", plugin]
    return Runner(
        study.runs(args.output),
        configs,
        make_slots(args.jobs, gpus, args.threads, study.num_gpus),
        [sys.executable, str(args.train_script)],
        flags=flags,
        declared_hours=study.hours,
        machine=args.machine,
        tell=progress.tell,
        show=progress.show,
        on_finished=lambda summary: keep(args, study, configs, summary),
    )


def keep(
    args: argparse.Namespace, study: Study, configs: DeclaredConfigs, summary: Summary
) -> list[Result]:
    """Write what there is of results, so that none is lost whatever comes."""
    results = collect_results(in_order(study.runs(args.output), summary.finished), configs)
    write_results(args.output / FILE_NAME, study, results)
    if args.final_checkpoint_only:
        for run in summary.finished:
            delete_intermediate_checkpoints(run)
    return results


def in_order(runs: Sequence[Run], chosen: Sequence[Run]) -> list[Run]:
    """The chosen runs in the study's order."""
    folders = {run.folder for run in chosen}
    return [run for run in runs if run.folder in folders]


class Progress:
    """Lines of what happens, and on a terminal a bar under them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar = tqdm(total=total, unit="run", disable=None, dynamic_ncols=True)
        self._bar.bar_format = "{n_fmt}/{total_fmt} runs |{bar:20}| {postfix}"
        self._done = 0
        self._left: float | None = None

    def tell(self, line: str) -> None:
        left = "" if self._left is None else f"; about {duration_text(self._left)} left"
        tqdm.write(f"[{self._done}/{self._total}] {line}{left}")
        sys.stdout.flush()

    def show(self, summary: Summary, going: Sequence[str], left: float | None) -> None:
        self._done, self._left = len(summary.finished), left
        self._bar.n = self._done
        left_text = "" if left is None else f"{duration_text(left)} left; "
        self._bar.set_postfix_str(left_text + "; ".join(going))

    def close(self) -> None:
        self._bar.close()


def dry_run(args: argparse.Namespace, study: Study, runner: Runner) -> None:
    """List the runs, their state and the time that they are going to take."""
    states = runner.states()
    for run, state in states:
        print(f"{state.value:9}  {run.label}")
        if state is not State.FINISHED:
            print(f"           {shlex.join(runner.command_of(run))}")
    left = sum(state is not State.FINISHED for _, state in states)
    seconds = runner.expected(states)
    time = "an unknown time" if seconds is None else f"about {seconds / 3600:.1f} hours"
    print(f"{left} of {len(states)} runs are left, which take {time}")
    if seconds is None:
        print(f"(no such run is finished yet, and {study.source} has no hours for it)")


def make_tables(args: argparse.Namespace, study: Study, results: Sequence[Result]) -> None:
    """Write tables and plots, and print the Markdown."""
    report = make_report(study, results, args.confidence)
    files = [*report.write(args.output), *draw_report(report, args.output)]
    print(f"\n{report.markdown()}\nWritten:")
    for file in (args.output / FILE_NAME, *files):
        print(f"  {file}")


def run_study(args: argparse.Namespace, study: Study) -> int:
    """Run what is left and make the tables; exit status."""
    configs = DeclaredConfigs(study)
    progress = Progress(len(study.runs(args.output)))
    try:
        runner = make_runner(args, study, configs, progress)
        if args.dry_run:
            dry_run(args, study, runner)
            return 0
        summary = runner.run()
    finally:
        progress.close()
    results = keep(args, study, configs, summary)
    if results:
        make_tables(args, study, results)
    if summary.signal:
        print("Stopped; the same command goes on", file=sys.stderr)
        return 128 + summary.signal
    for run, reason in summary.failed:
        print(f"failed: {run.label}: {reason}", file=sys.stderr)
    for run in summary.skipped:
        print(f"skipped: {run.label}: its training failed", file=sys.stderr)
    return EXIT_FAILED_RUNS if summary.failed else 0


def tables_only(args: argparse.Namespace, study: Study) -> None:
    """Tables and plots of kept results."""
    paths = args.tables_only or [args.output / FILE_NAME]
    results, undeclared = merge_results(paths, study)
    if undeclared:
        print(f"{undeclared} result(s) of conditions or seeds not in {study.source} are left out")
    write_results(args.output / FILE_NAME, study, results)
    make_tables(args, study, results)


def run(args: argparse.Namespace) -> int:
    study = read_study(args)
    if args.tables_only is not None:
        tables_only(args, study)
        return 0
    import_plugins(args.imports)
    return run_study(args, study)


def main(argv: Sequence[str] | None = None) -> int:
    # What configs give to warn of stands in each run's log.
    logging.getLogger("clab_d2").setLevel(logging.ERROR)
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

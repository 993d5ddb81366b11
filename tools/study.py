#!/usr/bin/env python
"""Run a declared grid of trainings with several seeds, and say what their figures show.

    tools/study.py --study studies/mini_vid_methods.yaml --output output/study/methods
    tools/study.py --study S.yaml --output DIR --jobs 2           two runs side by side
    tools/study.py --study S.yaml --output DIR --gpus 0,1,2,3     a run for each GPU
    tools/study.py --study S.yaml --output DIR --dry-run          what would be run
    tools/study.py --study S.yaml --output DIR --tables-only docs/study
    tools/study.py --study S.yaml --output DIR --kept docs/study  but for what is kept there
    tools/study.py --study studies/mini_vid_*.yaml --output DIR   several, equal runs made once

However it ends, the same command goes on: finished runs are not repeated, half-done ones resume.
DIR gets table.md, table.json, table.csv, plots and study_results.json, which holds the metrics of
all runs and is all that --tables-only needs; with several studies DIR/NAME gets them.
docs/studies.md describes the YAML.

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

from clab_d2.engine import add_import_option, import_plugins
from clab_d2.engine.launch import exit_status
from clab_d2.errors import ConfigError, DataError
from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.kept import KeptResults
from clab_d2.study.plan import Run, Study, load_study
from clab_d2.study.plots import draw_report
from clab_d2.study.progress import Progress
from clab_d2.study.report import make_report
from clab_d2.study.results import FILE_NAME, Result, merge_results, write_results
from clab_d2.study.runner import Runner, Summary, delete_intermediate_checkpoints, make_slots
from clab_d2.study.session import Session
from clab_d2.study.shared import PlannedStudy, table_folders
from clab_d2.study.state import State

EXIT_FAILED_RUNS = 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--study", required=True, nargs="+", metavar="STUDY.yaml", help="what is to be run"
    )
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
        "--confidence",
        type=float,
        default=0.95,
        metavar="P",
        help="of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--kept",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help=f"{FILE_NAME} files and folders with such: what they hold is not run again",
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


def read_studies(args: argparse.Namespace) -> list[Study]:
    """The studies, of the seeds asked for."""
    studies = [load_study(path) for path in args.study]
    for study in studies:
        if study.num_gpus != studies[0].num_gpus:
            raise ConfigError(
                f"{study.source}: each of its runs takes {study.num_gpus} GPUs (num_gpus), and "
                f"{studies[0].source} has {studies[0].num_gpus}; run the two apart"
            )
    if args.seeds is None:
        return studies
    for seed in args.seeds:
        if all(seed not in study.seeds for study in studies):
            names = ", ".join(study.source for study in studies)
            raise ConfigError(f"--seeds: {names} has no seed {seed}; add it there")
    seeds = tuple(dict.fromkeys(args.seeds))
    return [
        dataclasses.replace(study, seeds=tuple(seed for seed in seeds if seed in study.seeds))
        for study in studies
    ]


def make_runner(args: argparse.Namespace, session: Session, progress: Progress) -> Runner:
    for name in ("jobs", "threads"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name} is {number}; it must be at least 1")
    if not args.train_script.is_file():
        raise ConfigError(f"--train-script {args.train_script}: no such file; check the path")
    studies = [one.study for one in session.planned]
    num_gpus = studies[0].num_gpus
    gpus = [part.strip() for part in args.gpus.split(",") if part.strip()]
    flags = ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    for plugin in args.imports:
        flags += ["--import", plugin]
    return Runner(
        session.runs,
        session.configs,
        make_slots(args.jobs, gpus, args.threads, num_gpus),
        [sys.executable, str(args.train_script)],
        flags=flags,
        declared_hours=dict(pair for study in studies for pair in study.hours_by_kind().items()),
        machine=args.machine,
        tell=progress.tell,
        show=progress.show,
        on_finished=lambda summary: keep(args, session, summary),
    )


def keep(
    args: argparse.Namespace, session: Session, summary: Summary
) -> list[tuple[PlannedStudy, list[Result]]]:
    """Write what there is of results, and delete what is not to be kept; the studies with any."""
    written = session.write(summary.finished)
    if args.final_checkpoint_only:
        for run in summary.finished:
            delete_intermediate_checkpoints(run)
    return written


def list_runs(runner: Runner, states: Sequence[tuple[Run, State]]) -> None:
    """The runs, their state and the commands."""
    for run, state in states:
        print(f"{state.value:9}  {run.label}")
        if state is not State.FINISHED:
            print(f"           {shlex.join(runner.command_of(run))}")


def make_tables(
    args: argparse.Namespace, study: Study, folder: Path, results: Sequence[Result]
) -> None:
    """Write tables and plots, and print the Markdown."""
    report = make_report(study, results, args.confidence)
    files = [*report.write(folder), *draw_report(report, folder)]
    print(f"\n{report.markdown()}\nWritten:")
    for file in (folder / FILE_NAME, *files):
        print(f"  {file}")


def run_studies(args: argparse.Namespace, studies: Sequence[Study]) -> int:
    """Run what is left and make the tables; exit status."""
    session = Session(studies, args.output, args.kept)
    progress = Progress(len(session.runs))
    try:
        runner = make_runner(args, session, progress)
        states = runner.states()
        if args.dry_run:
            list_runs(runner, states)
        print(session.what_is_left(states, runner.expected(states)), flush=True)
        if args.dry_run:
            return 0
        summary = runner.run()
    finally:
        progress.close()
    for one, results in keep(args, session, summary):
        make_tables(args, one.study, one.folder, results)
    if summary.signal:
        print("Stopped; the same command goes on", file=sys.stderr)
        return 128 + summary.signal
    for run, reason in summary.failed:
        print(f"failed: {run.label}: {reason}", file=sys.stderr)
    for run in summary.skipped:
        print(f"skipped: {run.label}: its training failed", file=sys.stderr)
    return EXIT_FAILED_RUNS if summary.failed else 0


def tables_only(args: argparse.Namespace, studies: Sequence[Study]) -> None:
    """Tables and plots of kept results, those of equal runs shared among the studies."""
    folders = table_folders(studies, args.output)
    paths = args.tables_only or [folder / FILE_NAME for folder in folders]
    if not args.tables_only and len(studies) > 1:
        paths = [path for path in paths if path.exists()]
    made = 0
    for study, folder in zip(studies, folders, strict=True):
        configs = DeclaredConfigs(study.num_gpus, needs_datasets=False)
        others = KeptResults(paths, unless_of=study.name)
        equal = [result for run in study.runs(folder) for result in others.of(run, configs)]
        results, undeclared = merge_results(paths, study, equal)
        if undeclared:
            print(f"{undeclared} result(s) of conditions or seeds not in {study.source} left out")
        if not results:
            print(f"{study.source}: no results of {study.name}, nor of equal runs, are there")
            continue
        made += 1
        write_results(folder / FILE_NAME, study, results)
        make_tables(args, study, folder, results)
    if not made:
        raise DataError(
            f"--tables-only: no file holds results of {', '.join(s.name for s in studies)}; run "
            f"it, or name its {FILE_NAME}"
        )


def run(args: argparse.Namespace) -> int:
    studies = read_studies(args)
    import_plugins(args.imports)
    if args.tables_only is not None:
        tables_only(args, studies)
        return 0
    return run_studies(args, studies)


def main(argv: Sequence[str] | None = None) -> int:
    # What configs give to warn of stands in each run's log.
    logging.getLogger("clab_d2").setLevel(logging.ERROR)
    return exit_status(run, make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

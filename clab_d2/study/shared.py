"""Several studies as one: runs that they have in common are made once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clab_d2.errors import ConfigError
from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.kept import KeptResults
from clab_d2.study.plan import Run, Study, folder_name
from clab_d2.study.results import Result, collect_results

RUNS = "runs"


@dataclass(frozen=True)
class PlannedStudy:
    """A study, the folder of its tables, and its runs, some of which others may have, too."""

    study: Study
    folder: Path
    runs: list[Run]

    def results(
        self, finished: Iterable[Run], configs: DeclaredConfigs, kept: KeptResults
    ) -> list[Result]:
        """Results of finished runs, and of the others those that are kept."""
        folders = {run.folder for run in finished}
        own = collect_results([run for run in self.runs if run.folder in folders], configs)
        keys = {result.key for result in own}
        more = [result for run in self.runs for result in kept.of(run, configs)]
        return [*own, *(result for result in more if result.key not in keys)]


def table_folders(studies: Sequence[Study], output: Path) -> list[Path]:
    """Where each study's tables go: one has the output folder itself, several one in it each.

    Raises:
        ConfigError: two would have one folder, or that of the runs.
    """
    if len(studies) == 1:
        return [output]
    taken = {RUNS: "the runs of all"}
    for study in studies:
        name = folder_name([study.name])
        if not name or name in taken:
            raise ConfigError(
                f"{study.source}: its name {study.name!r} makes no folder of its own beside "
                f"{taken.get(name, 'others')}; change its key name, or run it alone"
            )
        taken[name] = study.source
    return [output / folder_name([study.name]) for study in studies]


def plan_studies(
    studies: Sequence[Study], output: Path, configs: DeclaredConfigs
) -> list[PlannedStudy]:
    """The studies' runs, equal ones of several studies in one folder.

    A run that may be shared has a folder by its digest, ``runs/<digest>/seed_<seed>``: the same
    one whatever studies are run together, and in whatever order.

    Raises:
        ConfigError, DataError: a config can't be, or see :func:`table_folders`.
    """
    folders = table_folders(studies, output)
    if len(studies) == 1:
        return [PlannedStudy(studies[0], output, studies[0].runs(output))]
    planned = []
    for study, folder in zip(studies, folders, strict=True):
        moved: dict[Path, Run] = {}  # original folder -> run
        for run in study.runs(output):
            moved[run.folder] = _shared(run, study, output, configs, moved)
        planned.append(PlannedStudy(study, folder, list(moved.values())))
    return planned


def _shared(
    run: Run, study: Study, output: Path, configs: DeclaredConfigs, moved: dict[Path, Run]
) -> Run:
    label, digest = f"{study.name}: {run.label}", configs.digest(run)
    if run.training is None:
        folder = output / RUNS / digest / f"seed_{run.seed}"
        return dataclasses.replace(run, label=label, folder=folder)
    training = moved[run.training.folder]
    return dataclasses.replace(
        run,
        label=label,
        folder=training.folder / "evaluations" / digest,
        training=training,
        # The last two are MODEL.WEIGHTS and its value.
        options=(*run.options[:-1], str(training.weights)),
    )


def runs_to_make(
    planned: Sequence[PlannedStudy], configs: DeclaredConfigs, kept: KeptResults
) -> list[Run]:
    """Each run once, less those whose results are kept.

    A training is in it, even so, if an evaluation is that needs its weights. Seeds go round over
    all studies: each condition has its first seed before any has its second.
    """
    runs = [run for one in planned for run in one.runs]
    wanted = [run for run in runs if run.condition is not None and not kept.of(run, configs)]
    folders = {run.folder for run in wanted}
    folders |= {run.training.folder for run in wanted if run.training}
    rounds = [
        (one.study.seeds.index(run.seed), run)
        for one in planned
        for run in one.runs
        if run.folder in folders
    ]
    rounds.sort(key=lambda entry: entry[0])  # stable: evaluations stay behind their trainings
    unique: dict[Path, Run] = {}
    for _, run in rounds:
        unique.setdefault(run.folder, run)
    return list(unique.values())

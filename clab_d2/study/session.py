"""What one call of tools/study.py works on: its studies, their runs, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.kept import KeptResults
from clab_d2.study.plan import Run, Study
from clab_d2.study.results import FILE_NAME, Result, write_results
from clab_d2.study.shared import PlannedStudy, plan_studies, runs_to_make
from clab_d2.study.state import State


class Session:
    """Studies that are run together.

    Attributes:
        planned: each with its folder and all its runs.
        configs: of all runs.
        kept: results that need no run.
        runs: those that are to be made, finished ones included, each once.
    """

    def __init__(self, studies: Sequence[Study], output: Path, kept: Iterable[Path]) -> None:
        """
        Args:
            studies: with one ``num_gpus``.
            output: folder of their runs and tables.
            kept: files and folders of results that need not be made again.

        Raises:
            ConfigError, DataError: one line on what can't be.
        """
        self.configs = DeclaredConfigs(studies[0].num_gpus)
        self.planned: list[PlannedStudy] = plan_studies(studies, output, self.configs)
        self.kept = KeptResults(kept)
        self.runs: list[Run] = runs_to_make(self.planned, self.configs, self.kept)

    def write(self, finished: Sequence[Run]) -> list[tuple[PlannedStudy, list[Result]]]:
        """Write each study's results, so that none is lost whatever comes; those that have any."""
        found = []
        for one in self.planned:
            results = one.results(finished, self.configs, self.kept)
            if results:
                write_results(one.folder / FILE_NAME, one.study, results)
                found.append((one, results))
        return found

    def what_is_left(self, states: Sequence[tuple[Run, State]], seconds: float | None) -> str:
        """Lines on how many runs are left, and the time that they are going to take.

        Args:
            states: of :attr:`runs`.
            seconds: expected for those that are not finished; None where it isn't known.
        """
        lines = []
        if self.kept.without_digest:
            lines.append(
                f"{self.kept.without_digest} kept result(s) have no digest, as earlier versions "
                "wrote none: what was run is not known, and they are not taken"
            )
        made = {run.folder for run in self.runs}
        declared = [run for one in self.planned for run in one.runs if run.condition is not None]
        kept = sum(run.folder not in made for run in declared)
        if kept:
            lines.append(f"{kept} of {len(declared)} runs are kept, and not made again")
        if len(self.planned) > 1:
            lines.append(
                f"{len(self.planned)} studies of {len(declared)} runs; equal ones are made once"
            )
        left = sum(state is not State.FINISHED for _, state in states)
        time = "an unknown time" if seconds is None else f"about {seconds / 3600:.1f} hours"
        lines.append(f"{left} of {len(states)} runs are left, which take {time}")
        if seconds is None:
            lines.append("(a study has no hours for such runs, of which none is finished yet)")
        return "\n".join(lines)

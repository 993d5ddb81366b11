"""Results of files, found by what was run: by digest and seed, whatever study ran it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from clab_d2.study.declared import DeclaredConfigs
from clab_d2.study.plan import Run
from clab_d2.study.results import Result, find_result_files, read_results


class KeptResults:
    """Metrics of runs whose folders may be gone.

    Attributes:
        without_digest: number of results that nothing can be found by, as they are of a version
            that noted no digest.
    """

    def __init__(self, paths: Iterable[Path], *, unless_of: str | None = None) -> None:
        """
        Args:
            paths: ``study_results.json`` files, and folders with such. Of two results of one run
                the first counts.
            unless_of: the name of a study whose results are passed over.

        Raises:
            DataError: a path is not there, or a file is something else.
        """
        self.without_digest = 0
        self._by_run: dict[tuple[str, int], dict[str, Result]] = {}
        for file in find_result_files(paths):
            name, results = read_results(file)
            for result in results if name != unless_of else []:
                digest = result.run.get("digest")
                if isinstance(digest, str):
                    of_run = self._by_run.setdefault((digest, result.seed), {})
                    of_run.setdefault(result.dataset, result)
                else:
                    self.without_digest += 1

    def __bool__(self) -> bool:
        return bool(self._by_run)

    def of(self, run: Run, configs: DeclaredConfigs) -> list[Result]:
        """The results of an equal run, as results of this one; [] unless every dataset has one.

        Args:
            run: its ``condition`` is what they are reported as.
            configs: of such runs.
        """
        # Digests take every config, which a study without kept results need not be read for.
        if not self or run.condition is None:
            return []
        there = self._by_run.get((configs.digest(run), run.seed), {})
        datasets = configs.of(run).datasets
        if any(dataset not in there for dataset in datasets):
            return []
        return [dataclasses.replace(there[name], condition=run.condition) for name in datasets]

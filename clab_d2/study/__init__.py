"""Studies: a declared grid of runs with seeds, and what their figures show.

:mod:`plan` reads a study's YAML and lists its runs, :mod:`declared` reads their configs,
:mod:`state` tells what of them is there, :mod:`runner` runs the rest, :mod:`results` keeps their
metrics, :mod:`kept` finds those of earlier sessions, :mod:`shared` lets several studies have runs
in common, :mod:`session` puts these together, and :mod:`statistics`, :mod:`report` and
:mod:`plots` make tables and pictures. docs/studies.md is for users.
"""

from clab_d2.study.plan import Run, Study, load_study
from clab_d2.study.report import Report, make_report
from clab_d2.study.results import Result, collect_results, merge_results, read_results
from clab_d2.study.runner import Runner

__all__ = [
    "Report",
    "Result",
    "Run",
    "Runner",
    "Study",
    "collect_results",
    "load_study",
    "make_report",
    "merge_results",
    "read_results",
]

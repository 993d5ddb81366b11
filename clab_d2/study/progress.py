"""What a going study shows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from clab_d2.study.runner import Summary
from clab_d2.study.time_left import duration_text


class Progress:
    """Lines of what happens, and on a terminal a bar under them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar = tqdm(total=total, unit="run", disable=None, dynamic_ncols=True)
        self._bar.bar_format = "{n_fmt}/{total_fmt} runs |{bar:20}| {postfix}"
        self._done = 0
        self._left: float | None = None

    def tell(self, line: str) -> None:
        """Print a line of what happened, with what is done and left."""
        left = "" if self._left is None else f"; about {duration_text(self._left)} left"
        tqdm.write(f"[{self._done}/{self._total}] {line}{left}")
        sys.stdout.flush()

    def show(self, summary: Summary, going: Sequence[str], left: float | None) -> None:
        """Bring the bar up to date; see :class:`clab_d2.study.runner.Runner`."""
        self._done, self._left = len(summary.finished), left
        self._bar.n = self._done
        left_text = "" if left is None else f"{duration_text(left)} left; "
        self._bar.set_postfix_str(left_text + "; ".join(going))

    def close(self) -> None:
        self._bar.close()

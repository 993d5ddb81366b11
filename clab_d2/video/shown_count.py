"""How many detections of a video are shown, in a line: a weak model's video has no box at all."""

from __future__ import annotations

from clab_d2.video.result import FrameResult


class ShownCount:
    """Counts the detections of a video's frames that reach a score.

    Args:
        score_threshold: those of at least this score are shown; from 0 to 1.

    Attributes:
        shown: how many reach it so far.
        found: how many there are so far.
        best: the best score so far; 0 where nothing was found.
    """

    def __init__(self, score_threshold: float) -> None:
        self._score_threshold = score_threshold
        self.shown = 0
        self.found = 0
        self.best = 0.0

    def add(self, result: FrameResult) -> None:
        """Count a frame's."""
        scores = result.instances.scores
        self.found += len(scores)
        self.shown += int((scores >= self._score_threshold).sum())
        if len(scores):
            self.best = max(self.best, float(scores.max()))

    def summary(self) -> str:
        """A line about all frames counted, with the remedy where nothing is shown."""
        if self.shown:
            return f"{self.shown} detections of at least {self._score_threshold:g}"
        if self.found:
            return (
                f"no detection of at least {self._score_threshold:g}, the best has "
                f"{self.best:.3g}: lower --score-threshold to see it"
            )
        return "no detection of any score: the model finds nothing here that it was trained for"

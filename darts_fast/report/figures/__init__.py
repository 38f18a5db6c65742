# SPDX-License-Identifier: Apache-2.0
"""The figures of a report; each function gives a matplotlib figure, or None without the data."""

from darts_fast.report.figures.alphas import alpha_curves
from darts_fast.report.figures.curves import learning_curves, skip_curves
from darts_fast.report.figures.removals import (
    EdgeScores,
    decided_by,
    edge_scores,
    removal_heat_map,
    score_meaning,
)
from darts_fast.report.figures.timings import timing_bars

__all__ = [
    "EdgeScores",
    "alpha_curves",
    "decided_by",
    "edge_scores",
    "learning_curves",
    "removal_heat_map",
    "score_meaning",
    "skip_curves",
    "timing_bars",
]

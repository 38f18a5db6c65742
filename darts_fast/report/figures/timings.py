# SPDX-License-Identifier: Apache-2.0
"""Where the time of runs went."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from darts_fast.report.run import Run
from darts_fast.report.theme import PAPER_WIDTH, label_axes, new_figure, series_styles, themed

__all__ = ["timing_bars"]

_UNITS = ((2 * 3600.0, 3600.0, "h"), (300.0, 60.0, "min"), (0.0, 1.0, "s"))


@themed
def timing_bars(runs: Sequence[Run]) -> Figure | None:
    """Wall time by phase, a bar for each run.

    Returns:
        None if no run has ended a phase.
    """
    timed = [run for run in runs if run.seconds]
    if not timed:
        return None
    phases = list(dict.fromkeys(phase for run in timed for phase in run.seconds))
    total = max(sum(run.seconds.values()) for run in timed)
    scale, unit = next((size, name) for least, size, name in _UNITS if total >= least)
    figure = new_figure(PAPER_WIDTH, 0.34 * len(timed) + 1.15)
    axes = figure.subplots()
    starts = [0.0] * len(timed)
    for (colour, _, _), phase in zip(series_styles(len(phases)), phases, strict=True):
        widths = [run.seconds.get(phase, 0.0) / scale for run in timed]
        axes.barh(range(len(timed)), widths, left=starts, height=0.6, color=colour, label=phase)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    label_axes(axes, "", f"wall time, {unit}", "")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(timed)), [run.name for run in timed])
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=min(len(phases), 5), frameon=False)
    return figure

# SPDX-License-Identifier: Apache-2.0
"""The architecture weights along a search."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from darts_fast.report.run import Run
from darts_fast.report.theme import (
    PAPER_WIDTH,
    label_axes,
    new_figure,
    op_style,
    themed,
)

__all__ = ["alpha_curves"]


@themed
def alpha_curves(run: Run, cell_type: str) -> Figure | None:
    """``softmax(alpha)`` of every operation, a panel for each edge, a row for each node.

    Returns:
        None if the run has recorded no weights.
    """
    space = run.space
    epochs, weights = run.weights(cell_type)
    if space is None or not epochs:
        return None
    rows = list(space.node_edges.values())
    columns = max(len(edges) for edges in rows)
    width = PAPER_WIDTH if columns > 3 else 0.75 * PAPER_WIDTH
    figure = new_figure(width, 1.15 * len(rows) + 0.75)
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    names = space.primitives[cell_type]
    used: dict[str, Line2D] = {}
    for row, edges in enumerate(rows):
        for column, axes in enumerate(grid[row]):
            if column >= len(edges):
                axes.set_visible(False)
                continue
            edge = edges[column]
            for op, name in enumerate(names[edge]):
                colour, dash = op_style(name)
                thick = 1.7 if name == "skip_connect" else 1.1
                marker = "o" if len(epochs) == 1 else ""
                style = {"color": colour, "ls": dash, "lw": thick, "marker": marker, "ms": 2.5}
                (line,) = axes.plot(epochs, weights[:, edge, op], **style)
                used.setdefault(name, line)
            label_axes(axes, "{}\u2192{}".format(*space.edges[edge]), "", "")
            axes.title.set_fontsize(7.5)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    figure.supxlabel("epoch of the search", fontsize=8)
    figure.supylabel("weight, softmax(alpha)", fontsize=8)
    figure.legend(
        used.values(),
        used.keys(),
        loc="upper right",  # the panels are a triangle, and this corner is free
        ncols=2 if columns > 3 else 1,
        frameon=False,
        handlelength=2.6,
    )
    return figure

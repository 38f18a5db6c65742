# SPDX-License-Identifier: Apache-2.0
"""What the operations of every edge scored when the edge was decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from darts_fast.report.run import Run, cell_name
from darts_fast.report.theme import (
    HEAT,
    INK,
    MUTED,
    PAPER,
    PAPER_WIDTH,
    SERIES,
    new_figure,
    themed,
)
from darts_fast.selection import Decision

__all__ = ["EdgeScores", "edge_scores", "removal_heat_map", "score_meaning"]

FRAME = SERIES[1]
_DARK_FROM = 5  # of HEAT: on these the text is in the colour of the paper


@dataclass(frozen=True)
class EdgeScores:
    """The scores that decided one edge.

    Attributes:
        edge, chosen: its index, and the operation's.
        order: place of the decision among all, from 1.
        ops: the operation indices scored.
        values, errors: of each; errors are standard errors, nan where there are none.
        harm: how much worse each removal is than the mildest one on this edge, larger for an
            operation that is worth more.
    """

    edge: int
    chosen: int
    order: int
    ops: list[int]
    values: list[float]
    errors: list[float]
    harm: list[float]


def score_meaning(run: Run, cell_type: str) -> tuple[str, str]:
    """What the scores of a run's edges are, and their unit."""
    method = run.settings.get("select")
    by_loss = run.criterion(cell_type) == "loss"
    if method == "strength":
        return "strength of the operation", "nats"
    if method == "discretization":
        what = "loss" if by_loss else "accuracy"
        return f"{what} with only the operation, after training", "nats" if by_loss else "%"
    what, unit = ("loss", "nats") if by_loss else ("accuracy", "%")
    return f"{what} without the operation", unit


def edge_scores(run: Run, cell_type: str) -> list[EdgeScores]:
    """The scored edges of a cell type in their order; [] where nothing was scored."""
    found = []
    for order, decision in enumerate(run.decisions, start=1):
        if decision.kind != "op" or decision.cell_type != cell_type or not decision.candidates:
            continue
        values, errors = decided_by(run, decision)
        if values:
            sign = _sign(run, cell_type)
            finite = [sign * value for value in values if math.isfinite(value)]
            least = min(finite, default=0.0)
            found.append(
                EdgeScores(
                    decision.place,
                    decision.chosen[0],
                    order,
                    list(decision.candidates[0]),
                    values,
                    errors,
                    [sign * value - least for value in values],
                )
            )
    return sorted(found, key=lambda row: row.edge)


def decided_by(run: Run, decision: Decision, round_: int = 0) -> tuple[list[float], list[float]]:
    """The values that one round of a decision compared, and their standard errors."""
    if decision.strengths:
        values = list(decision.strengths[round_])
        return values, [math.nan] * len(values)
    name = "loss" if run.criterion(decision.cell_type) == "loss" else "accuracy"
    values = getattr(decision, name)
    if not values:
        return [], []
    return list(values[round_]), list(getattr(decision, f"{name}_stderr")[round_])


def _sign(run: Run, cell_type: str) -> int:
    """+1 where a larger value speaks for the operation."""
    method, by_loss = run.settings.get("select"), run.criterion(cell_type) == "loss"
    if method == "strength":
        return 1
    if method == "discretization":
        return -1 if by_loss else 1
    return 1 if by_loss else -1


@themed
def removal_heat_map(run: Run, cell_type: str) -> Figure | None:
    """A row for each edge, a column for each operation: score and standard error, dark where the
    operation is worth more; a frame is around what was kept.

    Returns:
        None if no edge of the cell type has been scored.
    """
    rows, space = edge_scores(run, cell_type), run.space
    if not rows or space is None:
        return None
    count = space.num_ops
    differ = len(set(space.primitives[cell_type])) > 1  # then the edges are named with them
    width = min(PAPER_WIDTH, max(0.8 * count + 1.6, 5.4 if differ else 4.6))
    figure = new_figure(width, 0.36 * max(len(rows), 5) + 1.25)
    axes = figure.subplots()
    harm = np.full((len(rows), count), np.nan)
    for line, row in enumerate(rows):
        harm[line, row.ops] = [value if math.isfinite(value) else np.nan for value in row.harm]
    most = (float(np.nanmax(harm)) if np.isfinite(harm).any() else 0.0) or 1.0
    bounds = np.linspace(0, most, len(HEAT) + 1)
    norm = BoundaryNorm(bounds, len(HEAT))
    colours = ListedColormap(HEAT)
    axes.pcolormesh(
        np.ma.masked_invalid(harm), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.2
    )
    what, unit = score_meaning(run, cell_type)
    digits = 3 if unit == "nats" else 1
    for line, row in enumerate(rows):
        _numbers(axes, line, row, norm, digits)
        axes.add_patch(
            Rectangle((row.chosen + 0.03, line + 0.06), 0.94, 0.88, fill=False, ec=FRAME, lw=1.7)
        )
    _ticks(axes, run, cell_type, rows)
    _scale(figure, axes, ScalarMappable(norm, colours), most, unit)
    axes.set_title(f"{cell_name(cell_type).capitalize()}: {what}, {unit}", loc="left")
    return figure


def _numbers(axes: Axes, line: int, row: EdgeScores, norm: BoundaryNorm, digits: int) -> None:
    for op, value, error, harm in zip(row.ops, row.values, row.errors, row.harm, strict=True):
        dark = math.isfinite(harm) and harm >= norm.boundaries[_DARK_FROM]
        colour = PAPER if dark else INK
        known = math.isfinite(error)
        x, y = op + 0.5, line + 0.5
        axes.text(
            x,
            y - (0.17 if known else 0),
            f"{value:.{digits}f}",
            ha="center",
            va="center",
            size=7,
            color=colour,
        )
        if known:
            axes.text(
                x,
                y + 0.22,
                f"\u00b1{error:.{digits}f}",
                ha="center",
                va="center",
                size=5.8,
                color=colour,
            )


def _ticks(axes: Axes, run: Run, cell_type: str, rows: list[EdgeScores]) -> None:
    space = run.space
    assert space is not None
    axes.set_xlim(0, space.num_ops)
    axes.set_ylim(len(rows), 0)
    names = space.primitives[cell_type]
    labels = list(names[0])
    if len(set(names)) > 1:
        labels = [f"operation {op}" for op in range(space.num_ops)]
    axes.set_xticks(
        np.arange(space.num_ops) + 0.5, labels, rotation=25, ha="right", rotation_mode="anchor"
    )
    edges = ["{}\u2192{}".format(*space.edges[row.edge]) for row in rows]
    if len(set(names)) > 1:
        edges = [
            f"{edge}  {', '.join(names[row.edge])}" for edge, row in zip(edges, rows, strict=True)
        ]
    axes.set_yticks(np.arange(len(rows)) + 0.5, edges)
    axes.set_ylabel("edge, from state to node")
    orders = axes.secondary_yaxis("right")
    orders.set_yticks(np.arange(len(rows)) + 0.5, [str(row.order) for row in rows])
    orders.set_ylabel("decision number", color=MUTED)
    for each in (axes, orders):
        each.tick_params(length=0)
        for side in each.spines.values():
            side.set_visible(False)


def _scale(figure: Figure, axes: Axes, mappable: ScalarMappable, most: float, unit: str) -> None:
    bar = figure.colorbar(
        mappable, ax=axes, location="bottom", aspect=40, shrink=0.7, pad=0.02, format="%.2g"
    )
    bar.set_label(f"worth beyond the least on the same edge, {unit}", size=7)
    bar.outline.set_visible(False)
    if figure.get_figwidth() < 0.8 * PAPER_WIDTH:
        bar.set_ticks([0.0, most])
        bar.minorticks_off()
    bar.ax.tick_params(labelsize=6.5, length=0)

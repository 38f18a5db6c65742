# SPDX-License-Identifier: Apache-2.0
"""Pictures of how an architecture was, or would be, selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from darts_fast.report.theme import (
    INK,
    MARKERS,
    MUTED,
    RAIL,
    SERIES,
    checked_path,
    label_axes,
    new_figure,
    save_figure,
    themed,
)
from darts_fast.selection.analysis import EdgeStrengths, SkipPoint
from darts_fast.spaces import Space

__all__ = ["draw_discretization", "draw_proposition", "draw_strength", "draw_trajectory"]


@themed
def draw_strength(
    rows: Sequence[EdgeStrengths], space: Space, path: str | Path, *, title: str | None = None
) -> Path:
    """Architecture weights beside strengths (DARTS-PT, figure 2), one row per edge.

    Colours rank the operations of an edge from 0 (pale) to the best (dark), numbers are the values,
    and a frame marks what would be selected.

    Args:
        rows: of `compare_strength`.
        space: names the edges.
        path: ends in .png, .pdf or .svg.
        title: a line above.

    Returns:
        The path written.

    Raises:
        ValueError: another suffix.
    """
    path = checked_path("draw_strength", path)
    columns = (("softmax(alpha)", "weights"), ("rise of the loss on removal", "loss"))
    types = list(dict.fromkeys(row.cell_type for row in rows))
    ops = len(rows[0].ops)
    per_type = len(rows) // len(types)
    size = (2 * (0.78 * ops + 0.55) + 1.2, len(types) * (0.3 * per_type + 1.75) + 0.5)
    figure = new_figure(*size)
    grid = figure.subplots(len(types), 2, squeeze=False)
    for line, cell_type in zip(grid, types, strict=True):
        here = [row for row in rows if row.cell_type == cell_type]
        heading = "cell" if cell_type == "cell" else f"{cell_type} cell"
        for axes, (name, column) in zip(line, columns, strict=True):
            _ranks(axes, here, column)
            axes.set_title(f"{heading}: {name}", fontsize=10, color=INK, loc="left")
        labels = ["{}\u2192{}".format(*space.edges[row.edge]) for row in here]
        line[0].set_yticks(range(len(here)), labels, fontsize=8)
        line[0].set_ylabel("edge, from state to node", fontsize=9, color=INK)
        line[1].set_yticks([])
    return _save(figure, path, title)


def _ranks(axes: Axes, rows: Sequence[EdgeStrengths], column: str) -> None:
    values = np.array([getattr(row, column) for row in rows])
    ranks = values.argsort(1).argsort(1) / max(values.shape[1] - 1, 1)
    axes.imshow(0.75 * ranks, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for edge, row in enumerate(values):
        for op, value in enumerate(row):
            colour = "white" if ranks[edge, op] > 0.8 else INK
            text = f"{value:.3f}" if column == "weights" else f"{value:+.3f}"
            axes.text(op, edge, text, ha="center", va="center", size=7, color=colour)
        best = int(row.argmax())
        axes.add_patch(
            Rectangle((best - 0.5, edge - 0.5), 1, 1, fill=False, edgecolor=SERIES[1], lw=2)
        )
    axes.set_xticks(range(values.shape[1]), _names(rows), fontsize=8, rotation=30, ha="right")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _names(rows: Sequence[EdgeStrengths]) -> list[str]:
    """Names of the operations, or their numbers where the edges differ (space s1)."""
    if len({row.ops for row in rows}) == 1:
        return list(rows[0].ops)
    return [f"op {index}" for index in range(len(rows[0].ops))]


@themed
def draw_discretization(
    rows: Sequence[EdgeStrengths],
    accuracies: Sequence[Sequence[float]],
    space: Space,
    path: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """Accuracy after discretising edges, beside what weight and strength said (DARTS-PT, figure 1).

    One panel per edge, one bar per operation; a frame marks the operation of largest weight,
    hatches that of largest strength.

    Args:
        rows: of `compare_strength`, for the edges discretised.
        accuracies: for each row and operation, percent.
        space, path, title: as for `draw_strength`.

    Raises:
        ValueError: another suffix.
    """
    path = checked_path("draw_discretization", path)
    figure = new_figure(0.62 * len(rows[0].ops) * len(rows) + 1.4, 4.0)
    grid = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    every = [value for values in accuracies for value in values]
    spread = max(max(every) - min(every), 1.0)
    for axes, row, values in zip(grid, rows, accuracies, strict=True):
        by_weight = row.weights.index(max(row.weights))
        by_strength = row.loss.index(max(row.loss))
        for op, (value, weight) in enumerate(zip(values, row.weights, strict=True)):
            axes.bar(
                op,
                value,
                color="#cfe0fb",
                edgecolor=SERIES[1] if op == by_weight else RAIL,
                lw=2.2 if op == by_weight else 0.8,
                hatch="///" if op == by_strength else None,
            )
            axes.text(op, value + 0.02 * spread, f"{weight:.2f}", ha="center", size=7, color=MUTED)
        source, node = space.edges[row.edge]
        label_axes(axes, f"{row.cell_type} edge {source}\u2192{node}", "", "")
        axes.set_xticks(range(len(row.ops)), row.ops, rotation=35, ha="right", fontsize=7.5)
        axes.grid(axis="x", visible=False)
    grid[0].set_ylim(min(every) - 0.25 * spread, max(every) + 0.15 * spread)
    grid[0].set_ylabel("accuracy after discretisation and tuning, %", fontsize=9, color=INK)
    handles = [
        Patch(facecolor="#cfe0fb", edgecolor=SERIES[1], lw=2, label="largest weight (numbers)"),
        Patch(facecolor="#cfe0fb", edgecolor=RAIL, hatch="///", label="largest strength"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return _save(figure, path, title)


@themed
def draw_proposition(
    points: Sequence[SkipPoint],
    gaps: Sequence[tuple[int, float, float]],
    path: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """Why skip connections gain weight (DARTS-PT, proposition 1 and figure 3).

    Left: errors of operation and skip connection about the shared map. Middle: the optimal share of
    the skip connection, beside its actual one. Right: its lead over the convolutions along the
    search, against the accuracy of the supernet.

    Args:
        points: of `skip_points`.
        gaps: (epoch, accuracy in percent, `skip_gap`) of snapshots.
        path, title: as for `draw_strength`.

    Raises:
        ValueError: another suffix.
    """
    path = checked_path("draw_proposition", path)
    figure = new_figure(12.6, 4.2)
    left, middle, right = figure.subplots(1, 3)
    _scatter(left, [p.op_error for p in points], [p.skip_error for p in points])
    label_axes(
        left,
        "errors about the node's shared map",
        "operation, mean square",
        "skip connection, mean square",
    )
    _scatter(middle, [p.predicted for p in points], [p.actual for p in points])
    label_axes(middle, "share of the skip connection", "optimal (proposition 1)", "actual (alpha)")
    if gaps:
        epochs, accuracies, values = zip(*gaps, strict=True)
        right.plot(accuracies, values, color=MUTED, lw=1, zorder=1)
        right.scatter(accuracies, values, color=SERIES[0], s=28, zorder=2)
        for index in sorted({0, len(gaps) - 1}):
            right.annotate(
                f"epoch {epochs[index]}",
                (accuracies[index], values[index]),
                xytext=(8, -4),
                textcoords="offset points",
                fontsize=8,
                color=MUTED,
            )
        right.margins(0.2)
    right.axhline(0, color=MUTED, lw=0.8)
    label_axes(
        right,
        "lead of the skip connection",
        "accuracy of the supernet, %",
        "softmax(alpha): skip less convolution",
    )
    return _save(figure, path, title)


def _scatter(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Points, and the line where both are equal."""
    axes.scatter(x, y, s=22, color=SERIES[0], alpha=0.7, linewidths=0)
    ends = [min([*x, *y, 0.0]), max([*x, *y, 1.0])]
    axes.plot(ends, ends, color=MUTED, lw=1, ls="--")
    axes.set_aspect("equal", adjustable="box")


@themed
def draw_trajectory(
    points: Sequence[Mapping[str, object]],
    path: str | Path,
    *,
    accuracy: str = "accuracy of the discretised supernet, %",
    title: str | None = None,
) -> Path:
    """What selections find along a search (DARTS-PT, figure 4).

    Args:
        points: with ``method``, ``epoch``, ``accuracy`` (percent) and ``skips``, the number of skip
            connections.
        path, title: as for `draw_strength`.
        accuracy: what the accuracy is.

    Raises:
        ValueError: another suffix.
    """
    path = checked_path("draw_trajectory", path)
    figure = new_figure(9.2, 4.2)
    columns = figure.subplots(1, 2)
    methods = list(dict.fromkeys(str(point["method"]) for point in points))
    for axes, key, label in zip(
        columns, ("accuracy", "skips"), (accuracy, "skip connections"), strict=True
    ):
        for index, method in enumerate(methods):
            own = [point for point in points if point["method"] == method]
            axes.plot(
                [point["epoch"] for point in own],
                [point[key] for point in own],
                color=SERIES[index % len(SERIES)],
                marker=MARKERS[index % len(MARKERS)],
                ms=5,
                lw=1.6,
                alpha=0.85,
                label=method,
            )
        axes.xaxis.get_major_locator().set_params(integer=True)
        label_axes(axes, "", "epoch of the search", label)
    columns[1].yaxis.get_major_locator().set_params(integer=True)
    columns[0].legend(frameon=False, fontsize=9)
    return _save(figure, path, title)


def _save(figure: Figure, path: Path, title: str | None) -> Path:
    if title:
        figure.suptitle(title, fontsize=12, color=INK, x=0.02, ha="left")
    return save_figure(figure, path, dpi=150)

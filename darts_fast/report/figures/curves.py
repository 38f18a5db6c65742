# SPDX-License-Identifier: Apache-2.0
"""Curves over epochs: accuracy and loss, and how many skip connections there would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from darts_fast.report.run import Run
from darts_fast.report.theme import (
    DASHES,
    INK,
    MARKERS,
    PAPER_WIDTH,
    label_axes,
    new_figure,
    series_styles,
    themed,
)
from darts_fast.spaces import read_genotype, skip_connections

__all__ = ["learning_curves", "skip_curves"]

Epochs = Sequence[Mapping[str, Any]]


@themed
def learning_curves(series: Mapping[str, Epochs], *, x: str, held_out: str) -> Figure | None:
    """Accuracy and loss over epochs, on the training images (dashed) and held-out ones (solid);
    where nothing was held out, on the training images alone.

    Args:
        series: by name the epochs, as `Run.epochs` gives them; empty ones are left out.
        x: what an epoch is of.
        held_out: what ``valid_acc`` and ``valid_loss`` are measured on.

    Returns:
        None if no series has an epoch.
    """
    shown = {name: epochs for name, epochs in series.items() if epochs}
    if not shown:
        return None
    figure = new_figure(PAPER_WIDTH, 2.6)
    left, right = figure.subplots(1, 2)
    styles = series_styles(len(shown))
    every = [event for epochs in shown.values() for event in epochs]
    both = any(event.get("valid_acc") is not None for event in every)
    panels = ((left, "acc", "accuracy", "%"), (right, "loss", "loss", "nats"))
    for axes, key, label, unit in panels:
        for (colour, marker, _), epochs in zip(styles, shown.values(), strict=True):
            if both:
                _line(axes, epochs, f"train_{key}", colour=colour, dash=DASHES[1], lw=1.0)
            solid = "valid" if both else "train"
            _line(axes, epochs, f"{solid}_{key}", colour=colour, marker=marker, ms=3)
        label_axes(axes, "", x, f"{label}, {unit}" if both else f"training {label}, {unit}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_ylim(bottom=0)
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=4, label=name)
        for (colour, marker, _), name in zip(styles, shown, strict=True)
    ]
    if both:
        handles.append(Line2D([], [], color=INK, ls=DASHES[1], lw=1.0, label="training images"))
        handles.append(Line2D([], [], color=INK, label=held_out))
    _legend(figure, handles)
    return figure


@themed
def skip_curves(runs: Sequence[Run]) -> Figure | None:
    """Skip connections of the genotype of largest weights after each epoch; a star is what was
    selected in the end.

    Returns:
        None if no run has recorded a genotype.
    """
    figure = new_figure(PAPER_WIDTH, 2.3)
    axes = figure.subplots()
    handles = []
    for (colour, marker, dash), run in zip(series_styles(len(runs)), runs, strict=True):
        epochs = [event for event in run.epochs("search") if event.get("genotype")]
        if not epochs:
            continue
        counts = [skip_connections(read_genotype(event["genotype"])) for event in epochs]
        numbers = [int(event["epoch"]) + 1 for event in epochs]
        axes.plot(numbers, counts, color=colour, marker=marker, ms=3, ls=dash, alpha=0.9)
        handles.append(Line2D([], [], color=colour, marker=marker, ls=dash, ms=4, label=run.name))
        selected = run.genotypes.get(run.label)
        if selected is not None:
            axes.plot(
                numbers[-1] + 0.04 * numbers[-1] + 0.25,
                skip_connections(selected),
                color=colour,
                marker="*",
                ms=9,
                clip_on=False,
            )
    if not handles:
        return None
    if any(run.genotypes.get(run.label) is not None for run in runs):
        handles.append(
            Line2D([], [], color=INK, marker="*", ms=8, ls="", label="selected architecture")
        )
    label_axes(axes, "", "epoch of the search", "skip connections")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=min(axes.get_ylim()[0], -0.2))
    _legend(figure, handles)
    return figure


def _line(
    axes: Axes,
    epochs: Epochs,
    key: str,
    *,
    colour: str,
    marker: str = "",
    dash: Any = "-",
    **options: Any,
) -> None:
    points = [
        (int(event["epoch"]) + 1, event[key]) for event in epochs if event.get(key) is not None
    ]
    if points:
        numbers, values = zip(*points, strict=True)
        alone = MARKERS[0] if len(points) == 1 else ""  # a line of one point shows nothing
        axes.plot(numbers, values, color=colour, ls=dash, marker=marker or alone, **options)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    columns = min(len(handles), 4)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)

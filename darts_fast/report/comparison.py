# SPDX-License-Identifier: Apache-2.0
"""Runs of several methods, selections and seeds: means and deviations, CSV and a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darts_fast.report.csv_text import csv_text
from darts_fast.report.run import Run
from darts_fast.report.theme import (
    INK,
    PAPER_WIDTH,
    label_axes,
    new_figure,
    series_styles,
    themed,
)
from darts_fast.search import genotype_text
from darts_fast.spaces import AccuracyTable, skip_connections

__all__ = ["METRICS", "Group", "comparison_figure", "groups_of", "runs_csv", "summary_csv"]

# Column of the CSV files: heading of the table, decimals.
METRICS: dict[str, tuple[str, int]] = {
    "test_accuracy": ("test accuracy, %", 2),
    "best_test_accuracy": ("best epoch, %", 2),
    "table_accuracy": ("table, %", 2),
    "supernet_accuracy": ("supernet, %", 2),
    "skip_connections": ("skips", 1),
    "parameters": ("parameters", 0),
    "search_seconds": ("search, s", 0),
    "seconds": ("seconds", 0),
}
_OF = ("method", "selection")


def metrics_of(run: Run, table: AccuracyTable | None = None) -> dict[str, float]:
    """What is known of a finished run, by column.

    Args: table, of test accuracies on CIFAR-10, for runs on NAS-Bench-201.
    """
    found: dict[str, float] = {"seconds": sum(run.seconds.values())}
    phases = [run.seconds[name] for name in ("search", "select") if name in run.seconds]
    if phases:
        found["search_seconds"] = sum(phases)
    row = run.networks.get(run.label, {})
    for name in ("test_accuracy", "best_test_accuracy", "parameters"):
        if name in row:
            found[name] = float(row[name])
    valid = [e["valid_acc"] for e in run.epochs("search") if e.get("valid_acc") is not None]
    if valid:
        found["supernet_accuracy"] = float(valid[-1])
    genotype = run.genotypes.get(run.label)
    if genotype is not None:
        found["skip_connections"] = float(skip_connections(genotype))
        if table is not None and isinstance(genotype, str):
            found["table_accuracy"] = table.accuracy(genotype)
    return found


@dataclass(frozen=True)
class Group:
    """The runs of one method and selection, which differ by their seed.

    Attributes:
        runs: in the order of their seeds.
        metrics: of each run.
    """

    method: str
    selection: str
    runs: tuple[Run, ...]
    metrics: tuple[dict[str, float], ...]

    def values(self, name: str) -> list[float]:
        """Of one metric, of the runs that have it."""
        return [metrics[name] for metrics in self.metrics if name in metrics]

    def mean(self, name: str) -> float:
        """nan where no run has it."""
        values = self.values(name)
        return statistics.fmean(values) if values else math.nan

    def deviation(self, name: str) -> float:
        """Sample standard deviation over the seeds; nan for fewer than two."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def text(self, name: str) -> str:
        """Mean and deviation as in a table, a dash where no run has it."""
        digits = METRICS[name][1]
        mean, deviation = self.mean(name), self.deviation(name)
        if math.isnan(mean):
            return "\u2013"
        plus = "" if math.isnan(deviation) else f" \u00b1 {deviation:,.{digits}f}"
        return f"{mean:,.{digits}f}{plus}"


def groups_of(runs: Sequence[Run], table: AccuracyTable | None = None) -> list[Group]:
    """The runs by method and selection, in the order of their first.

    Args: table, see `metrics_of`.
    """
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.settings["method"], run.settings["select"]), []).append(run)
    return [
        Group(method, selection, tuple(members), tuple(metrics_of(run, table) for run in members))
        for (method, selection), members in found.items()
    ]


def runs_csv(groups: Sequence[Group]) -> str:
    """A line for each run."""
    rows = [
        [group.method, group.selection, run.settings["seed"]]
        + [metrics.get(name, "") for name in METRICS]
        + [genotype_text(run.genotypes[run.label]) if run.label in run.genotypes else ""]
        for group in groups
        for run, metrics in zip(group.runs, group.metrics, strict=True)
    ]
    return csv_text([*_OF, "seed", *METRICS, "genotype"], rows)


def summary_csv(groups: Sequence[Group]) -> str:
    """A line for each method and selection: number of runs, means and sample deviations."""
    head = [*_OF, "runs"]
    for name in METRICS:
        head += [f"{name}_mean", f"{name}_deviation"]
    rows = []
    for group in groups:
        row: list[Any] = [group.method, group.selection, len(group.runs)]
        for name in METRICS:
            for value in (group.mean(name), group.deviation(name)):
                row.append("" if math.isnan(value) else value)
        rows.append(row)
    return csv_text(head, rows)


@themed
def comparison_figure(groups: Sequence[Group]) -> Figure:
    """A dot for each run, mean and sample deviation beside them: accuracy, and skip connections.

    The accuracy is that of the networks trained from scratch, or where no run has trained one that
    of a table, or where there is none that of the supernets.
    """
    labels = {
        "test_accuracy": "test accuracy, %",
        "table_accuracy": "test accuracy in the table, %",
        "supernet_accuracy": "validation accuracy of the supernet, %",
    }
    known = (name for name in labels if any(group.values(name) for group in groups))
    accuracy = next(known, "supernet_accuracy")
    label = labels[accuracy]
    figure = new_figure(PAPER_WIDTH, 0.42 * len(groups) + 1.0)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _dots(left, groups, accuracy)
    _dots(right, groups, "skip_connections")
    label_axes(left, "", label, "")
    label_axes(right, "", "skip connections", "")
    names = [f"{group.method}, {group.selection}" for group in groups]
    left.set_yticks(range(len(groups)), names)
    left.set_ylim(len(groups) - 0.5, -0.5)
    return figure


def _dots(axes: Axes, groups: Sequence[Group], name: str) -> None:
    for row, (group, (colour, marker, _)) in enumerate(
        zip(groups, series_styles(len(groups)), strict=True)
    ):
        values = group.values(name)
        axes.plot(values, [row - 0.14] * len(values), marker, color=colour, ms=4, alpha=0.75)
        if values:
            deviation = group.deviation(name)
            axes.errorbar(
                group.mean(name),
                row + 0.14,
                xerr=None if math.isnan(deviation) else deviation,
                fmt="|",
                color=INK,
                ms=9,
                lw=1,
                capsize=2.5,
            )

# SPDX-License-Identifier: Apache-2.0
"""Removal scores as CSV, JSON and picture."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from darts_fast.files import atomic_write
from darts_fast.selection.removals import Removal
from darts_fast.selection.tables import TableScores

if TYPE_CHECKING:
    from darts_fast.selection.scores import RemovalScores

_KIND = "darts_fast removal scores"
_SUMS = ("batch_loss", "batch_correct", "batch_images")
_WHOLE_EDGE = "whole edge"
_SCORES = ("loss", "loss_stderr", "accuracy", "accuracy_stderr")
_DIFFERENCES = (
    *("loss_difference", "loss_difference_stderr"),
    *("accuracy_difference", "accuracy_difference_stderr"),
)


def write_csv(scores: RemovalScores, path: Path) -> None:
    """A line for the base and for each removal."""
    columns = [getattr(scores.scores, name).tolist() for name in _SCORES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["removal", *_SCORES, *_DIFFERENCES, "images"])
        for row, name in enumerate(["base", *(removal.name for removal in scores.rows)]):
            difference = scores.scores.difference(row, 0)
            writer.writerow(
                [
                    name,
                    *(column[row] for column in columns),
                    *(getattr(difference, column) for column in _SCORES),
                    scores.images,
                ]
            )


def write_json(scores: RemovalScores, path: Path) -> None:
    """See `RemovalScores.to_json`."""
    value = {
        "kind": _KIND,
        "cell_type": scores.cell_type,
        "edges": list(scores.edges),
        "rows": [{"name": row.name, "places": row.places} for row in scores.rows],
        **{name: _listed(getattr(scores.scores, name)) for name in _SUMS},
    }
    atomic_write(path, json.dumps(value, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The arguments of `RemovalScores`."""
    try:
        value = json.loads(path.read_text())
        if value["kind"] != _KIND:
            raise KeyError("kind")
        rows = tuple(
            Removal(tuple((place[0], place[1], place[2]) for place in row["places"]), row["name"])
            for row in value["rows"]
        )
        sums = [torch.tensor(_numbers(value[name]), dtype=torch.float64) for name in _SUMS]
        edges = tuple(value["edges"])
        cell_type = value["cell_type"]
    except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(
            f"from_json: the file must hold removal scores, got {path} ({error})"
        ) from error
    return {
        "rows": rows,
        "scores": TableScores(*sums),
        "cell_type": cell_type,
        "edges": edges,
    }


def plot(scores: RemovalScores, path: Path) -> None:
    """See `RemovalScores.plot`."""
    found: dict[str, dict[tuple[int, str], float]] = {}
    for index, row in enumerate(scores.rows):
        if len(row.places) != 1:
            continue
        cell_type, edge, op = row.places[0]
        column = _WHOLE_EDGE if op is None else row.name.split()[-1]
        value = scores.difference(index).loss
        found.setdefault(cell_type, {})[edge, column] = value
    if not found:
        raise ValueError("plot: needs removals of single operations or edges, got none")
    grids = {name: _grid(values) for name, values in found.items()}
    height = max(len(edges) for edges, _, _ in grids.values())
    width = sum(len(columns) for _, columns, _ in grids.values())
    figure = Figure(figsize=(2.5 * len(grids) + 0.55 * width, 2.4 + 0.3 * height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    for axis, (name, (edges, columns, values)) in zip(axes, grids.items(), strict=True):
        finite = values[values.isfinite()].abs()
        most = float(finite.max()) if finite.numel() and finite.max() > 0 else 1.0
        # What is missing or not finite stays grey.
        shown = torch.where(values.isfinite(), values, math.nan)
        axis.set_facecolor("#b8bfca")
        image = axis.imshow(shown.numpy(), cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axis.set_yticks(range(len(edges)), [str(edge) for edge in edges])
        axis.set_xlabel("removed operation")
        axis.set_ylabel("edge")
        axis.set_title(f"{name} cells")
        figure.colorbar(image, ax=axis, label="increase of the loss")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _grid(values: dict[tuple[int, str], float]) -> tuple[list[int], list[str], Tensor]:
    edges = sorted({edge for edge, _ in values})
    columns = list(dict.fromkeys(column for _, column in values))
    grid = torch.full((len(edges), len(columns)), math.nan, dtype=torch.float64)
    for (edge, column), value in values.items():
        grid[edges.index(edge), columns.index(column)] = value
    return edges, columns, grid


def _listed(values: Tensor) -> Any:
    """Nested lists; JSON has no word for a number that is not finite, so that it is a text."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value if math.isfinite(value) else str(value)

    return plain(values.tolist())


def _numbers(value: Any) -> Any:
    return [_numbers(item) for item in value] if isinstance(value, list) else float(value)

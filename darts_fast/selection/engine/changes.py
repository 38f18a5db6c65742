# SPDX-License-Identifier: Apache-2.0
"""What tables change about a network, and in which order they are best evaluated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.nn.mixed_op import check_weights

Changed = tuple[tuple[str, int], ...]
Place = tuple[str, int, int]
"""Cell type, edge, operation."""


@dataclass(frozen=True)
class Tables:
    """Tables in full, each once, in host memory.

    Attributes:
        reference: by cell type the network's own weights [edges, ops].
        weights: by cell type [T, edges, ops].
        position: of every table that was given, its place among the T.
    """

    reference: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    position: tuple[int, ...]

    def changed(self, idle: Collection[Place]) -> list[Changed]:
        """Of each of the T the (cell type, edge) whose row is not the network's own.

        Args: idle, operations that add nothing whatever their weight.
        """
        count = next(iter(self.weights.values())).shape[0]
        found: list[list[tuple[str, int]]] = [[] for _ in range(count)]
        for name, own in self.reference.items():
            differs = self.weights[name] != own
            for cell_type, edge, op in idle:
                if cell_type == name:
                    differs[:, edge, op] = False
            for table, edge in torch.nonzero(differs.any(dim=2)).tolist():
                found[table].append((name, edge))
        return [tuple(rows) for rows in found]

    def table(self, index: int) -> dict[str, Tensor]:
        """One of the T, by cell type [edges, ops]."""
        return {name: rows[index] for name, rows in self.weights.items()}


def gather(reference: Mapping[str, Tensor], tables: Sequence[Mapping[str, Tensor]]) -> Tables:
    """Fill in the rows that tables leave out; tables that are equal become one. The result is in
    host memory, wherever they are: what is computed follows from their values.

    Raises ValueError or TypeError, in the name of MaskedEvaluation, for weights that do not fit.
    """
    for table in tables:
        for name, rows in table.items():
            if name not in reference:
                raise ValueError(
                    f"MaskedEvaluation: weights must be for {', '.join(reference)}, got {name!r}"
                )
            check_weights(f"MaskedEvaluation {name}", rows, tuple(reference[name].shape))
    reference = {name: own.detach().cpu() for name, own in reference.items()}
    first_of: dict[tuple[bytes, ...], int] = {}
    position: list[int] = []
    distinct: list[dict[str, Tensor]] = []
    for table in tables:
        full = {name: table.get(name, own).detach().cpu() for name, own in reference.items()}
        key = tuple(rows.double().numpy().tobytes() for rows in full.values())
        if key not in first_of:
            first_of[key] = len(distinct)
            distinct.append(full)
        position.append(first_of[key])
    weights = {name: torch.stack([full[name] for full in distinct]) for name in reference}
    return Tables(reference, weights, tuple(position))


def first_stage(changed: Changed, cell_types: Sequence[str | None]) -> int:
    """The first stage that a table changes; their number if it changes none."""
    names = {name for name, _ in changed}
    return next((index for index, name in enumerate(cell_types) if name in names), len(cell_types))


def cut(items: Sequence[int], most: int) -> Iterable[Sequence[int]]:
    """Consecutive parts of nearly one size, none longer than `most`; the longer ones come first, so
    that later ones fit into memory that earlier ones had."""
    if not items:
        return
    parts = -(-len(items) // most)
    size, longer = divmod(len(items), parts)
    start = 0
    for part in range(parts):
        end = start + size + (1 if part < longer else 0)
        yield items[start:end]
        start = end


def runs(items: Sequence[int], changed: Sequence[Changed]) -> Iterable[Sequence[int]]:
    """Consecutive parts whose tables change the same rows."""
    start = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or changed[items[end]] != changed[items[start]]:
            yield items[start:end]
            start = end

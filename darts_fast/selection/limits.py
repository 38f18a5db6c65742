# SPDX-License-Identifier: Apache-2.0
"""Limits on what the derived network may cost, kept or priced while a selection decides.

A *hard* limit rejects a candidate when no architecture that is still possible with it stays within
all hard limits at once. Costs add up over the entries of an architecture (`darts_fast.cost`), and
the choices of different nodes are independent, so that this is decided exactly: per node the
Pareto-minimal sums of costs over its pairs of edges and their operations, joined node by node. A
selection that starts with a reachable limit therefore ends within it.

A limit with a *penalty* rejects nothing. It takes

    penalty * cost(operation on the edge) / limit

from what an operation or an edge is worth to the selection, in the unit of its criterion: points of
accuracy, nats of loss, or architecture weight. The penalty is thus the worth of an operation that
uses up the whole limit by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from darts_fast.cost import CostTable
from darts_fast.nn.projection import Projection
from darts_fast.spaces import Space

__all__ = ["Choices", "Limit", "Limits", "cheapest"]

KEPT_EDGES = 2
ROUNDING = 1 + 1e-12

Costs = tuple[float, ...]


@dataclass(frozen=True)
class Limit:
    """One resource of the derived network.

    Args:
        table: its costs.
        most: what the network may cost at most.
        penalty: price instead of rejection, see the module; None rejects.

    Raises:
        ValueError: a limit that is not positive, or a negative penalty.
    """

    table: CostTable
    most: float
    penalty: float | None = None

    def __post_init__(self) -> None:
        if not self.most > 0:
            raise ValueError(
                f"limit: {self.table.resource} must be limited by more than 0, got {self.most}"
            )
        if self.penalty is not None and not self.penalty >= 0:
            raise ValueError(
                f"limit: penalty of {self.table.resource} must be at least 0, got {self.penalty}"
            )


@dataclass(frozen=True)
class Choices:
    """What is open: for each cell type and edge its operations, none where the edge is dropped.

    must: the (cell type, edge) that their nodes keep for sure.
    """

    ops: dict[str, tuple[tuple[int, ...], ...]]
    must: frozenset[tuple[str, int]] = frozenset()

    def with_op(self, cell_type: str, edge: int, op: int, *, keep: bool = False) -> Choices:
        """The edge decided; with `keep` its node keeps it."""
        found = self._with(cell_type, {edge: (op,)})
        return replace(found, must=found.must | {(cell_type, edge)}) if keep else found

    def without_edges(self, cell_type: str, edges: Iterable[int]) -> Choices:
        """These edges dropped."""
        return self._with(cell_type, dict.fromkeys(edges, ()))

    def _with(self, cell_type: str, ops: dict[int, tuple[int, ...]]) -> Choices:
        row = tuple(ops.get(edge, old) for edge, old in enumerate(self.ops[cell_type]))
        return replace(self, ops={**self.ops, cell_type: row})


class Limits:
    """Several limits of the networks of one space.

    Where a node keeps two of its edges, ``none`` is no candidate under hard limits: no genotype of
    these spaces has it, and the operation that stands in for it would be counted wrongly.

    Raises:
        ValueError: no limit, limits of different spaces, or hard limits that not even the cheapest
            architecture keeps.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        spaces = {limit.table.space.name for limit in limits}
        if len(spaces) != 1:
            raise ValueError(f"limits: must be of one space, got {sorted(spaces)}")
        self.limits = tuple(limits)
        self.space: Space = limits[0].table.space
        self._hard = [limit for limit in limits if limit.penalty is None]
        for limit in self._hard:
            if not _front(self.space, self.choices(), [limit]):
                raise ValueError(
                    f"limit: {limit.table.resource} must be at least "
                    f"{cheapest(limit.table):,.6g}, the cheapest network of space "
                    f"{self.space.name}, got {limit.most:,.6g}"
                )
        if not self.reachable(self.choices()):
            names = ", ".join(limit.table.resource for limit in self._hard)
            raise ValueError(f"limits: no network keeps all of them at once, got {names}")

    @property
    def priced(self) -> bool:
        """Whether a limit has a penalty."""
        return any(limit.penalty for limit in self.limits)

    def state_dict(self) -> list[dict[str, Any]]:
        """The costs, which are measured ones for latency."""
        return [{"base": limit.table.base, "tables": limit.table.tables} for limit in self.limits]

    def with_costs(self, state: Sequence[Mapping[str, Any]]) -> Limits:
        """The same limits on the costs of a :meth:`state_dict`."""
        return Limits(
            [
                replace(limit, table=replace(limit.table, **costs))
                for limit, costs in zip(self.limits, state, strict=True)
            ]
        )

    def choices(self, decided: Projection | None = None) -> Choices:
        """What is open after the decisions of a network; by default everything."""
        ops = {}
        for cell_type in self.space.cell_types:
            names = self.space.primitives[cell_type]
            rows = [tuple(range(len(row))) for row in names]
            if decided is not None:
                rows = decided.open_ops(cell_type)
            if self.space.select_topology and self._hard:
                rows = [
                    tuple(op for op in row if names[edge][op] != "none")
                    for edge, row in enumerate(rows)
                ]
            ops[cell_type] = tuple(rows)
        return Choices(ops)

    def reachable(self, choices: Choices) -> bool:
        """Whether some architecture among the choices keeps all hard limits."""
        return not self._hard or bool(_front(self.space, choices, self._hard))

    def price(self, cell_type: str, edge: int, op: int) -> float:
        """What the penalties take from the worth of an operation on an edge."""
        return sum(
            limit.penalty * limit.table.tables[cell_type][edge][op] / limit.most
            for limit in self.limits
            if limit.penalty is not None
        )


def cheapest(table: CostTable) -> float:
    """What the cheapest network of a space costs; no network is cheaper than that."""
    limit = Limit(table, float("inf"))
    ((least,),) = _front(table.space, Limits([limit]).choices(), [limit])
    return least


def _front(space: Space, choices: Choices, limits: Sequence[Limit]) -> list[Costs]:
    """The Pareto-minimal costs, within the limits, of the architectures among the choices."""
    front: list[Costs] = [tuple(limit.table.base for limit in limits)]
    for cell_type in space.cell_types:
        for edges in space.node_edges.values():
            options = _node_front(space, choices, cell_type, edges, limits)
            front = [
                costs
                for costs in _pareto(_sums(front, options))
                if all(
                    cost <= limit.most * ROUNDING for cost, limit in zip(costs, limits, strict=True)
                )
            ]
    return front


def _node_front(
    space: Space,
    choices: Choices,
    cell_type: str,
    edges: Sequence[int],
    limits: Sequence[Limit],
) -> list[Costs]:
    """The Pareto-minimal costs of one node."""
    fronts = {
        edge: _pareto(
            tuple(limit.table.tables[cell_type][edge][op] for limit in limits)
            for op in choices.ops[cell_type][edge]
        )
        for edge in edges
    }
    if not space.select_topology:
        total = fronts[edges[0]]
        for edge in edges[1:]:
            total = _pareto(_sums(total, fronts[edge]))
        return total
    must = {edge for edge in edges if (cell_type, edge) in choices.must}
    pairs = [pair for pair in combinations(edges, KEPT_EDGES) if must <= {*pair}]
    return _pareto(total for a, b in pairs for total in _sums(fronts[a], fronts[b]))


def _sums(ones: Sequence[Costs], others: Sequence[Costs]) -> list[Costs]:
    return [
        tuple(a + b for a, b in zip(one, other, strict=True)) for one in ones for other in others
    ]


def _pareto(costs: Iterable[Costs]) -> list[Costs]:
    """Those that no other one undercuts or equals in everything."""
    front: list[Costs] = []
    for new in sorted({*costs}):
        if not any(all(a <= b for a, b in zip(old, new, strict=True)) for old in front):
            front.append(new)
    return front

# SPDX-License-Identifier: Apache-2.0
"""A search space: its cells, their edges, and the candidate operations of every edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from darts_fast.spaces import tables
from darts_fast.spaces.genotype import Genotype, parse_cell, strongest_ops
from darts_fast.spaces.nasbench201 import arch_from_ops

ZERO_RULES = ("skip", "multiply")


@dataclass(frozen=True)
class Space:
    """One search space, immutable.

    Args:
        name: as the command line knows it.
        cell_types: the kinds of searched cells, ``("normal", "reduce")`` or ``("cell",)``.
        primitives: for each cell type and each edge the operation names in index order; every
            edge has the same number of operations.
        edges: ``(from state j, to state i)``, node by node, j ascending.
        zero_rule: what a weight of exactly 0 does in the original code: ``"skip"`` (the operation
            is not computed) or ``"multiply"``.
        select_topology: True where a node keeps two of its incoming edges.

    Raises:
        ValueError: a table does not fit the edges, or the zero rule is unknown.
    """

    name: str
    cell_types: tuple[str, ...]
    primitives: Mapping[str, tuple[tuple[str, ...], ...]] = field(hash=False)
    edges: tuple[tuple[int, int], ...]
    zero_rule: str
    select_topology: bool

    def __post_init__(self) -> None:
        if self.zero_rule not in ZERO_RULES:
            raise ValueError(
                f"space {self.name}: zero_rule must be one of {', '.join(ZERO_RULES)}, "
                f"got {self.zero_rule!r}"
            )
        if list(self.primitives) != list(self.cell_types):
            raise ValueError(
                f"space {self.name}: primitives must have one entry per cell type in order, "
                f"got {list(self.primitives)} for cell types {list(self.cell_types)}"
            )
        if list(self.edges) != sorted(self.edges, key=lambda edge: (edge[1], edge[0])):
            raise ValueError(
                f"space {self.name}: edges must go node by node with ascending sources, "
                f"got {list(self.edges)}"
            )
        for cell_type, per_edge in self.primitives.items():
            if len(per_edge) != len(self.edges):
                raise ValueError(
                    f"space {self.name}: {cell_type} must list operations for every edge, "
                    f"got {len(per_edge)} lists for {len(self.edges)} edges"
                )
        counts = sorted({len(ops) for lists in self.primitives.values() for ops in lists})
        if len(counts) != 1 or counts[0] == 0:
            raise ValueError(
                f"space {self.name}: every edge must have the same number of operations, "
                f"got {counts}"
            )

    @property
    def num_edges(self) -> int:
        """Edges of one cell: 14 in the DARTS spaces, 6 in NAS-Bench-201."""
        return len(self.edges)

    @property
    def num_ops(self) -> int:
        """Candidate operations of one edge."""
        return len(self.primitives[self.cell_types[0]][0])

    @property
    def node_edges(self) -> dict[int, tuple[int, ...]]:
        """Incoming edge indices of every node; DARTS: ``{2: (0, 1), 3: (2, 3, 4), ...}``."""
        incoming: dict[int, tuple[int, ...]] = {}
        for index, (_, node) in enumerate(self.edges):
            incoming[node] = (*incoming.get(node, ()), index)
        return incoming

    def genotype(self, weights: Mapping[str, Tensor]) -> Genotype | str:
        """The architecture that a set of edge weights stands for.

        DARTS spaces: per node the two edges with the largest weight other than that of ``none``,
        strongest first, each with its strongest operation other than ``none`` (DARTS, section 2.4);
        ties go to the lower index. NAS-Bench-201: the strongest operation of every edge, ``none``
        included.

        Args:
            weights: for each cell type a tensor ``[edges, ops]``.

        Returns:
            A `Genotype`, or for NAS-Bench-201 the architecture string.

        Raises:
            ValueError: a cell type is missing, a shape is wrong, or a weight is not finite.
        """
        for cell_type in self.cell_types:
            if cell_type not in weights:
                raise ValueError(
                    f"space {self.name}: genotype needs weights of every cell type "
                    f"{list(self.cell_types)}, got {list(weights)}"
                )
            shape = tuple(weights[cell_type].shape)
            if shape != (self.num_edges, self.num_ops):
                raise ValueError(
                    f"space {self.name}: {cell_type} weights must be [edges, ops] = "
                    f"[{self.num_edges}, {self.num_ops}], got {list(shape)}"
                )
            if not weights[cell_type].isfinite().all():
                raise ValueError(
                    f"space {self.name}: {cell_type} weights must be finite, got nan or inf"
                )
        rows = {key: weights[key].detach().cpu().tolist() for key in self.cell_types}
        if not self.select_topology:
            (cell,) = self.cell_types
            return arch_from_ops(strongest_ops(rows[cell], self.primitives[cell]))
        nodes = sorted(self.node_edges)
        concat = range(nodes[0], nodes[-1] + 1)
        return Genotype(
            normal=parse_cell(rows["normal"], self.primitives["normal"]),
            normal_concat=concat,
            reduce=parse_cell(rows["reduce"], self.primitives["reduce"]),
            reduce_concat=concat,
        )


def _darts_space(
    name: str,
    normal: tuple[tuple[str, ...], ...],
    reduce: tuple[tuple[str, ...], ...],
    zero_rule: str,
) -> Space:
    return Space(
        name=name,
        cell_types=("normal", "reduce"),
        primitives={"normal": normal, "reduce": reduce},
        edges=tables.DARTS_EDGES,
        zero_rule=zero_rule,
        select_topology=True,
    )


def _uniform(name: str, primitives: tuple[str, ...], zero_rule: str) -> Space:
    lists = (primitives,) * len(tables.DARTS_EDGES)
    return _darts_space(name, lists, lists, zero_rule)


SPACES: Mapping[str, Space] = {
    space.name: space
    for space in (
        _uniform("darts", tables.DARTS_PRIMITIVES, "multiply"),
        _darts_space("s1", tables.S1_NORMAL, tables.S1_REDUCE, "skip"),
        _uniform("s2", tables.S2_PRIMITIVES, "skip"),
        _uniform("s3", tables.S3_PRIMITIVES, "skip"),
        _uniform("s4", tables.S4_PRIMITIVES, "skip"),
        _uniform("s5", tables.S5_PRIMITIVES, "skip"),
        Space(
            name="nasbench201",
            cell_types=("cell",),
            primitives={
                "cell": (tables.NASBENCH201_PRIMITIVES,) * len(tables.NASBENCH201_EDGES),
            },
            edges=tables.NASBENCH201_EDGES,
            zero_rule="multiply",
            select_topology=False,
        ),
    )
}


def get_space(space: str | Space) -> Space:
    """The space of that name; a `Space` is returned unchanged.

    Raises:
        ValueError: no such space; the message lists the choices.
        TypeError: neither a name nor a `Space`.
    """
    if isinstance(space, Space):
        return space
    if not isinstance(space, str):
        raise TypeError(f"get_space: space must be a name or a Space, got {type(space).__name__}")
    if space not in SPACES:
        raise ValueError(f"get_space: space must be one of {', '.join(SPACES)}, got {space!r}")
    return SPACES[space]

# SPDX-License-Identifier: Apache-2.0
"""Genotypes: the architecture that a DARTS search finds, parsed from weights and printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Genotype(NamedTuple):
    """Two cells. Entries 2i and 2i+1 of a cell are the two inputs of node i + 2.

    Every entry is ``(operation, state)``; ``*_concat`` names the states that form the cell's
    output. ``repr`` prints a genotype as the original code does.
    """

    normal: list[tuple[str, int]]
    normal_concat: Sequence[int]
    reduce: list[tuple[str, int]]
    reduce_concat: Sequence[int]


def strongest_ops(
    rows: Sequence[Sequence[float]], primitives: Sequence[Sequence[str]]
) -> tuple[str, ...]:
    """The operation with the largest weight on every edge, ``none`` included, ties to the first."""
    return tuple(
        names[max(range(len(names)), key=row.__getitem__)]
        for row, names in zip(rows, primitives, strict=True)
    )


def parse_cell(
    rows: Sequence[Sequence[float]], primitives: Sequence[Sequence[str]], keep: int = 2
) -> list[tuple[str, int]]:
    """One cell of a genotype from its weights, by the rule of DARTS (section 2.4).

    Per node the ``keep`` edges with the largest weight among the operations other than ``none``,
    strongest first, ties to the lower edge; per edge the strongest such operation, ties to the
    lower index. A row that is one-hot on ``none`` therefore scores 0 and, if it is kept, prints the
    first operation other than ``none`` (on S3: ``skip_connect``), as in the original code.

    Args:
        rows: weights ``[edges][ops]``, edges node by node: 2 for the first node, then 3, 4, ...
        primitives: operation names of every edge.
        keep: edges a node keeps.

    Raises:
        ValueError: the edges do not fill whole nodes, or an edge offers only ``none``.
    """
    best: list[int] = []
    for edge, names in enumerate(primitives):
        real = [index for index, name in enumerate(names) if name != "none"]
        if not real:
            raise ValueError(
                f"parse_cell: every edge needs an operation other than none, "
                f"got {list(names)} on edge {edge}"
            )
        best.append(max(real, key=rows[edge].__getitem__))

    cell: list[tuple[str, int]] = []
    start, inputs = 0, 2
    while start < len(primitives):
        if start + inputs > len(primitives):
            raise ValueError(
                f"parse_cell: edges must fill whole nodes (2, 5, 9, 14, ...), got {len(primitives)}"
            )
        # sorted() is stable, so equal scores keep the order of the edges.
        by_strength = sorted(range(inputs), key=lambda j: -rows[start + j][best[start + j]])
        cell += [(primitives[start + j][best[start + j]], j) for j in by_strength[:keep]]
        start, inputs = start + inputs, inputs + 1
    return cell


def write_genotype(genotype: Genotype) -> str:
    """The genotype as one line, exactly as the original code prints it.

    ``Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], ...)``;
    `read_genotype` reads it back.
    """
    return repr(genotype)


def skip_connections(genotype: Genotype | str) -> int:
    """How many of an architecture's operations are skip connections, both cells counted."""
    if isinstance(genotype, str):
        return genotype.count("skip_connect~")
    return sum(op == "skip_connect" for op, _ in (*genotype.normal, *genotype.reduce))

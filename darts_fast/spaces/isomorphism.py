# SPDX-License-Identifier: Apache-2.0
"""When two NAS-Bench-201 cells are the same computation: a canonical form.

``none`` edges and whatever depends only on them are removed, ``skip_connect`` edges are contracted
(a node takes its source's summands), results that never reach the output are dropped. What is left
is a graph of operation instances; two cells have equal forms exactly if a renaming of the instances
turns one graph into the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from darts_fast.spaces.nasbench201 import ops_from_arch
from darts_fast.spaces.tables import NASBENCH201_PRIMITIVES

CanonicalForm = tuple[tuple[tuple[str, tuple[int, ...]], ...], tuple[int, ...]]

# The cell's input as a summand; operation instances are numbered from 0.
_INPUT = -1


def _instances(
    ops: Sequence[str],
) -> tuple[dict[int, tuple[str, tuple[int, ...]]], tuple[int, ...]]:
    """Operation instances by edge, each with the summands it reads, and the output's summands."""
    node_terms: list[tuple[int, ...]] = [(_INPUT,)]
    instances: dict[int, tuple[str, tuple[int, ...]]] = {}
    edge = 0
    while edge < len(ops):
        terms: list[int] = []
        for source_terms in node_terms:
            op = ops[edge]
            if op == "skip_connect":
                terms += source_terms
            elif op != "none" and source_terms:
                instances[edge] = (op, source_terms)
                terms.append(edge)
            edge += 1
        node_terms.append(tuple(terms))
    return instances, node_terms[-1]


def canonical_form(arch: str | Sequence[str]) -> CanonicalForm:
    """The computation of a cell, equal for isomorphic cells and only for them.

    Args:
        arch: an architecture string, or the operations of a complete cell in edge order (3 for
            three nodes, 6 for four, ...).

    Returns:
        ``(instances, output)``: every instance as ``(operation, summands)``; summands are -1 for
        the cell's input or the index of an instance, sorted; so is ``output``. A cell that carries
        no signal gives ``((), ())``.

    Raises:
        ValueError: the operations do not fill a complete cell, or one is unknown.
    """
    ops = ops_from_arch(arch) if isinstance(arch, str) else tuple(arch)
    nodes = 1
    while nodes * (nodes + 1) // 2 < len(ops):
        nodes += 1
    unknown = sorted({op for op in ops if op not in NASBENCH201_PRIMITIVES})
    if unknown or nodes * (nodes + 1) // 2 != len(ops):
        raise ValueError(
            "canonical_form: a complete cell has 1, 3, 6, ... operations out of "
            f"{', '.join(NASBENCH201_PRIMITIVES)}, got {list(ops)}"
        )
    instances, output = _instances(ops)

    # The expression tree of an instance does not depend on its number, so only instances with
    # equal trees can change places; a tree is deeper than those it contains, hence the order.
    trees: dict[int, Any] = {}
    depth: dict[int, int] = {_INPUT: 0}
    for edge, (op, terms) in instances.items():
        depth[edge] = 1 + max(depth[term] for term in terms)
        trees[edge] = (op, tuple(sorted((depth[t], repr(trees.get(t))) for t in terms)))
    live: set[int] = set()
    pending = list(output)
    while pending:
        term = pending.pop()
        if term != _INPUT and term not in live:
            live.add(term)
            pending += instances[term][1]
    ordered = sorted(live, key=lambda edge: (depth[edge], repr(trees[edge])))
    groups = [
        list(group)
        for _, group in itertools.groupby(ordered, key=lambda e: (depth[e], repr(trees[e])))
    ]

    def encode(order: Iterable[int]) -> CanonicalForm:
        number = {_INPUT: _INPUT} | {edge: index for index, edge in enumerate(order)}
        return (
            tuple(
                (instances[edge][0], tuple(sorted(number[term] for term in instances[edge][1])))
                for edge in number
                if edge != _INPUT
            ),
            tuple(sorted(number[term] for term in output)),
        )

    return min(
        encode(itertools.chain.from_iterable(choice))
        for choice in itertools.product(*(itertools.permutations(group) for group in groups))
    )

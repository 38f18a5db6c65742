# SPDX-License-Identifier: Apache-2.0
"""What looks like a mixed operation or a cell, by its children and not by its class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from darts_fast.nn.plan import Parts, describe

MIXED_OPERATION, CELL, NASBENCH201_CELL = "mixed operation", "cell", "NAS-Bench-201 cell"

_PREPROCESS_KINDS = ("dense", "factorized_reduce")
# The parts of the channels that code bases with partial channels compute.
_USUAL_PARTS = (4, 2, 8)


class NotTheSameError(Exception):
    """Why a native form may not replace a module's own method."""


@dataclass(frozen=True)
class Edge:
    """States are numbered, first the inputs, then the nodes."""

    source: int
    node: int
    ops: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Structure:
    """What a method ``(*maps, weights)`` of a module is taken to compute, for a proof to confirm.

    A mixed operation is one edge from state 0 to state 1, ``sum(w * op(x))``; a cell the directed
    acyclic graph of such edges over its inputs.
    """

    kind: str
    method: str
    """Name of the method that computes it."""
    edges: tuple[Edge, ...]
    preprocess: tuple[str, ...] = ()
    """Names of the children that the two maps of a cell pass first."""
    multiplier: int = 1
    """The last so many nodes are the output, concatenated."""
    parts: int = 1
    """Operations see the first 1/parts of the channels; the rest passes by, and all are shuffled
    (PC-DARTS, arXiv 1907.05737, section 3.1)."""
    pool: str = ""
    """Name of the child that halves the rest where the operations have stride 2."""

    @property
    def inputs(self) -> int:
        return len(self.preprocess) or 1

    @property
    def nodes(self) -> int:
        return max(edge.node for edge in self.edges) - self.inputs + 1

    @property
    def ops(self) -> list[nn.Module]:
        """All candidate operations, in the order of the weights."""
        return [op for edge in self.edges for op in edge.ops]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights: [edges, ops], or [ops] of a mixed operation."""
        width = len(self.edges[0].ops)
        return (width,) if self.kind == MIXED_OPERATION else (len(self.edges), width)

    @property
    def first_weights(self) -> int:
        """Position of the weights among the arguments of the method."""
        return self.inputs


def read(module: nn.Module) -> Structure | None:
    """The structure that a module's children suggest, or None."""
    return _nasbench201_cell(module) or _cell(module) or _mixed_operation(module)


def variants(module: nn.Module, structure: Structure) -> Iterator[Structure]:
    """What else the same children may mean, likeliest first, `structure` included."""
    methods = [
        name
        for name in ("forward", "apply_weights")
        if len(_positional(getattr(type(module), name, None))) > structure.inputs
    ]
    for method in methods:
        yield replace(structure, method=method)
    pool = next((name for name, part in module.named_children() if _is_halving(part)), None)
    if structure.kind != MIXED_OPERATION or pool is None or "forward" not in methods:
        return
    own = (value for value in vars(module).values() if type(value) is int and value > 1)
    for parts in dict.fromkeys((*own, *_USUAL_PARTS)):
        yield replace(structure, method="forward", parts=parts, pool=pool)


def as_in(module: nn.Module, method: str, parts: int, pool: str) -> Structure:
    """The structure of a module that has one, with what was found of a module like it."""
    found = read(module)
    assert found is not None
    return replace(found, method=method, parts=parts, pool=pool)


def describe_by_structure(op: nn.Module) -> Parts | None:
    return describe(op, by_structure=True)


def _positional(function: Any) -> list[str]:
    """Names of the positional parameters behind `self`."""
    if function is None:
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _is_halving(module: nn.Module) -> bool:
    return type(module) is nn.MaxPool2d and (module.kernel_size, module.stride) in (
        (2, 2),
        ((2, 2), (2, 2)),
    )


def _candidates(module: nn.Module) -> tuple[nn.Module, ...] | None:
    """The operations of what may be a mixed operation: a ModuleList, or children name-0, name-1."""
    lists = [list(part) for part in module.children() if isinstance(part, nn.ModuleList)]
    found = [items for items in lists if items]
    if not found:
        numbered: dict[str, list[nn.Module]] = {}
        for name, part in module.named_children():
            match = re.fullmatch(r"(.*\D)(\d+)", name)
            items = numbered.setdefault(match[1], []) if match else []
            if match and int(match[2]) == len(items):
                items.append(part)
        found = [items for items in numbered.values() if items]
    # With one candidate there would be no weight of 0 to learn the rule from.
    return tuple(found[0]) if len(found) == 1 and len(found[0]) > 1 else None


def _mixed_operation(module: nn.Module) -> Structure | None:
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return None
    ops = _candidates(module)
    if ops is None or all(_candidates(op) for op in ops):
        return None
    return Structure(MIXED_OPERATION, "forward", (Edge(0, 1, ops),))


def _cell(module: nn.Module) -> Structure | None:
    """Two preprocessing children and a list of mixed operations, one per pair of states."""
    preprocess = tuple(
        name
        for name, part in module.named_children()
        if (parts := describe_by_structure(part)) is not None and parts.kind in _PREPROCESS_KINDS
    )
    lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part)]
    if len(preprocess) != 2 or len(lists) != 1:
        return None
    pairs = _pairs(len(lists[0]))
    candidates = [_candidates(part) for part in lists[0]]
    widths = {len(ops) if ops else 0 for ops in candidates}
    if pairs is None or len(widths) != 1 or 0 in widths:
        return None
    nodes = pairs[-1][1] - 1
    multiplier = vars(module).get("_multiplier", nodes)
    if type(multiplier) is not int or not 1 <= multiplier <= nodes:
        return None
    edges = tuple(
        Edge(source, node, ops)
        for (source, node), ops in zip(pairs, candidates, strict=True)
        if ops is not None
    )
    return Structure(CELL, "forward", edges, preprocess, multiplier)


def _pairs(edges: int) -> list[tuple[int, int]] | None:
    """(source, node) of so many edges, every node reading all earlier states; None if none fit."""
    pairs: list[tuple[int, int]] = []
    node = 2
    while len(pairs) < edges:
        pairs += [(state, node) for state in range(node)]
        node += 1
    return pairs if len(pairs) == edges else None


def _nasbench201_cell(module: nn.Module) -> Structure | None:
    """A ModuleDict of lists of operations, their keys ``node<-source``."""
    for table in module.children():
        if not isinstance(table, nn.ModuleDict):
            continue
        names = sorted(table)
        if not names or not all(re.fullmatch(r"\d+<-\d+", name) for name in names):
            continue
        if not all(isinstance(table[name], nn.ModuleList) for name in names):
            continue
        lists = [tuple(table[name].children()) for name in names]
        if {len(ops) for ops in lists} != {len(lists[0])} or len(lists[0]) < 2:
            continue
        ends = [[int(end) for end in name.split("<-")] for name in names]
        edges = tuple(
            Edge(source, node, ops) for (node, source), ops in zip(ends, lists, strict=True)
        )
        return Structure(NASBENCH201_CELL, "forward", edges)
    return None

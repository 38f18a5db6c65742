# SPDX-License-Identifier: Apache-2.0
"""A cell of which some states are shared by all tables.

An edge that leaves a shared state with a row of weights that no table changes is computed once; its
sum enters a grouped node as one more summand. Of an edge that leaves a shared state with a changed
row the operations are computed once, each a map of its own that every table multiplies by its own
weight. Which edges those are follows from the rows that differ from the network's own weights,
never from how many tables are evaluated together: sums are always associated in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.selection.engine.states import State, Weights
from darts_fast.selection.engine.terms import COPY, ONE, Operations, Term, run_terms

# With more changed edges that leave shared states, their maps would need more memory than a
# forward does: then they are computed per table.
MOST_EDGES_ONCE = 2

# Of an input of a call: a state of the cell, or what it stands for and a node or an operation.
Key = int | tuple[str, int]


@dataclass(frozen=True)
class Shared:
    """What all tables share of a cell.

    Attributes:
        sums: by node the sum of its shared terms [N, C, H', W']; of a shared node, the node.
        maps: by operation the map that it gives before its weight [N, C, H', W'].
    """

    sums: Mapping[int, Tensor]
    maps: Mapping[int, Tensor]


class SplitCell:
    """A cell of which some inputs are shared.

    The shared part is one call for N images; the grouped part is a second call (a third where the
    inputs have another size than the nodes), which reads the shared maps as they are.

    Args: used, by operation whether any table has a weight for it.
    """

    def __init__(
        self,
        operations: Operations,
        skip: bool,
        inputs: Sequence[State],
        table: Weights,
        reference: Weights,
        changed: frozenset[int],
        used: Sequence[bool],
    ) -> None:
        self.operations = operations
        self.plan = operations.plan
        self.skip = skip
        self.inputs = inputs
        self.weights = table
        self.reference = reference
        self.groups = len(table)
        self.first = self.plan.inputs  # the first node's state
        self.nodes = range(self.first, self.first + self.plan.nodes)
        self.outputs = self.nodes[-self.plan.multiplier :]
        self.shared_terms: list[Term] = []
        self.grouped_terms: list[Term] = []
        # Their operations give one map for all tables, which enters a grouped node.
        self.map_terms: list[Term] = []
        width = table.values.shape[2]
        own = {k for k in range(self.plan.width) if k // width in changed}
        terms = self._terms(own)
        self.grouped = self._grouped(terms, own)
        leaving = {term.op // width for term in terms if term.op in own and self._leaves(term)}
        once = len(leaving) <= MOST_EDGES_ONCE
        for term in terms:
            if term.op in operations.drawn or (once and term.op in own and self._leaves(term)):
                if used[term.op] or not skip:
                    self.map_terms.append(term)
            elif term.op in own or self.grouped[term.source]:
                self.grouped_terms.append(term)
            else:
                self.shared_terms.append(term)

    def _terms(self, own: set[int]) -> list[Term]:
        """What adds something to some node, node after node. Args: own, operations whose weight
        differs between tables."""
        computed = self.reference.nonzero()[0].tolist() if self.skip else [True] * self.plan.width
        return [
            term
            for term in sorted(self.operations.whole(), key=lambda term: term.node)
            if not self.operations.adds_nothing(term.op) and (term.op in own or computed[term.op])
        ]

    def _grouped(self, terms: Sequence[Term], own: set[int]) -> list[bool]:
        """Of every state whether it differs between tables."""
        inputs = [state.grouped for state in self.inputs]
        grouped = inputs + [all(inputs)] * self.plan.nodes
        for term in terms:
            if term.op in own or term.op in self.operations.drawn or grouped[term.source]:
                grouped[term.node] = True
        return grouped

    def _leaves(self, term: Term) -> bool:
        """Whether it reads a state that all tables share."""
        return not self.grouped[term.source] and term.op not in self.operations.drawn

    def shared(self) -> Shared:
        """The part that is computed once."""
        having = {term.node for term in self.shared_terms}
        nodes = [node for node in self.nodes if node in having or not self.grouped[node]]
        drawn = [term for term in self.map_terms if term.op in self.operations.drawn]
        maps = {term.op: self._drawn(term) for term in drawn}
        single = [
            term
            for term in self.map_terms
            if term.op not in maps and not self.operations.is_identity(term.op)
        ]
        if not self.shared_terms and not single:
            return Shared({node: self._zeros(1) for node in nodes}, maps)
        inputs = [i for i, state in enumerate(self.inputs) if not state.grouped]
        place = {state: i for i, state in enumerate((*inputs, *nodes))}
        terms = [Term(place[t.source], place[t.node], t.op, t.op) for t in self.shared_terms]
        terms += [Term(place[t.source], len(place) + i, t.op, ONE) for i, t in enumerate(single)]
        count = len(nodes) + len(single)
        together = run_terms(
            *(self.operations, terms, [self.inputs[i].maps for i in inputs], self.reference),
            skip=self.skip,
            nodes=count,
            multiplier=count,
            stride=self.plan.stride,
        )
        # Every chunk of tables reads them.
        found = [
            x.contiguous(memory_format=torch.channels_last) for x in together.chunk(count, dim=1)
        ]
        maps.update((term.op, x) for term, x in zip(single, found[len(nodes) :], strict=True))
        return Shared(dict(zip(nodes, found, strict=False)), maps)

    def run(self, shared: Shared) -> State:
        """The cell's output."""
        if not any(self.grouped[node] for node in self.outputs):
            return State(torch.cat([shared.sums[node] for node in self.outputs], dim=1), False)
        plan = self.plan
        call = _Call(self)
        for node in self.nodes:
            if node in shared.sums and (self.grouped[node] or node in self.outputs):
                call.add(("sum", node), State(shared.sums[node], False), node, COPY, ONE)
        for term in self.map_terms:
            key, state = self._source(term, shared)  # of an identity
            if term.op in shared.maps:
                key, state = ("map", term.op), State(shared.maps[term.op], False)
            call.add(key, state, term.node, COPY, term.op)
        terms = self.grouped_terms
        if plan.stride != 1:
            for node, maps in self._from_inputs().items():
                call.add(("inputs", node), State(maps, True), node, COPY, ONE)
            terms = [term for term in terms if term.source >= self.first]
        for term in terms:
            call.add(*self._source(term, shared), term.node, term.op, term.op)
        nodes = [node for node in self.nodes if self.grouped[node] or node in self.outputs]
        if not call.terms:
            return State(self._zeros(self.groups).repeat(1, plan.multiplier, 1, 1), True)
        return State(call.run(nodes, plan.multiplier, 1), True)

    def _source(self, term: Term, shared: Shared) -> tuple[Key, State | None]:
        """What a term reads; None for a node that differs between tables."""
        source = term.source
        if source < self.first:
            return source, self.inputs[source]
        if self.grouped[source]:
            return source, None
        return ("sum", source), State(shared.sums[source], False)

    def _from_inputs(self) -> dict[int, Tensor]:
        """By node the sum of its grouped terms that leave an input [G * N, C, H', W']."""
        terms = [term for term in self.grouped_terms if term.source < self.first]
        if not terms:
            return {}
        call = _Call(self)
        for term in terms:
            call.add(term.source, self.inputs[term.source], term.node, term.op, term.op)
        nodes = sorted({term.node for term in terms})
        maps = call.run(nodes, len(nodes), self.plan.stride)
        return dict(zip(nodes, maps.chunk(len(nodes), dim=1), strict=True))

    def _drawn(self, term: Term) -> Tensor:
        """The output [N, C, H', W'] of an operation that draws it, one for all groups."""
        like = self._zeros(1) if term.source >= self.first else self.inputs[0].of(0, self.groups)
        maps: Tensor = self.operations.drawn[term.op](like.new_empty(1).expand(like.shape))
        return maps.contiguous(memory_format=torch.channels_last)

    def _zeros(self, groups: int) -> Tensor:
        """The node [groups * N, C, H', W'] that nothing enters."""
        maps, stride = self.inputs[0].of(0, self.groups), self.plan.stride
        n, c, h, w = maps.shape
        return maps.new_zeros(groups * n, c, -(-h // stride), -(-w // stride))


class _Call:
    """A call for all groups, whose inputs are named by keys until it is known how many there are.

    Shared inputs come first, as `functional.mixed_cell` wants them.
    """

    def __init__(self, cell: SplitCell) -> None:
        self.cell = cell
        self.shared: dict[Key, Tensor] = {}
        self.grouped: dict[Key, Tensor] = {}
        self.terms: list[tuple[Key, int, int, int]] = []

    def add(self, key: Key, state: State | None, node: int, op: int, weight: int) -> None:
        """One summand of a node. Args: state, None if the key is a node of the call."""
        if state is not None:
            (self.grouped if state.grouped else self.shared)[key] = state.maps
        self.terms.append((key, node, op, weight))

    def run(self, nodes: Sequence[int], multiplier: int, stride: int) -> Tensor:
        """The last `multiplier` of the nodes [G * N, multiplier * C, H', W']."""
        inputs = {**self.shared, **self.grouped}
        place = {key: i for i, key in enumerate((*inputs, *nodes))}
        return run_terms(
            self.cell.operations,
            [Term(place[key], place[node], op, weight) for key, node, op, weight in self.terms],
            list(inputs.values()),
            self.cell.weights,
            skip=self.cell.skip,
            nodes=len(nodes),
            multiplier=multiplier,
            stride=stride,
            shared=len(self.shared),
        )

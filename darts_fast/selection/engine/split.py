# SPDX-License-Identifier: Apache-2.0
"""A cell of which some states are shared by all tables.

An edge that leaves a shared state with a row of weights that no table changes is computed once; its
sum enters a grouped node as one more summand. Which edges those are follows from the rows that
differ from the network's own weights, never from how many tables are evaluated together: sums are
always associated in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from darts_fast.selection.engine.states import State
from darts_fast.selection.engine.terms import COPY, Operations, Term, run_terms


class SplitCell:
    """A cell of which some inputs are shared.

    The shared part is one call for N images, whose nodes are the shared nodes and the shared
    summands of the grouped ones; the grouped part is a second call (a third where the inputs have
    another size than the nodes).
    """

    def __init__(
        self,
        operations: Operations,
        skip: bool,
        inputs: Sequence[State],
        table: Tensor,
        reference: Tensor,
        changed: frozenset[int],
    ) -> None:
        self.operations = operations
        self.plan = operations.plan
        self.skip = skip
        self.inputs = inputs
        self.weights = table.flatten(1)
        self.reference = reference.reshape(1, -1)
        self.groups = table.shape[0]
        self.first = self.plan.inputs  # the first node's state
        self.states = range(self.plan.inputs + self.plan.nodes)
        self.grouped = [state.grouped for state in inputs] + [False] * self.plan.nodes
        self.shared_terms: list[Term] = []
        self.grouped_terms: list[Term] = []
        width = table.shape[2]
        values = self.reference[0].tolist()
        for term in sorted(operations.whole(), key=lambda term: term.node):
            if term.op // width in changed or (term.op in operations.drawn):
                own = True
            else:
                own = self.grouped[term.source]
            if term.op // width not in changed and skip and values[term.op] == 0.0:
                continue
            self.grouped[term.node] = self.grouped[term.node] or own
            (self.grouped_terms if own else self.shared_terms).append(term)

    def run(self, shared: Mapping[int, Tensor]) -> State:
        """The cell's output. Args: shared, what `shared_nodes` gave."""
        plan = self.plan
        outputs = self.states[-plan.multiplier :]
        if not any(self.grouped[state] for state in outputs):
            return State(torch.cat([shared[state] for state in outputs], dim=1), False)
        return State(self._grouped_nodes(shared, outputs), True)

    def _call(
        self,
        terms: Sequence[Term],
        inputs: Sequence[Tensor],
        weights: Tensor,
        *,
        nodes: int,
        stride: int = 1,
        multiplier: int | None = None,
    ) -> Tensor:
        return run_terms(
            self.operations,
            terms,
            inputs,
            weights,
            skip=self.skip,
            nodes=nodes,
            multiplier=nodes if multiplier is None else multiplier,
            stride=stride,
        )

    def shared_nodes(self) -> dict[int, Tensor]:
        """By node the sum of its shared terms [N, C, H', W']; of a shared node, the node."""
        present = [i for i, state in enumerate(self.inputs) if not state.grouped]
        if not self.shared_terms:
            return self._zeros()
        place = {state: i for i, state in enumerate((*present, *self.states[self.first :]))}
        terms = [Term(place[t.source], place[t.node], t.op) for t in self.shared_terms]
        maps = self._call(
            terms,
            [self.inputs[i].maps for i in present],
            self.reference,
            nodes=self.plan.nodes,
            stride=self.plan.stride,
        ).chunk(self.plan.nodes, dim=1)
        having = {term.node for term in self.shared_terms}
        return {
            state: nodes
            for state, nodes in zip(self.states[self.first :], maps, strict=True)
            if state in having or not self.grouped[state]
        }

    def _zeros(self) -> dict[int, Tensor]:
        """Shared nodes that nothing enters."""
        maps = self.inputs[0].of(0, self.groups)
        stride = self.plan.stride
        n, c, h, w = maps.shape
        zeros = maps.new_zeros(n, c, -(-h // stride), -(-w // stride))
        return {state: zeros for state in self.states[self.first :] if not self.grouped[state]}

    def _grouped_nodes(self, shared: Mapping[int, Tensor], outputs: Sequence[int]) -> Tensor:
        plan = self.plan
        nodes = [state for state in self.states[self.first :] if self.grouped[state]]
        inputs: list[State] = []  # of the call
        places: dict[int, int] = {}  # of the cell's states among them
        sums: list[Term] = []  # inputs of the call that enter a node as they are
        terms = [term for term in self.grouped_terms if term.op not in self.operations.drawn]
        if plan.stride != 1:
            terms = [term for term in terms if term.source >= self.first]
            for node, maps in self._from_inputs().items():
                sums.append(Term(len(inputs), node, COPY))
                inputs.append(State(maps, True))
        for node in nodes:
            if node in shared:
                sums.append(Term(len(inputs), node, COPY))
                inputs.append(State(shared[node], False))
        for term in self.grouped_terms:
            if term.op in self.operations.drawn:
                sums.append(Term(len(inputs), term.node, term.op))
                inputs.append(State(self._drawn(term.op, term.source), False))
        for source in sorted({term.source for term in terms}):
            if source < self.first or not self.grouped[source]:
                places[source] = len(inputs)
                inputs.append(
                    self.inputs[source] if source < self.first else State(shared[source], False)
                )
        for node in nodes:
            places[node] = len(inputs) + nodes.index(node)
        whole = all(self.grouped[state] for state in outputs)
        maps = self._call(
            [
                *(Term(t.source, places[t.node], t.op) for t in sums),
                *(Term(places[t.source], places[t.node], t.op) for t in terms),
            ],
            [state.stacked(self.groups) for state in inputs],
            self.weights,
            nodes=len(nodes),
            multiplier=plan.multiplier if whole else None,
        )
        if whole:
            return maps
        found = dict(zip(nodes, maps.chunk(len(nodes), dim=1), strict=True))
        parts = [
            State(found[state], True) if state in found else State(shared[state], False)
            for state in outputs
        ]
        return torch.cat([part.stacked(self.groups) for part in parts], dim=1)

    def _drawn(self, op: int, source: int) -> Tensor:
        """The output [N, C, H', W'] of an operation that draws it, one for all groups."""
        n, c, h, w = self.inputs[0].of(0, self.groups).shape
        if source >= self.first:  # the size of a node
            h, w = (-(-length // self.plan.stride) for length in (h, w))
        maps: Tensor = self.operations.drawn[op](self.weights.new_empty(1).expand(n, c, h, w))
        return maps

    def _from_inputs(self) -> dict[int, Tensor]:
        """By node the sum of its grouped terms that leave an input [G * N, C, H', W']."""
        drawn = self.operations.drawn
        terms = [t for t in self.grouped_terms if t.source < self.first and t.op not in drawn]
        if not terms:
            return {}
        sources = sorted({term.source for term in terms})
        nodes = sorted({term.node for term in terms})
        maps = self._call(
            [
                Term(sources.index(t.source), len(sources) + nodes.index(t.node), t.op)
                for t in terms
            ],
            [self.inputs[source].stacked(self.groups) for source in sources],
            self.weights,
            nodes=len(nodes),
            stride=self.plan.stride,
        )
        return dict(zip(nodes, maps.chunk(len(nodes), dim=1), strict=True))

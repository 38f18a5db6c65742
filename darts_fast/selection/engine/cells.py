# SPDX-License-Identifier: Apache-2.0
"""One cell under many tables: what no table changes is computed once (design 5).

A state is shared (N images, equal under all tables) or grouped (G * N images, stacked). In a cell
an edge that leaves a shared state with a row of weights that no table changes is computed once; its
sum enters a grouped node as one more summand. Which edges those are follows from the rows that
differ from the network's own weights, never from how many tables are evaluated together: sums are
always associated in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from darts_fast.functional import Norm, relu_conv_norm
from darts_fast.nn.blocks import norm_kind
from darts_fast.nn.cell import Cell
from darts_fast.nn.fused_cell import native_plan, run_preprocess
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.plan import CellPlan, describe, has_hooks
from darts_fast.selection.engine.terms import COPY, Operations, Term, run_terms

SearchCell = Cell | NAS201SearchCell
_T = TypeVar("_T")


@dataclass(frozen=True)
class State:
    """Maps [N, C, H, W] that all groups share, or [G * N, C, H, W] of all groups in order."""

    maps: Tensor
    grouped: bool

    def of(self, group: int, groups: int) -> Tensor:
        """The N images of one group."""
        if not self.grouped:
            return self.maps
        size = self.maps.shape[0] // groups
        return self.maps[group * size : (group + 1) * size]

    def stacked(self, groups: int) -> Tensor:
        """The maps of all groups."""
        if self.grouped:
            return self.maps
        n, *shape = self.maps.shape
        out = torch.empty(
            (groups * n, *shape),
            dtype=self.maps.dtype,
            device=self.maps.device,
            memory_format=torch.channels_last,
        )
        out.unflatten(0, (groups, n)).copy_(self.maps)
        return out


@dataclass(frozen=True)
class Variants:
    """G tables that change the same rows.

    Attributes:
        weights: by cell type [G, edges, ops].
        reference: by cell type the network's own [edges, ops].
        changed: by cell type the edges whose row is another one in some table.
        kept: what is shared by all tables that change these rows, also those of other chunks.
    """

    groups: int
    weights: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]
    changed: Mapping[str, frozenset[int]]
    kept: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, compute: Callable[[], _T]) -> _T:
        """The value of a key, computed if it is not there yet."""
        if key not in self.kept:
            self.kept[key] = compute()
        return cast(_T, self.kept[key])


def run_search_cell(
    cell: SearchCell, cell_type: str, states: Sequence[State], variants: Variants
) -> State:
    """The output of a search cell for its inputs (two of a `Cell`, one of NAS-Bench-201)."""
    groups = variants.groups
    changed = variants.changed[cell_type]
    if not changed and not any(state.grouped for state in states):
        maps = [state.maps for state in states]
        return State(cast(Tensor, cell(*maps, variants.reference[cell_type])), False)
    table = variants.weights[cell_type]
    root = cell.edges if isinstance(cell, NAS201SearchCell) else cell._ops
    # The last input has the size of the cell's states.
    plan = native_plan(cell, root, cell._plan, states[-1].maps, table)
    if plan is None:
        outputs = [
            cast(Tensor, cell(*(state.of(g, groups) for state in states), table[g]))
            for g in range(groups)
        ]
        return State(torch.cat(outputs), True)
    if isinstance(cell, Cell):
        modules = (cell.preprocess0, cell.preprocess1)
        states = [
            preprocess(module, state, groups)
            if state.grouped
            else variants.once(module, functools.partial(preprocess, module, state, 1))
            for module, state in zip(modules, states, strict=True)
        ]
    skip = cell.zero == "skip"
    if not all(state.grouped for state in states):
        split = _SplitCell(plan, skip, states, table, variants.reference[cell_type], changed)
        return split.run(variants.once(cell, split.shared_nodes))
    operations = Operations(plan)
    output = run_terms(
        operations,
        operations.whole(),
        [state.maps for state in states],
        table.flatten(1),
        skip=skip,
        nodes=plan.nodes,
        multiplier=plan.multiplier,
        stride=plan.stride,
    )
    return State(output, True)


def preprocess(module: nn.Module, state: State, groups: int) -> State:
    """`run_preprocess` per group."""
    if not state.grouped:
        return State(run_preprocess(module, state.maps), False)
    parts = describe(module)
    if (
        parts is None
        or parts.kind not in ("dense", "factorized_reduce")
        or any(has_hooks(part) for part in module.modules())
    ):
        return per_group(module, state, groups)
    norm = cast(nn.BatchNorm2d, parts.norms[0])
    kind = norm_kind(norm)
    running = kind == "running"
    out = relu_conv_norm(
        state.maps,
        [conv.weight for conv in parts.convolutions],
        Norm(
            kind,
            norm.eps,
            norm.weight if norm.affine else None,
            norm.bias if norm.affine else None,
            norm.running_mean if running else None,
            norm.running_var if running else None,
        ),
        stride=parts.stride,
        groups=groups,
    )
    return State(out.output, True)


def per_group(module: nn.Module, state: State, groups: int) -> State:
    """A module that sees the images of one group at a time."""
    if not state.grouped:
        return State(module(state.maps), False)
    return State(torch.cat([module(state.of(g, groups)) for g in range(groups)]), True)


class _SplitCell:
    """A cell of which some inputs are shared.

    The shared part is one call for N images, whose nodes are the shared nodes and the shared
    summands of the grouped ones; the grouped part is a second call (a third where the inputs have
    another size than the nodes).
    """

    def __init__(
        self,
        plan: CellPlan,
        skip: bool,
        inputs: Sequence[State],
        table: Tensor,
        reference: Tensor,
        changed: frozenset[int],
    ) -> None:
        self.plan = plan
        self.operations = Operations(plan)
        self.skip = skip
        self.inputs = inputs
        self.weights = table.flatten(1)
        self.reference = reference.reshape(1, -1)
        self.groups = table.shape[0]
        self.first = plan.inputs  # the first node's state
        self.states = range(plan.inputs + plan.nodes)
        self.grouped = [state.grouped for state in inputs] + [False] * plan.nodes
        self.shared_terms: list[Term] = []
        self.grouped_terms: list[Term] = []
        width = table.shape[2]
        values = self.reference[0].tolist()
        for term in sorted(self.operations.whole(), key=lambda term: term.node):
            if term.op // width in changed:
                own = True
            elif skip and values[term.op] == 0.0:
                continue
            else:
                own = self.grouped[term.source]
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
        sums: list[tuple[int, int]] = []  # (input of the call, node) that enter as they are
        terms = self.grouped_terms
        if plan.stride != 1:
            terms = [term for term in terms if term.source >= self.first]
            for node, maps in self._from_inputs().items():
                sums.append((len(inputs), node))
                inputs.append(State(maps, True))
        for node in nodes:
            if node in shared:
                sums.append((len(inputs), node))
                inputs.append(State(shared[node], False))
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
                *(Term(source, places[node], COPY) for source, node in sums),
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

    def _from_inputs(self) -> dict[int, Tensor]:
        """By node the sum of its grouped terms that leave an input [G * N, C, H', W']."""
        terms = [term for term in self.grouped_terms if term.source < self.first]
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

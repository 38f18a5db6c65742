# SPDX-License-Identifier: Apache-2.0
"""One cell under many tables: what no table changes is computed once (design 5).

A state is shared (N images, equal under all tables) or grouped (G * N images, stacked); how much of
a cell is computed once is decided in `split`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast.nn.cell import Cell
from darts_fast.nn.fused_cell import native_preprocess, run_preprocess, runs_native
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.operations import Noise, Zero
from darts_fast.nn.plan import current_plan, plan_cell
from darts_fast.selection.engine.restore import kept_buffers
from darts_fast.selection.engine.split import SplitCell
from darts_fast.selection.engine.states import State, Variants
from darts_fast.selection.engine.terms import Operations, run_terms

SearchCell = Cell | NAS201SearchCell


def run_search_cell(
    cell: SearchCell,
    operations: Operations | None,
    cell_type: str,
    states: Sequence[State],
    variants: Variants,
) -> State:
    """The output of a search cell for its inputs (two of a `Cell`, one of NAS-Bench-201).

    Args: operations, what `find_operations` says of the cell.
    """
    groups = variants.groups
    changed = variants.changed[cell_type]
    alone = not changed and not any(state.grouped for state in states)
    table = (variants.reference if alone else variants.weights)[cell_type]
    # The last input has the size of the cell's states.
    x = states[-1].maps
    if (
        operations is None
        or (alone and operations.drawn)
        or not runs_native(x, table.values)
        or not operations.plan.takes(x)
    ):
        # Where operations have native forms nobody else puts their statistics back.
        with kept_buffers(() if operations is None else cell.modules()):
            outputs = [
                cast(Tensor, cell(*(state.of(g, groups) for state in states), weights))
                for g, weights in enumerate(table.values)
            ]
        return State(outputs[0] if alone else torch.cat(outputs), not alone)
    if isinstance(cell, Cell):
        modules = (cell.preprocess0, cell.preprocess1)
        states = [
            preprocess(module, state, groups)
            if alone or state.grouped
            else variants.once(module, functools.partial(preprocess, module, state, 1))
            for module, state in zip(modules, states, strict=True)
        ]
    skip = cell.zero == "skip"
    if not alone and (operations.drawn or not all(state.grouped for state in states)):
        reference, used = variants.reference[cell_type], variants.used[cell_type]
        split = SplitCell(operations, skip, states, table, reference, changed, used)
        return split.run(variants.once(cell, split.shared))
    output = run_terms(
        operations,
        operations.whole(),
        [state.maps for state in states],
        table,
        skip=skip,
        nodes=operations.plan.nodes,
        multiplier=operations.plan.multiplier,
        stride=operations.plan.stride,
    )
    return State(output, not alone)


def find_operations(cell: SearchCell) -> Operations | None:
    """The operations of a cell, or None if some of them have no native form and draw no noise.

    The caller makes sure that no module has hooks.
    """
    if isinstance(cell, NAS201SearchCell):
        plan = current_plan(cell, cell.edges, cell._plan)
        return None if plan is None else Operations(plan)
    edges = [cast(MixedOp, edge) for edge in cell._ops]
    if not all(type(edge).forward is MixedOp.forward for edge in edges):
        return None
    nodes = range(2, cell._steps + 2)
    ends = [(state, node) for node in nodes for state in range(node)]
    ops = [list(edge._ops) for edge in edges]
    drawn = {k: op for k, op in enumerate(op for row in ops for op in row) if type(op) is Noise}
    if not drawn:
        own = current_plan(cell, cell._ops, cell._plan)
        return None if own is None else Operations(own)
    plan = plan_cell(
        [
            (*end, [Zero(op.stride) if type(op) is Noise else op for op in row])
            for end, row in zip(ends, ops, strict=True)
        ],
        inputs=2,
        nodes=cell._steps,
        multiplier=cell._multiplier,
    )
    return None if plan is None else Operations(plan, drawn)


def preprocess(module: nn.Module, state: State, groups: int) -> State:
    """`run_preprocess` per group."""
    if not state.grouped:
        return State(run_preprocess(module, state.maps), False)
    found = native_preprocess(module, state.maps, groups=groups)
    return per_group(module, state, groups) if found is None else State(found[0].output, True)


def per_group(module: nn.Module, state: State, groups: int) -> State:
    """A module that sees the images of one group at a time."""
    if not state.grouped:
        return State(module(state.maps), False)
    return State(torch.cat([module(state.of(g, groups)) for g in range(groups)]), True)

# SPDX-License-Identifier: Apache-2.0
"""Runs a structure: native calls where operations have a native form, their modules where not."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast.accelerate.structure import (
    CELL,
    MIXED_OPERATION,
    Structure,
)
from darts_fast.nn.fused_cell import run_cell, run_preprocess
from darts_fast.nn.plan import CellPlan, plan_cell

# Whether the result is channels_last, by whether the maps and whether the weights of convolutions
# are.
Layouts = Mapping[tuple[bool, bool], bool]


class Runner:
    """Computes a structure of a module.

    Args: native, one flag per operation: whether its native form is proven.
    """

    def __init__(self, module: nn.Module, structure: Structure, native: Sequence[bool]) -> None:
        self.module = module
        self.structure = structure
        self.native = tuple(native)
        self._plans: dict[tuple[int, ...], CellPlan | None] = {}
        self._whole = tuple(range(len(structure.ops)))
        parts = (part for op in structure.ops for part in op.modules())
        self._convolutions = [part for part in parts if isinstance(part, nn.Conv2d)]

    def run_as_modules(self) -> set[nn.Module]:
        """Operations without a native form, and all below them."""
        ops = zip(self.structure.ops, self.native, strict=True)
        return {part for op, native in ops if not native for part in op.modules()}

    def whole_plan(self) -> CellPlan | None:
        """The plan of everything as one native call; None if some operation runs as its module."""
        return self._plan(self._whole) if all(self.native) else None

    def takes(self, x: Tensor, untouched: Sequence[bool]) -> bool:
        """Whether `run` can compute from a state x where only `untouched` operations are native."""
        ops = self._usable(untouched)
        if not ops or (self.structure.kind == CELL and ops != self._whole):
            return False
        plans = (
            [self._plan(ops)]
            if ops == self._whole
            else [self._plan(part) for part in self._by_edge(ops) if part]
        )
        return all(
            plan is not None and plan.takes(x) and not plan.is_for_library(x) for plan in plans
        )

    def run(
        self,
        maps: Sequence[Tensor],
        weights: Tensor,
        zero: str,
        untouched: Sequence[bool],
        layouts: Layouts | None = None,
    ) -> Tensor:
        """What the module's own method gives, if it is what the structure says.

        Args: weights, of the structure's shape and the dtype of the maps; zero, what a weight of
        exactly 0 means, with "skip" every node runs something; untouched, one flag per operation:
        whether to call it does no more than its forward. Others run as modules; layouts, what the
        method gives (`layouts_of`): the result is then laid out so in memory, and so is what the
        modules are given. Without, it is channels_last, and modules are given it contiguous.
        """
        if layouts:
            given = is_channels_last(maps[-1])
            filters = any(is_channels_last(part.weight) for part in self._convolutions)
            out = self._run(maps, weights, zero, untouched, given)
            return laid_out(out, layouts[given, filters])
        return self._run(maps, weights, zero, untouched, None)

    def _run(
        self,
        maps: Sequence[Tensor],
        weights: Tensor,
        zero: str,
        untouched: Sequence[bool],
        layout: bool | None,
    ) -> Tensor:
        """`run`. Args: layout, whether states are channels_last, None where it does not matter."""
        structure, ops = self.structure, self._usable(untouched)
        if structure.preprocess:
            maps = [
                run_preprocess(cast(nn.Module, self.module._modules[name]), x, by_structure=True)
                for name, x in zip(structure.preprocess, maps, strict=True)
            ]
        if structure.parts > 1:
            return self._run_part(maps[0], weights, zero, ops, layout)
        if ops == self._whole:
            return run_cell(cast(CellPlan, self._plan(ops)), maps, weights, zero)
        rows = [weights] if structure.kind == MIXED_OPERATION else list(weights)
        native = self._by_edge(ops)
        states = [*maps]
        for node in range(structure.inputs, structure.inputs + structure.nodes):
            terms = [
                self._run_edge(i, states[edge.source], rows[i], zero, native[i], layout)
                for i, edge in enumerate(structure.edges)
                if edge.node == node
            ]
            states.append(functools.reduce(torch.add, (x for x in terms if x is not None)))
        return states[-1]

    def _run_part(
        self, x: Tensor, weights: Tensor, zero: str, ops: tuple[int, ...], layout: bool | None
    ) -> Tensor:
        """Partial channels: the first are computed, the rest passes by, and all are shuffled."""
        parts = self.structure.parts
        first = x.shape[1] // parts
        out = self._run_edge(0, x[:, :first], weights, zero, ops, layout)
        assert out is not None
        rest = x[:, first:]
        if out.shape[2] != x.shape[2]:
            rest = cast(nn.Module, self.module._modules[self.structure.pool])(rest)
        return nn.functional.channel_shuffle(torch.cat([out, rest], 1), parts)

    def _run_edge(
        self,
        i: int,
        x: Tensor,
        weights: Tensor,
        zero: str,
        native: tuple[int, ...],
        layout: bool | None,
    ) -> Tensor | None:
        """One edge, None if it runs nothing; `native`, the operations in its native call."""
        edge = self.structure.edges[i]
        first = i * len(edge.ops)
        values = weights.tolist() if zero == "skip" else [1.0] * len(edge.ops)
        inside = [k - first for k in native]
        total: Tensor | None = None
        if any(values[k] != 0.0 for k in inside):
            row = weights if len(inside) == len(edge.ops) else weights[inside]
            total = run_cell(cast(CellPlan, self._plan(native)), [x], row, zero)
            total = total if layout is None else laid_out(total, layout)
        for k, op in enumerate(edge.ops):
            if first + k not in native and values[k] != 0.0:
                # Random draws of an operation follow the layout of what it is given.
                given = x.contiguous() if layout is None else x
                term = weights[k] * call_operation(op, given)
                total = term if total is None else total + term
        return total

    def _usable(self, untouched: Sequence[bool]) -> tuple[int, ...]:
        return tuple(k for k in self._whole if self.native[k] and untouched[k])

    def _by_edge(self, ops: tuple[int, ...]) -> list[tuple[int, ...]]:
        width = len(self.structure.edges[0].ops)
        return [tuple(k for k in ops if k // width == i) for i in range(len(self.structure.edges))]

    def _plan(self, ops: tuple[int, ...]) -> CellPlan | None:
        """The plan of a native call of so many operations: all of the structure, or of one edge."""
        if ops not in self._plans:
            structure = self.structure
            if ops == self._whole:
                edges = [(edge.source, edge.node, edge.ops) for edge in structure.edges]
                inputs, nodes = structure.inputs, structure.nodes
            else:
                edges, inputs, nodes = [(0, 1, tuple(structure.ops[k] for k in ops))], 1, 1
            self._plans[ops] = plan_cell(
                edges,
                inputs=inputs,
                nodes=nodes,
                multiplier=structure.multiplier if ops == self._whole else 1,
                by_structure=True,
            )
        return self._plans[ops]


def is_channels_last(x: Tensor) -> bool:
    """Whether channels lie next to each other in memory, of a part of a tensor too."""
    return x.stride(1) < x.stride(3)


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """x, channels_last or contiguous in memory."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=form)


def call_operation(op: nn.Module, x: Tensor) -> Tensor:
    """op(x), with None for each argument behind x that it cannot do without (NASLib's have one)."""
    parameters = list(inspect.signature(type(op).forward).parameters.values())[2:]
    needed = [
        parameter
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    return cast(Tensor, op(x, *[None] * len(needed)))

# SPDX-License-Identifier: Apache-2.0
"""Operations and bytes of a network, counted from its modules; README.md derives the formulas."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.nn import Cell, MixedOp
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.nn.plan import CellPlan
from darts_fast.reference import CELL_KINDS


@dataclass
class Work:
    """Of one forward and of one step; a step is a forward and a backward with all gradients."""

    depthwise: float = 0.0
    """Multiply-adds of depthwise convolutions in one forward."""
    dense: float = 0.0
    """Multiply-adds of all other convolutions and of linear layers in one forward."""
    forward_bytes: float = 0.0
    backward_bytes: float = 0.0
    """To and from memory by the mixed operations alone, if no map stays in a cache."""

    @property
    def forward_flop(self) -> float:
        return 2 * (self.depthwise + self.dense)

    @property
    def step_flop(self) -> float:
        """Useful operations: three forwards."""
        return 3 * self.forward_flop

    @property
    def step_done(self) -> float:
        """Operations that the kernels do: depthwise convolutions run again in the backward."""
        return self.step_flop + 2 * self.depthwise

    @property
    def step_bytes(self) -> float:
        return self.forward_bytes + self.backward_bytes

    def times(self, images: int) -> Work:
        """The work for so many images, of that for one."""
        return Work(*(images * value for value in astuple(self)))


def count_work(net: nn.Module, *inputs: object) -> Work:
    """The work of `net(*inputs)`: of what runs there, so that removed operations are left out."""
    work = Work()

    def count_layer(module: nn.Module, _: tuple[object, ...], output: Tensor) -> None:
        multiply_adds = output.numel() * module.weight[0].numel()
        if getattr(module, "groups", 1) > 1:
            work.depthwise += multiply_adds
        else:
            work.dense += multiply_adds

    def count_cell(module: nn.Module, given: tuple[object, ...], output: Tensor) -> None:
        plan = module._plan()
        node_bytes = output.numel() * output.element_size() / plan.multiplier
        runs = [True] * plan.width
        if module.zero == "skip":
            weights = [value for value in given if isinstance(value, Tensor)][-1]
            runs = [weight != 0.0 for weight in weights.flatten().tolist()]
        forward, backward = _maps(plan, runs)
        work.forward_bytes += forward * node_bytes
        work.backward_bytes += backward * node_bytes

    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    cells = [module for module in net.modules() if isinstance(module, (Cell, NAS201SearchCell))]
    if isinstance(net, MixedOp):
        cells.append(net)
    hooks = [layer.register_forward_hook(count_layer) for layer in layers]
    hooks += [cell.register_forward_hook(count_cell) for cell in cells]
    with torch.no_grad(), use_backend("reference"):
        net(*inputs)
    for hook in hooks:
        hook.remove()
    return work


def _maps(plan: CellPlan, runs: list[bool]) -> tuple[float, float]:
    """Maps of the size of a node that a forward and a backward move (README.md, bytes)."""
    forward = backward = 0.0
    pools: set[tuple[int, str]] = set()
    readers: set[tuple[int, int]] = set()
    nodes: set[int] = set()
    pooled: set[int] = set()

    def state(source: int) -> float:
        return plan.stride**2 if source < plan.inputs else 1

    for k in range(plan.width):
        source, node, number = plan.ops[5 * k : 5 * k + 3]
        kind = CELL_KINDS[number]
        if not runs[k] or kind == "none":
            continue
        nodes.add(node)
        if kind == "identity":
            forward, backward = forward + 1, backward + 1
        elif kind in ("max_pool", "avg_pool"):
            forward, backward = forward + 1, backward + 2
            pooled.add(source)
            pools.add((source, kind))
        else:
            forward, backward = forward + 2, backward + 2
            readers.add((source, node))
        if kind == "separable_twice":
            forward, backward = forward + 2, backward + 4
    forward += len(pools) + sum(map(state, pooled))
    forward += sum(state(source) for source, _ in readers) + len(nodes)
    backward += sum(3 * state(source) for source, _ in readers) + 2 * len(nodes)
    return forward, backward

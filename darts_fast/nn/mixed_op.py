# SPDX-License-Identifier: Apache-2.0
"""The mixed operation of one edge: sum over its candidates o of w_o * op_o(x).

Source: DARTS (Liu et al., ICLR 2019), equation 2, with the weights w given. What a weight of
exactly 0 means differs between the code bases, so it is a parameter:

- zero="multiply" (darts, PC-DARTS, NAS-Bench-201): every operation runs;
- zero="skip" (darts-pt, DrNAS): an operation with weight 0 is not computed. Its running
  statistics do not move, its parameters get no gradient (`.grad` stays None), dL/dw is 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from darts_fast.nn.fused_cell import native_plan, run_cell
from darts_fast.nn.node import fused_node, sums_fused
from darts_fast.nn.operations import OPS, strided_shape
from darts_fast.nn.plan import CellPlan, plan_cell

ZERO_RULES = ("multiply", "skip")


def check_zero_rule(name: str, zero: str) -> str:
    """Return `zero` if it is a known rule, else raise ValueError in the name of `name`."""
    if zero not in ZERO_RULES:
        raise ValueError(f"{name}: zero must be one of {', '.join(ZERO_RULES)}, got {zero!r}")
    return zero


def weighted_sum(
    ops: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    weights: Tensor,
    zero: str,
    stride: int = 1,
) -> Tensor:
    """Sum of weights[k] * ops[k](inputs[k]) over all k, by the native op where it can be.

    Args: ops and inputs, one input per op; weights [K]; zero, the rule for weights of 0. With
    zero="skip" and no weight left the result is zeros of the shape of the first input, its size
    divided by `stride`. That rule reads the weights on the host: one synchronisation if they live
    on another device.
    """
    kept = list(range(len(ops)))
    if zero == "skip":
        kept = [k for k, weight in enumerate(weights.tolist()) if weight != 0.0]
        if not kept:
            return inputs[0].new_zeros(strided_shape(inputs[0], stride))
        if len(kept) < len(ops):
            weights = weights[kept]
    ops, inputs = [ops[k] for k in kept], [inputs[k] for k in kept]
    if sums_fused(inputs[0]):
        return fused_node(ops, inputs, weights)
    terms: Iterator[Tensor] = (w * op(x) for w, op, x in zip(weights, ops, inputs, strict=True))
    return functools.reduce(torch.add, terms)


class MixedOp(nn.Module):
    """All candidate operations of one edge, without affine batch norm; a pool is followed by one.

    Args: C channels; stride 1 or 2; primitives, names from `OPS` in index order; zero, what a
    weight of exactly 0 means (see the module). Raises ValueError for an unknown name or rule.
    """

    def __init__(
        self, C: int, stride: int, primitives: Sequence[str], *, zero: str = "multiply"
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"MixedOp: stride must be 1 or 2, got {stride}")
        unknown = [name for name in primitives if name not in OPS]
        if unknown or not primitives:
            raise ValueError(
                f"MixedOp: primitives must be names of {', '.join(OPS)}, got {list(primitives)}"
            )
        self.primitives = tuple(primitives)
        self.stride = stride
        self.zero = check_zero_rule("MixedOp", zero)
        self._ops = nn.ModuleList()
        for name in primitives:
            op = OPS[name](C, stride, False)
            if "pool" in name:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            self._ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [N, C, H, W], weights [ops] -> [N, C, H/stride, W/stride]."""
        check_weights("MixedOp", weights, (len(self._ops),))
        plan = native_plan(self, self._ops, self._plan, x, weights)
        if plan is not None:
            return run_cell(plan, [x], weights, self.zero)
        ops = list(self._ops)
        return weighted_sum(ops, [x] * len(ops), weights, self.zero, self.stride)

    def _plan(self) -> CellPlan | None:
        return plan_cell([(0, 1, list(self._ops))], inputs=1, nodes=1, multiplier=1)

    def extra_repr(self) -> str:
        return f"{', '.join(self.primitives)}, stride={self.stride}, zero={self.zero!r}"


def check_weights(name: str, weights: Tensor, shape: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError in the name of `name` unless weights is a tensor of `shape`."""
    if not isinstance(weights, torch.Tensor):
        raise TypeError(f"{name}: weights must be a tensor, got {type(weights).__name__}")
    if weights.shape != shape:
        raise ValueError(
            f"{name}: weights must have one entry per op and the shape {list(shape)}, "
            f"got {list(weights.shape)}"
        )

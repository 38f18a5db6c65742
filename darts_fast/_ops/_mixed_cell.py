# SPDX-License-Identifier: Apache-2.0
"""mixed_cell: fake kernels, second derivative, autocast; its first one is that of the extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from darts_fast import _extension as _extension  # registers the schemas
from darts_fast import reference
from darts_fast._ops._autocast import register_autocast
from darts_fast._ops._replay import second_derivative

__all__ = ["mixed_cell", "mixed_cell_backward"]

mixed_cell = torch.ops.darts_fast.mixed_cell.default
mixed_cell_backward = torch.ops.darts_fast.mixed_cell_backward.default


def _saved_size(
    plan: Sequence[reference.CellOp], inputs: int, elements: int, precision: int
) -> int:
    """Elements of the CPU kernels' buffer: a slot per map, each a little longer than the map.

    The maps are those of every convolution block, of two bytes an element if the precision is not
    the full one, of every pool of a state, and the nodes that an operation reads.
    """
    blocks = sum(
        len(op.convolutions) if op.kind == "dense" else len(op.convolutions) // 2 for op in plan
    )
    pools = {(op.source, op.kind) for op in plan if op.kind in ("max_pool", "avg_pool")}
    read_nodes = {op.source for op in plan if op.source >= inputs}
    slot = (elements + 15) // 16 * 16 + 144
    convolved = blocks * slot
    if precision != reference.PRECISION_FULL:
        convolved //= 2
    return (len(pools) + len(read_nodes)) * slot + convolved


@torch.library.register_fake("darts_fast::mixed_cell")
def _fake(
    states: Sequence[Tensor],
    weights: Tensor,
    convolutions: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    ops: Sequence[int],
    norms: Sequence[int],
    eps: Sequence[float],
    nodes: int,
    multiplier: int,
    stride: int,
    groups: int,
    shared: int,
    active: Tensor | None,
    precision: int,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first = states[0]
    _, channels, height, width = first.shape
    batch = reference.images_per_group(states, groups, shared) * groups
    output = torch.empty(
        (batch, multiplier * channels, -(-height // stride), -(-width // stride)),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last,
    )
    plan = reference.cell_ops(ops)
    elements = output.numel() // multiplier
    saved = _saved_size(plan, len(states), elements, precision) if save else 0
    statistics = (groups, len(norms), channels)
    return (
        output,
        first.new_empty(saved),
        weights.new_empty(statistics),
        weights.new_empty(statistics),
    )


@torch.library.register_fake("darts_fast::mixed_cell_backward")
def _backward_fake(
    grad_output: Tensor,
    saved: Tensor,
    mean: Tensor,
    var: Tensor,
    states: Sequence[Tensor],
    weights: Tensor,
    convolutions: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    ops: Sequence[int],
    norms: Sequence[int],
    eps: Sequence[float],
    nodes: int,
    multiplier: int,
    stride: int,
    groups: int,
    active: Tensor | None,
    precision: int,
    output_mask: Sequence[bool],
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    first = states[0]
    wanted = iter(output_mask)

    def grads(values: Sequence[Tensor]) -> list[Tensor]:
        return [weights.new_empty(value.shape if next(wanted) else (0,)) for value in values]

    grad_states = [
        torch.empty_like(first, memory_format=torch.channels_last)
        if next(wanted)
        else first.new_empty(0)
        for _ in states
    ]
    (grad_weights,) = grads([weights])
    return grad_states, grad_weights, grads(convolutions), grads(gammas), grads(betas)


def _parts(values: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """A flat list as consecutive lists of the given lengths: states, weights, convolutions, ..."""
    rest = iter(values)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _none_of_norms(settings: Sequence[Any]) -> tuple[list[None] | None, list[None] | None]:
    """The gradients of `norms` and `eps`: torch takes an empty list for one of tensors."""
    _, norms, eps, *_ = settings
    return None if norms else [], None if eps else []


def _computed(
    wanted: Sequence[bool],
    sizes: Sequence[int],
    parameters: Sequence[Sequence[Tensor]],
    ops: Sequence[int],
    active: Tensor | None,
) -> list[bool]:
    """`wanted` without empty parameters and without those of ops that no group computes."""
    mask = _parts(wanted, sizes)
    for flag, values in zip(mask[2:], parameters, strict=True):
        flag[:] = [want and value.numel() > 0 for want, value in zip(flag, values, strict=True)]
    # A tracer's tensor has no values: such gradients are zeros in its graph.
    if type(active) is Tensor:
        runs = active.any(0).tolist()
        for op, on in zip(reference.cell_ops(ops), runs, strict=True):
            for flag, own in zip(mask[2:], (op.convolutions, op.norms, op.norms), strict=True):
                for i in own if flag and not on else ():
                    flag[i] = False
    return [want for flag in mask for want in flag]


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad_output, _, mean, var, states, weights, *parameters = inputs[:9]
    *settings, active, _, mask = inputs[9:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        grad_output, mean, var, *states, weights, *(p for part in parameters for p in part), active
    )
    ctx.sizes = (len(states), 1, *(len(part) for part in parameters))
    ctx.settings, ctx.mask = settings, mask


def _backward_autograd(
    ctx: Any,
    grad_grad_states: Sequence[Tensor | None] | None,
    grad_grad_weights: Tensor | None,
    *grad_grads: Sequence[Tensor | None] | None,
) -> tuple[Any, ...]:
    grad_output, mean, var, *arguments, active = ctx.saved_tensors
    _, _, *parameters = _parts(arguments, ctx.sizes)
    ops, norms, eps, *settings = ctx.settings
    # Statistics of running norms: those of a group in which the operation ran.
    group = [0] * len(norms)
    if active is not None:
        for op, runs in zip(reference.cell_ops(ops), active.unbind(1), strict=True):
            for slot in op.norms:
                group[slot] = int(runs.int().argmax())
    running = [[statistic[g, slot] for slot, g in enumerate(group)] for statistic in (mean, var)]

    def specification(leaves: list[Tensor | None]) -> list[Tensor]:
        states, (weights,), *lists = _parts(leaves, ctx.sizes)
        alike = cast(Tensor, weights)
        output, *_ = reference.mixed_cell(
            *([cast(Tensor, x).to(alike.dtype) for x in states], alike),
            *(*lists, *running, ops, norms, eps),
            *(*settings, 0, active, reference.PRECISION_FULL, False),
        )
        return [output.to(grad_output.dtype)]

    incoming = (grad_grad_states, [grad_grad_weights], *grad_grads)
    (grad,), grads = second_derivative(
        specification,
        [grad_output],
        arguments,
        _computed(ctx.mask, ctx.sizes, parameters, ops, active),
        [g for part, size in zip(incoming, ctx.sizes, strict=True) for g in part or [None] * size],
    )
    states, (weights,), *lists = _parts(grads, ctx.sizes)
    return (
        *(grad, None, None, None, states, weights, *lists),
        *(None, *_none_of_norms(ctx.settings), *(None,) * 7),
    )


torch.library.register_autograd(
    "darts_fast::mixed_cell_backward", _backward_autograd, setup_context=_backward_setup
)
register_autocast(
    "darts_fast::mixed_cell",
    lambda arguments: (
        arguments
        if arguments[0][0].dtype == torch.float64
        else (*arguments[:-2], reference.PRECISION_PRODUCTS, arguments[-1])
    ),
    lambda arguments: (*arguments[:-2], reference.PRECISION_FULL, arguments[-1]),
)

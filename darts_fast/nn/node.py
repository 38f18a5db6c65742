# SPDX-License-Identifier: Apache-2.0
"""One node as one `node_sum`: every operation of every edge into it, run up to its last batch norm.

The batch norms and the weighted sum are one native op (design 4.2, sweep 3). An operation that does
not end in a batch norm, has forward hooks, or overrides `forward` runs as the module it is and
enters the sum as it comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast.backend import backend, cuda_kernels
from darts_fast.functional import node_sum, update_running_statistics
from darts_fast.functional._library import is_for_library
from darts_fast.nn.blocks import Block, moves, norm_kind, run_plans, separable_blocks
from darts_fast.nn.operations import NormalisedOp
from darts_fast.nn.plan import has_hooks

KERNEL_DTYPES = (torch.float32, torch.float64)

# What the sum absorbs a norm of; a forward that was put in its place later computes something else.
_FORWARD = NormalisedOp.forward


def runs_fused(x: Tensor) -> bool:
    """Whether the kernels take x: on the CPU, in single or double precision, backend "fused"."""
    return backend() == "fused" and x.device.type == "cpu" and x.dtype in KERNEL_DTYPES


def runs_on_cuda(x: Tensor, weights: Tensor | None = None) -> bool:
    """Whether the CUDA kernels take x on its CUDA device, and weights beside it.

    `use_cuda_kernels` must ask for them. Under autocast they take what modules take, and store maps
    in its dtype.
    """
    if backend() != "fused" or not cuda_kernels():
        return False
    if torch.is_autocast_enabled("cuda"):
        return fits_autocast(torch.get_autocast_dtype("cuda"), x, weights)
    return x.dtype in KERNEL_DTYPES and (weights is None or weights.dtype == x.dtype)


def fits_autocast(dtype: torch.dtype, x: Tensor, weights: Tensor | None) -> bool:
    """Whether a native call under autocast in this dtype takes them as the modules do."""
    return all(v.dtype in (torch.float32, dtype) for v in (x, weights) if v is not None)


def sums_fused(x: Tensor) -> bool:
    """Whether `fused_node` takes inputs like x.

    On a CUDA device it takes those of cells that are too wide for one native call.
    """
    if x.device.type != "cuda":
        return runs_fused(x)
    return runs_on_cuda(x) and is_for_library(x, x.shape[1]) and not torch.compiler.is_compiling()


def fused_node(ops: Sequence[nn.Module], inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_k weights[k] * ops[k](inputs[k]) as one `node_sum`; at least one op.

    Running statistics of batch norms in training mode move as their own forward would move them.

    Args: ops and inputs, one input [N, C, H, W] per op, whose outputs have one shape; weights [K].
    Returns the node, channels_last.
    """
    norms = [_last_norm(op) for op in ops]
    maps = _maps_before_norm(ops, inputs, norms)
    kinds = ["none" if norm is None else norm_kind(norm) for norm in norms]
    channels = maps[0].shape[1]
    running = [norm if kind == "running" else None for norm, kind in zip(norms, kinds, strict=True)]
    affine = any(norm is not None and norm.affine for norm in norms)
    out = node_sum(
        maps,
        weights,
        kinds,
        gamma=_stack(norms, "weight", weights.new_ones(channels)) if affine else None,
        beta=_stack(norms, "bias", weights.new_zeros(channels)) if affine else None,
        running_mean=_stack(running, "running_mean", weights.new_zeros(channels)),
        running_var=_stack(running, "running_var", weights.new_ones(channels)),
        eps=[0.0 if norm is None else norm.eps for norm in norms],
    )
    moving = [k for k, norm in enumerate(norms) if norm is not None and moves(norm)]
    if moving:
        # Rows one by one: a list of them as an index would be copied to the device.
        mean, var = (torch.stack([x[0, k] for k in moving]) for x in (out.mean, out.var))
        update_running_statistics(
            [cast(nn.BatchNorm2d, norms[k]) for k in moving],
            *(mean, var, maps[0].numel() // channels),
        )
    return out.node


def _maps_before_norm(
    ops: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    norms: Sequence[nn.BatchNorm2d | None],
) -> list[Tensor]:
    """What each op gives to its last norm, or gives out where it has none to absorb."""
    plans = [
        None if norm is None or is_for_library(x, x.shape[1]) else separable_blocks(op)
        for op, x, norm in zip(ops, inputs, norms, strict=True)
    ]
    native = [k for k, blocks in enumerate(plans) if blocks is not None]
    results = iter(
        run_plans([cast(list[Block], plans[k]) for k in native], [inputs[k] for k in native])
    )
    maps = []
    for op, x, norm, blocks in zip(ops, inputs, norms, plans, strict=True):
        if blocks is not None:
            maps.append(next(results))
        else:
            maps.append(op(x) if norm is None else _raw(op, x))
    return maps


def _last_norm(op: nn.Module) -> nn.BatchNorm2d | None:
    """The batch norm that the sum may absorb, or None if the op must run as its module."""
    norm: nn.Module | None = None
    if isinstance(op, NormalisedOp) and type(op).forward is _FORWARD:
        norm = op.norm
    elif type(op) is nn.Sequential and len(op) > 1:
        norm = op[-1]
    if type(norm) is not nn.BatchNorm2d or any(has_hooks(module) for module in op.modules()):
        return None
    return norm


def _raw(op: nn.Module, x: Tensor) -> Tensor:
    if isinstance(op, NormalisedOp):
        return op.raw(x)
    assert isinstance(op, nn.Sequential)
    for layer in list(op)[:-1]:
        x = layer(x)
    return x


def _stack(norms: Sequence[nn.BatchNorm2d | None], name: str, missing: Tensor) -> Tensor | None:
    """The attribute `name` of all norms, [K, C]: `missing` for some, None if it is for all."""
    values = [None if norm is None else getattr(norm, name) for norm in norms]
    if all(value is None for value in values):
        return None
    return torch.stack([missing if value is None else value for value in values])

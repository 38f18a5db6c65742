# SPDX-License-Identifier: Apache-2.0
"""A cell, or one edge, as one native call, and its preprocessing (design 4.2).

Running statistics of batch norms in training mode move as their own forward would move them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_fast import _C
from darts_fast.backend import backend, cuda_kernels
from darts_fast.functional import ReluConvNorm, update_running_statistics
from darts_fast.functional._checks import map_precision
from darts_fast.functional._library import is_for_library
from darts_fast.functional._statistics import move_running_statistics
from darts_fast.nn.node import fits_autocast, runs_fused, runs_on_cuda
from darts_fast.nn.plan import (
    CellPlan,
    Parts,
    current_parts,
    current_plan,
    current_stem,
)
from darts_fast.reference import PRECISION_FULL


def runs_native(x: Tensor, weights: Tensor | None = None) -> bool:
    """Whether modules of plain PyTorch may be replaced by native calls for the input x now.

    Under autocast in bfloat16 the native calls compute in float32 and give bfloat16, as modules do;
    in float16 modules on the CPU have precisions of their own, on a CUDA device they give float16,
    and so do the kernels. A compiler sees more in modules. On a CUDA device `use_cuda_kernels` must
    ask for it.
    """
    if torch.compiler.is_compiling() or (weights is not None and weights.device != x.device):
        return False
    if x.device.type == "cuda":
        return runs_on_cuda(x, weights)
    if not torch.is_autocast_enabled("cpu"):
        return runs_fused(x) and (weights is None or weights.dtype == x.dtype)
    return (
        backend() == "fused"
        and x.device.type == "cpu"
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and fits_autocast(torch.bfloat16, x, weights)
    )


def native_plan(
    owner: nn.Module,
    root: nn.Module,
    build: Callable[[], CellPlan | None],
    x: Tensor,
    weights: Tensor,
) -> CellPlan | None:
    """What `run_cell` can run of a module for a state x now, or None where its modules must run.

    Args: owner, root, build, see `current_plan`.
    """
    plan = current_plan(owner, root, build) if runs_native(x, weights) else None
    if plan is None or plan.is_for_library(x) or not plan.takes(x):
        return None
    return plan


def run_cell(plan: CellPlan, states: Sequence[Tensor], weights: Tensor, zero: str) -> Tensor:
    """The output of a cell, channels_last.

    Args: states, the inputs [N, C, H, W], which the plan takes; weights, one per operation in the
    order of the plan, any shape; zero, what a weight of exactly 0 means ("multiply" or "skip").
    """
    active = None
    if zero == "skip":
        active = [weight != 0.0 for weight in weights.flatten().tolist()]
        active = None if all(active) else active
    half_maps = map_precision(states[0], save=True) != PRECISION_FULL
    output, unmoved = plan.call.run(
        *(plan.convolutions, plan.norms, list(states), weights, active),
        *(half_maps, cuda_kernels()),
    )
    if unmoved is not None:
        mean, var = unmoved
        norms = [
            norm if active is None or active[k] else None
            for norm, k in zip(plan.norms, plan.norm_ops, strict=True)
        ]
        count = output.numel() // output.shape[1]
        move_running_statistics(norms, mean, var, count, training_only=True)
    return output


def run_preprocess(module: nn.Module, x: Tensor, *, by_structure: bool = False) -> Tensor:
    """module(x); a `ReLUConvBN` or `FactorizedReduce` as one native call where it says the same,
    and is not too wide for one on a CUDA device.
    """
    parts = current_parts(module, by_structure=by_structure) if runs_native(x) else None
    native = _native_parts(parts, x)
    if native is not None and is_for_library(x, native[2].num_features):
        native = None
    return _run_and_move(module, native, x)


def run_stem(module: nn.Module, x: Tensor) -> Tensor:
    """module(x); a convolution with its batch norm as one native call on the CPU.

    On a CUDA device PyTorch's own library is the better tool for three channels.
    """
    parts = current_stem(module) if x.device.type == "cpu" and runs_native(x) else None
    return _run_and_move(module, _native_parts(parts, x), x)


# A native call and what it is given.
_Native = tuple[_C.ReluConvNormCall, tuple[nn.Conv2d, ...], nn.BatchNorm2d]


def _run_and_move(module: nn.Module, native: _Native | None, x: Tensor) -> Tensor:
    if native is None:
        return cast(Tensor, module(x))
    call, convolutions, norm = native
    output, unmoved = call.run_and_move(convolutions, norm, x, cuda_kernels())
    if unmoved is not None:
        count = output.numel() // output.shape[1]
        update_running_statistics([norm], *unmoved, count)
    return output


def native_preprocess(
    module: nn.Module, x: Tensor, *, groups: int = 1
) -> tuple[ReluConvNorm, nn.BatchNorm2d] | None:
    """A `ReLUConvBN` or `FactorizedReduce` as one native call and the norm in it, whose running
    statistics stay; None where only the module says what it computes.
    """
    found = _native_parts(current_parts(module), x)
    if found is None:
        return None
    call, convolutions, norm = found
    return ReluConvNorm(*call.run(convolutions, norm, x, groups)), norm


def _native_parts(parts: Parts | None, x: Tensor) -> _Native | None:
    """The native call of a preprocessing or stem; None where there is none for x."""
    if (
        parts is None
        or parts.call is None
        or (parts.kind == "factorized_reduce" and (x.shape[2] % 2 or x.shape[3] % 2))
    ):
        return None
    return parts.call, parts.convolutions, cast(nn.BatchNorm2d, parts.norms[0])


class NormArguments(NamedTuple):
    """What a native cell takes of its norms, in their order; [] where none of them has any."""

    gammas: list[Tensor]
    betas: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]
    kinds: list[int]
    eps: list[float]
    moves: bool
    """Whether a forward of the norms would move running statistics now."""


def norm_arguments(norms: list[nn.BatchNorm2d | None], like: Tensor) -> NormArguments:
    """The norms as the native op takes them. Args: like, of the dtype and device of the maps."""
    return NormArguments(*_C.norm_arguments(norms, like.new_empty(0)))

# SPDX-License-Identifier: Apache-2.0
"""A cell, or one edge, as one native call, and its preprocessing (design 4.2).

Running statistics of batch norms in training mode move as their own forward would move them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from darts_fast import _ops
from darts_fast.backend import backend, cuda_kernels
from darts_fast.functional import Norm, ReluConvNorm, relu_conv_norm, update_running_statistics
from darts_fast.functional._checks import map_precision
from darts_fast.nn.blocks import moves, norm_kind
from darts_fast.nn.node import KERNEL_DTYPES, runs_fused
from darts_fast.nn.plan import CellPlan, current_plan, describe, has_hooks
from darts_fast.reference import NORM_BATCH, NORM_NONE, NORM_RUNNING

_AUTOCAST_DTYPES = (torch.float32, torch.bfloat16)


def runs_native(x: Tensor, weights: Tensor | None = None) -> bool:
    """Whether modules of plain PyTorch may be replaced by native calls for the input x now.

    Under autocast in bfloat16 the native calls compute in float32 and give bfloat16, as modules do;
    in float16 modules have precisions of their own. A compiler sees more in modules. On a CUDA
    device `use_cuda_kernels` must ask for it.
    """
    if torch.compiler.is_compiling() or (weights is not None and weights.device != x.device):
        return False
    if x.device.type == "cuda":
        plain = backend() == "fused" and cuda_kernels() and not torch.is_autocast_enabled("cuda")
        same = weights is None or weights.dtype == x.dtype
        return plain and x.dtype in KERNEL_DTYPES and same
    if not torch.is_autocast_enabled("cpu"):
        return runs_fused(x) and (weights is None or weights.dtype == x.dtype)
    return (
        backend() == "fused"
        and x.device.type == "cpu"
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and all(value.dtype in _AUTOCAST_DTYPES for value in (x, weights) if value is not None)
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
    return plan if plan is not None and plan.takes(x) else None


def run_cell(plan: CellPlan, states: Sequence[Tensor], weights: Tensor, zero: str) -> Tensor:
    """The output of a cell, channels_last.

    Args: states, the inputs [N, C, H, W], which the plan takes; weights, one per operation in the
    order of the plan, any shape; zero, what a weight of exactly 0 means ("multiply" or "skip").
    """
    weights = weights.reshape(1, -1)
    inputs = list(states)
    # Not by attribute: Module.__getattr__ takes ten times as long, and a cell has hundreds.
    convolutions = [cast(Tensor, conv._parameters["weight"]) for conv in plan.convolutions]
    norms = plan.norms
    runs = [True] * plan.width if zero == "multiply" else [w != 0.0 for w in weights[0].tolist()]
    active = None
    given = norm_arguments(norms, weights)
    gammas, betas = given.gammas, given.betas
    if not all(runs):
        active = torch.tensor([runs])
        live, reached = plan.live(runs)
        convolutions = _attached(convolutions, plan.convolution_ops, live)
        gammas = gammas and _attached(gammas, plan.norm_ops, live)
        betas = betas and _attached(betas, plan.norm_ops, live)
        inputs = [x if reached[i] else x.detach() for i, x in enumerate(inputs)]
    differentiable = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (weights, *inputs, *convolutions, *gammas, *betas)
    )
    output, _, mean, var = _ops.call_mixed_cell(
        inputs,
        weights,
        convolutions,
        gammas,
        betas,
        given.running_means,
        given.running_vars,
        plan.ops,
        given.kinds,
        given.eps,
        plan.nodes,
        plan.multiplier,
        plan.stride,
        1,
        0,
        active,
        map_precision(states[0], save=differentiable),
        differentiable,
    )
    moving = [
        b
        for b, norm in enumerate(norms)
        if norm is not None and moves(norm) and runs[plan.norm_ops[b]]
    ]
    if moving:
        rows = slice(None) if len(moving) == len(norms) else moving
        update_running_statistics(
            [cast(nn.BatchNorm2d, norms[b]) for b in moving],
            mean[0, rows],
            var[0, rows],
            output.numel() // output.shape[1],
        )
    return output


def run_preprocess(module: nn.Module, x: Tensor, *, by_structure: bool = False) -> Tensor:
    """module(x); a `ReLUConvBN` or `FactorizedReduce` as one native call where it says the same."""
    found = native_preprocess(module, x, by_structure=by_structure) if runs_native(x) else None
    if found is None:
        return cast(Tensor, module(x))
    out, norm = found
    if moves(norm):
        count = out.output.numel() // out.output.shape[1]
        update_running_statistics([norm], out.mean, out.var, count)
    return out.output


def native_preprocess(
    module: nn.Module, x: Tensor, *, groups: int = 1, by_structure: bool = False
) -> tuple[ReluConvNorm, nn.BatchNorm2d] | None:
    """A `ReLUConvBN` or `FactorizedReduce` as one native call and the norm in it, whose running
    statistics stay; None where only the module says what it computes.
    """
    parts = describe(module, by_structure=by_structure)
    if (
        parts is None
        or parts.kind not in ("dense", "factorized_reduce")
        or (parts.kind == "factorized_reduce" and (x.shape[2] % 2 or x.shape[3] % 2))
        or any(has_hooks(part) for part in module.modules())
    ):
        return None
    norm = cast(nn.BatchNorm2d, parts.norms[0])
    kind = norm_kind(norm)
    running = kind == "running"
    out = relu_conv_norm(
        x,
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
    return out, norm


@dataclass(frozen=True)
class NormArguments:
    """What a native cell takes of its norms, in their order; [] where none of them has any."""

    gammas: list[Tensor]
    betas: list[Tensor]
    running_means: list[Tensor]
    running_vars: list[Tensor]
    kinds: list[int]
    eps: list[float]


def norm_arguments(norms: Sequence[nn.BatchNorm2d | None], like: Tensor) -> NormArguments:
    """The norms as the native op takes them. Args: like, of the dtype and device of the maps."""
    kinds = [NORM_NONE if norm is None else _number(norm) for norm in norms]
    return NormArguments(
        _affine(norms, "weight", like),
        _affine(norms, "bias", like),
        _running(norms, kinds, "running_mean", like),
        _running(norms, kinds, "running_var", like),
        kinds,
        [0.0 if norm is None else norm.eps for norm in norms],
    )


def _number(norm: nn.BatchNorm2d) -> int:
    """`norm_kind` as the number of the native ops."""
    batch = norm.training or norm._buffers["running_mean"] is None
    return NORM_BATCH if batch else NORM_RUNNING


def _affine(norms: Sequence[nn.BatchNorm2d | None], name: str, like: Tensor) -> list[Tensor]:
    """The parameter `name` of every norm, empty tensors for those without; [] if all are."""
    values = [None if norm is None else norm._parameters[name] for norm in norms]
    return _filled(values, like)


def _running(
    norms: Sequence[nn.BatchNorm2d | None], kinds: Sequence[int], name: str, like: Tensor
) -> list[Tensor]:
    """The statistic `name` of every norm that uses it, as `_affine`."""
    if NORM_RUNNING not in kinds:
        return []
    values = [
        norm._buffers[name] if norm is not None and kind == NORM_RUNNING else None
        for norm, kind in zip(norms, kinds, strict=True)
    ]
    return _filled(values, like)


def _filled(values: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    if all(value is None for value in values):
        return []
    empty = like.new_empty(0)
    return [empty if value is None else value for value in values]


def _attached(
    tensors: Sequence[Tensor], owners: Sequence[int], live: Sequence[bool]
) -> list[Tensor]:
    """Parameters of operations that are not live without their history: they get no gradient."""
    return [
        tensor if live[k] else tensor.detach() for tensor, k in zip(tensors, owners, strict=True)
    ]

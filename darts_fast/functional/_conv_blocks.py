# SPDX-License-Identifier: Apache-2.0
"""conv_blocks with named arguments and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from darts_fast import _ops, reference
from darts_fast.backend import backend
from darts_fast.functional import _library
from darts_fast.functional._norms import _NORMS


class ConvBlocks(NamedTuple):
    """What `conv_blocks` returns."""

    outputs: list[Tensor]
    """[groups * N, C', H', W'] per branch, channels_last, before the branch's own batch norm."""
    mean: Tensor
    """[groups, B, C'] of the outputs; not differentiable."""
    var: Tensor
    """[groups, B, C'], biased; not differentiable."""


def conv_blocks(
    inputs: Sequence[Tensor],
    depthwise: Sequence[Tensor | None],
    pointwise: Sequence[Tensor],
    *,
    sources: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    stride: int = 1,
    norm: str = "none",
    mean: Tensor | None = None,
    var: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    groups: int = 1,
    active: Tensor | None = None,
) -> ConvBlocks:
    """Many blocks ``[BatchNorm ->] ReLU -> depthwise -> pointwise`` at once, with output moments.

    Equivalent to, for every branch b::

        x = inputs[sources[b]].relu()   # of its batch norm, where there is one
        x = conv2d(x, depthwise[b], stride=stride, padding="same", dilation=d, groups=C)
        outputs[b] = conv2d(x, pointwise[b])

    An image of an input is read once for all its branches and no map between the two convolutions
    is stored; backward computes the depthwise maps again. On a CUDA device outputs of more than 64
    channels are by PyTorch's own convolutions, which store those maps. These blocks are the
    separable and dilated convolutions of DARTS (arXiv 1806.09055, section 3.1).

    Args:
        inputs: S tensors of one shape [groups * N, C, H, W], float32 or float64 (lower precisions
            under autocast), any strides. Under autocast everything is computed in float32; on a
            CUDA device maps are read and stored in autocast's dtype, float16 or bfloat16, and all
            matrix products are made of it, sums in float32.
        depthwise: B weights [C, 1, k, k] with k = 3, 5 or 7; None leaves the convolution out.
        pointwise: B weights [C', C, 1, 1].
        sources: the input of each branch, default branch b reads input b.
        dilations: of each depthwise convolution, default 1.
        stride: of all depthwise convolutions, 1 or 2 (sizes round up).
        norm: "none", "batch" or "running": the batch norm in front of the ReLU of every input.
        mean: [S, groups, C], subtracted by the norm. For "batch" it must be the inputs' own mean,
            as the call that made them returned it: the gradient takes it as a function of them.
        var: [S, groups, C], biased; as `mean`.
        gamma: [S, C] or None.
        beta: [S, C] or None.
        eps: added to the variance.
        groups: masked variants stacked along the batch, each with its own statistics.
        active: bool [groups, B] on the CPU or None for all. A branch that is not active is not
            computed: its output is 0, its mean and var are 0 and 1, its gradients 0.

    Raises:
        ValueError: shapes, lengths or settings that do not fit.
        TypeError: dtypes that differ.
        NotImplementedError: a dtype without kernels.
    """
    branches = len(pointwise)
    if not inputs or not branches:
        raise ValueError(
            f"conv_blocks: needs inputs and branches, got {len(inputs)} and {branches}"
        )
    given_sources = list(range(branches)) if sources is None else list(sources)
    given_dilations = [1] * branches if dilations is None else list(dilations)
    lengths = (len(depthwise), len(given_sources), len(given_dilations))
    if lengths != (branches,) * 3:
        raise ValueError(
            "conv_blocks: depthwise, sources and dilations must have one entry per branch, "
            f"got {', '.join(map(str, lengths))} for {branches} branches"
        )
    if norm not in _NORMS:
        raise ValueError(f"conv_blocks: norm must be batch, running or none, got {norm!r}")
    if backend() != "fused":
        op = reference.conv_blocks
    elif _library.is_for_library(inputs[0], pointwise[0].shape[0]):
        op = _library.conv_blocks
    else:
        op = _ops.conv_blocks
    empty = pointwise[0].new_empty(0)
    return ConvBlocks(
        *op(
            list(inputs),
            mean,
            var,
            gamma,
            beta,
            _NORMS[norm],
            float(eps),
            given_sources,
            [empty if weight is None else weight for weight in depthwise],
            list(pointwise),
            given_dilations,
            stride,
            groups,
            active,
        )
    )

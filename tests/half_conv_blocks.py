# SPDX-License-Identifier: Apache-2.0
"""conv_blocks with maps of 16 bits: cases, results, and the truth of what is rounded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_conv_blocks import Case, op_arguments
from test_mixed_cell_cuda_half import Product, rounds_factors
from torch import Tensor

from darts_fast.reference import _layers


class Behind(torch.autograd.Function):
    """A map as it is; its gradient as it is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).to(grad.dtype), None


@contextmanager
def rounding(dtype: torch.dtype) -> Iterator[None]:
    """`reference` rounds both factors of products, and the gradient in front of a norm."""
    normalise = _layers.normalise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_layers, "normalise", lambda *a: Behind.apply(normalise(*a), dtype))
        if rounds_factors(dtype):
            patch.setattr(_layers, "pointwise", lambda x, weight: Product.apply(x, weight, dtype))
        yield


def halved(case: Case, dtype: torch.dtype) -> Case:
    """The case in float32 with inputs of this dtype."""
    single = case.to(torch.float32)
    low = replace(single, inputs=[x.detach().to(dtype).requires_grad_() for x in single.inputs])
    mean, var = low.to(torch.float64).statistics()
    return low if mean is None or var is None else replace(low, fixed=(mean.float(), var.float()))


def arguments_of(case: Case) -> tuple[Any, ...]:
    """Of the native op and of `reference`; statistics in the parameters' dtype."""
    inputs, mean, var, *rest = op_arguments(case)
    like = case.pointwise[0].dtype
    return (inputs, *(None if v is None else v.to(like) for v in (mean, var)), *rest)


def results(case: Case, call: Any) -> dict[str, Tensor]:
    """Values and gradients of the native op or of `reference`, each in the dtype it must have."""
    outputs, mean, var = call(*arguments_of(case))
    generator = torch.Generator().manual_seed(99)
    grads = [
        torch.randn(y.shape, dtype=torch.float64, generator=generator).bfloat16().half().to(y.dtype)
        for y in outputs
    ]
    found = torch.autograd.grad(outputs, case.leaves, grads)
    for y in outputs:
        assert y.dtype == case.inputs[0].dtype
    assert mean.dtype == var.dtype == case.pointwise[0].dtype
    for leaf, grad in zip(case.leaves, found, strict=True):
        assert grad.dtype == leaf.dtype
    named = {f"output {b}": y.detach() for b, y in enumerate(outputs)}
    return {**named, "mean": mean, "var": var, **{f"gradient {i}": g for i, g in enumerate(found)}}

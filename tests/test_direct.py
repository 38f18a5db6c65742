# SPDX-License-Identifier: Apache-2.0
"""Direct calls of an op against calls of the registered op: values, gradients, what has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darts_fast import _ops, reference

CALLS = (_ops.relu_conv_norm, _ops.call_relu_conv_norm)


def arguments(*, affine: bool = True, dtype: torch.dtype = torch.float64) -> list:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    scale = [draw(6), draw(6)] if affine else [None, None]
    halves = [draw(3, 4, 1, 1), draw(3, 4, 1, 1)]
    return [draw(2, 4, 6, 4), halves, *scale, None, None, reference.NORM_BATCH, 1e-5, 2, 1]


def gradients(call, given: list, **options):
    output, *rest = call(*given)
    assert not any(x.requires_grad for x in rest)
    leaves = [x for x in (given[0], *given[1], *given[2:4]) if x is not None and x.requires_grad]
    return torch.autograd.grad(output.square().sum(), leaves, **options)


@pytest.mark.parametrize("affine", [False, True])
def test_the_same_gradients(affine):
    given = arguments(affine=affine)
    given[1][0] = given[1][0].detach()
    registered, direct = (gradients(call, given) for call in CALLS)
    assert len(registered) == (4 if affine else 2)
    for one, other in zip(registered, direct, strict=True):
        assert torch.equal(one, other)


def test_the_same_second_derivative():
    given = arguments()

    def second(call) -> Tensor:
        grads = gradients(call, given, create_graph=True)
        norm = sum((grad**2).sum() for grad in grads)
        return torch.autograd.grad(norm, given[0])[0]

    torch.testing.assert_close(second(CALLS[1]), second(CALLS[0]), rtol=0, atol=0)


def test_a_call_without_gradients_has_no_history():
    given = arguments(affine=False)
    with torch.no_grad():
        assert not _ops.call_relu_conv_norm(*given)[0].requires_grad
    given[0], given[1] = given[0].detach(), [x.detach() for x in given[1]]
    assert not _ops.call_relu_conv_norm(*given)[0].requires_grad


def test_modes_and_autocast_see_the_registered_op():
    given = arguments()

    def total(x: Tensor) -> Tensor:
        return _ops.call_relu_conv_norm(x, *given[1:])[0].sum()

    graph = torch.fx.experimental.proxy_tensor.make_fx(total)(given[0].detach())
    assert "darts_fast.relu_conv_norm" in graph.code
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _ops.call_relu_conv_norm(*arguments(dtype=torch.float32))[0]
    assert out.requires_grad
    assert out.dtype == torch.bfloat16

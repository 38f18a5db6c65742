# SPDX-License-Identifier: Apache-2.0
"""Gradients of the registered relu_conv_norm against autograd through the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from darts_fast import _ops, reference

CALLS = (_ops.relu_conv_norm, reference.relu_conv_norm)


def arguments(*, affine: tuple[bool, bool] = (True, True), dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    scale = [draw(6) if given else None for given in affine]
    halves = [draw(3, 4, 1, 1), draw(3, 4, 1, 1)]
    return [draw(2, 4, 6, 4), halves, *scale, None, None, reference.NORM_BATCH, 1e-5, 2, 1]


def gradients(call, given: list, **options):
    output = call(*given)[0]
    leaves = [x for x in (given[0], *given[1], *given[2:4]) if x is not None and x.requires_grad]
    return torch.autograd.grad(output.square().mul(0.3).exp().sum(), leaves, **options)


@pytest.mark.parametrize("affine", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_gradients_of_what_asks_for_one(affine, frozen):
    given = arguments(affine=affine)
    if frozen is not None:
        given[1][frozen] = given[1][frozen].detach()
    native, plain = (gradients(call, given) for call in CALLS)
    assert len(native) == 3 + sum(affine) - (frozen is not None)
    torch.testing.assert_close(native, plain)


def test_second_derivative():
    given = arguments()

    def second(call) -> Tensor:
        grads = gradients(call, given, create_graph=True)
        norm = sum((grad**2).sum() for grad in grads)
        return torch.autograd.grad(norm, given[0])[0]

    torch.testing.assert_close(*map(second, CALLS))


def test_only_the_output_has_a_history():
    given = arguments()
    output, *rest = _ops.relu_conv_norm(*given)
    assert output.requires_grad
    assert not any(x.requires_grad for x in rest)
    with torch.no_grad():
        assert not _ops.relu_conv_norm(*given)[0].requires_grad
    given = arguments(affine=(False, False))
    given[0], given[1] = given[0].detach(), [x.detach() for x in given[1]]
    assert not _ops.relu_conv_norm(*given)[0].requires_grad


def test_a_forward_derivative_is_refused():
    given = arguments(affine=(False, False))
    with torch.autograd.forward_ad.dual_level():
        given[0] = torch.autograd.forward_ad.make_dual(given[0].detach(), given[0].detach())
        with pytest.raises(RuntimeError):
            _ops.relu_conv_norm(*given)


def test_tracers_see_the_op_and_autocast_makes_bfloat16():
    given = arguments()

    def total(x: Tensor) -> Tensor:
        return _ops.relu_conv_norm(x, *given[1:])[0].sum()

    graph = torch.fx.experimental.proxy_tensor.make_fx(total)(given[0].detach())
    assert "darts_fast.relu_conv_norm" in graph.code
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _ops.relu_conv_norm(*arguments(dtype=torch.float32))[0]
    assert out.requires_grad
    assert out.dtype == torch.bfloat16

# SPDX-License-Identifier: Apache-2.0
"""Direct calls of an op against calls of the registered op: values, gradients, what has none."""

from __future__ import annotations

import pytest
import torch
from cell_cases import DARTS, make_case
from test_mixed_cell_contract import op_arguments
from torch import Tensor

from darts_fast import _ops

CALLS = (_ops.mixed_cell, _ops.call_mixed_cell)


def gradients(call, case, **options):
    output, *rest = call(*op_arguments(case), True)
    assert not any(x.requires_grad for x in rest)
    leaves = [x for x in case.leaves if x.requires_grad]
    return torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, **options)


@pytest.mark.parametrize("masked", [False, True])
def test_the_same_gradients_and_the_same_none(masked):
    case = make_case(DARTS, inputs=2, nodes=2, multiplier=2, masked=masked, affine=True)
    case.weights = case.weights.detach()
    registered, direct = (gradients(call, case) for call in CALLS)
    assert len(registered) > 20
    assert masked == any(x is None for x in registered)
    for one, other in zip(registered, direct, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_the_same_second_derivative():
    case = make_case(("max_pool", "dil_3", "identity"))

    def second(call) -> Tensor:
        grads = gradients(call, case, create_graph=True)
        norm = sum((grad**2).sum() for grad in grads)
        return torch.autograd.grad(norm, case.states)[0]

    torch.testing.assert_close(second(CALLS[1]), second(CALLS[0]), rtol=0, atol=0)


def test_a_call_without_gradients_has_no_history():
    case = make_case(("identity",))
    with torch.no_grad():
        assert not _ops.call_mixed_cell(*op_arguments(case), False)[0].requires_grad
    detached = case.map(lambda x: x.detach(), lambda x: x)
    assert not _ops.call_mixed_cell(*op_arguments(detached), False)[0].requires_grad


def test_modes_and_autocast_see_the_registered_op():
    case = make_case(("identity", "dil_3"))
    arguments = op_arguments(case)

    def total(weights: Tensor) -> Tensor:
        return _ops.call_mixed_cell(arguments[0], weights, *arguments[2:], True)[0].sum()

    graph = torch.fx.experimental.proxy_tensor.make_fx(total)(case.weights.detach())
    assert "darts_fast.mixed_cell" in graph.code
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = _ops.call_mixed_cell(*op_arguments(case.to(torch.float32)), True)[0]
    assert out.requires_grad

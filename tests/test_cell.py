# SPDX-License-Identifier: Apache-2.0
"""MixedOp and Cell: value, the two rules for weights of 0, drop-path, errors."""

from __future__ import annotations

import plain_darts
import pytest
import torch
from torch import Tensor, nn

from darts_fast.nn import Cell, MixedOp
from darts_fast.nn.operations import drop_path
from darts_fast.spaces import DARTS_PRIMITIVES, get_space


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax_weights(*shape: int) -> Tensor:
    return images(*shape, seed=2).softmax(-1)


def mixed_op(stride: int, zero: str) -> MixedOp:
    torch.manual_seed(0)
    return MixedOp(4, stride, DARTS_PRIMITIVES, zero=zero).double()


def cell(space: str, reduction: bool, zero: str | None = None) -> Cell:
    torch.manual_seed(0)
    spec = get_space(space)
    return Cell(
        4,
        4,
        6,
        10,
        4,
        reduction,
        True,
        primitives=spec.primitives["reduce" if reduction else "normal"],
        zero=zero or spec.zero_rule,
    ).double()


@pytest.mark.parametrize("zero", ["multiply", "skip"])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_op_equals_formula(stride: int, zero: str) -> None:
    op = mixed_op(stride, zero)
    x, weights = images(3, 4, 6, 8), softmax_weights(8)
    weights[[1, 5]] = 0.0
    expected = plain_darts.mixed(op.state_dict(), "", DARTS_PRIMITIVES, x, stride, weights)
    torch.testing.assert_close(op(x, weights), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_skip_leaves_an_op_of_weight_zero_alone(stride: int) -> None:
    op = mixed_op(stride, "skip")
    weights = softmax_weights(8)
    weights[4] = 0.0
    weights.requires_grad_()
    op(images(3, 4, 6, 8), weights).square().sum().backward()
    assert all(p.grad is None for p in op._ops[4].parameters())
    assert all(p.grad is not None for i in (5, 6, 7) for p in op._ops[i].parameters())
    assert op._ops[4].op[3].num_batches_tracked == 0
    assert op._ops[4].op[3].running_mean.count_nonzero() == 0
    assert op._ops[5].op[3].num_batches_tracked == 1
    assert weights.grad is not None
    assert weights.grad[4] == 0
    assert weights.grad[5] != 0


@pytest.mark.parametrize("stride", [1, 2])
def test_multiply_runs_an_op_of_weight_zero(stride: int) -> None:
    op = mixed_op(stride, "multiply")
    weights = softmax_weights(8)
    weights[4] = 0.0
    weights.requires_grad_()
    op(images(3, 4, 6, 8), weights).square().sum().backward()
    assert all(p.grad is not None for p in op._ops[4].parameters())
    assert all(p.grad.count_nonzero() == 0 for p in op._ops[4].parameters())
    assert op._ops[4].op[3].num_batches_tracked == 1
    assert weights.grad is not None
    assert weights.grad[4] != 0


def test_multiply_lets_infinity_through_and_skip_does_not() -> None:
    x = images(2, 4, 4, 4)
    x[0, 0, 0, 0] = float("inf")
    weights = torch.zeros(2, dtype=torch.float64)
    names = ("none", "skip_connect")
    assert MixedOp(4, 1, names, zero="multiply")(x, weights).isnan().any()
    assert MixedOp(4, 1, names, zero="skip")(x, weights).count_nonzero() == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_a_row_of_zeros_under_skip(stride: int) -> None:
    op = mixed_op(stride, "skip")
    x = images(2, 4, 7, 8)
    out = op(x, torch.zeros(8, dtype=torch.float64))
    assert out.shape == x[:, :, ::stride, ::stride].shape
    assert out.dtype == x.dtype
    assert out.count_nonzero() == 0
    assert all(buffer == 0 for name, buffer in op.named_buffers() if name.endswith("tracked"))


def test_a_weight_of_nan_is_not_zero() -> None:
    weights = softmax_weights(8)
    weights[3] = float("nan")
    assert mixed_op(1, "skip")(images(2, 4, 4, 4), weights).isnan().all()


def test_pools_of_a_supernet_have_a_batch_norm() -> None:
    op = mixed_op(1, "skip")
    for index in (1, 2):
        assert isinstance(op._ops[index][1], nn.BatchNorm2d)
        assert not op._ops[index][1].affine


@pytest.mark.parametrize("space", ["darts", "s1", "s2", "s3", "s5"])
@pytest.mark.parametrize("reduction", [False, True])
def test_cell_equals_formula(space: str, reduction: bool) -> None:
    net = cell(space, reduction)
    s0, s1 = images(2, 6, 16, 8), images(2, 10, 8, 4, seed=3)
    weights = softmax_weights(14, get_space(space).num_ops)
    expected = plain_darts.cell(net.state_dict(), "", s0, s1, net.primitives, weights, reduction)
    assert expected.shape == ((2, 16, 4, 2) if reduction else (2, 16, 8, 4))
    torch.testing.assert_close(net(s0, s1, weights), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reduction", [False, True])
def test_cell_of_zeros_under_skip(reduction: bool) -> None:
    net = cell("s5", reduction)
    out = net(images(2, 6, 16, 8), images(2, 10, 8, 4), torch.zeros(14, 7, dtype=torch.float64))
    assert out.shape == ((2, 16, 4, 2) if reduction else (2, 16, 8, 4))
    assert out.count_nonzero() == 0


def test_drop_path_acts_on_every_edge_in_order_and_in_training_only() -> None:
    net = cell("s2", False)
    s0, s1 = images(6, 6, 8, 8), images(6, 10, 4, 4, seed=3)
    weights = softmax_weights(14, 2)
    torch.manual_seed(5)
    out = net(s0, s1, weights, 0.4)
    states = [net.preprocess0(s0), net.preprocess1(s1)]
    torch.manual_seed(5)
    edge = 0
    for node in range(2, 6):
        total = torch.zeros(())
        for source in range(node):
            total = total + drop_path(net._ops[edge](states[source], weights[edge]), 0.4)
            edge += 1
        states.append(total)
    torch.testing.assert_close(out, torch.cat(states[2:], 1))
    assert not torch.allclose(out, net(s0, s1, weights))
    net.eval()
    assert torch.equal(net(s0, s1, weights, 0.4), net(s0, s1, weights))


def test_a_cell_may_concatenate_fewer_nodes() -> None:
    torch.manual_seed(0)
    names = [DARTS_PRIMITIVES] * 9
    net = Cell(3, 2, 6, 10, 4, False, False, primitives=names, zero="skip").double()
    out = net(images(2, 6, 4, 4), images(2, 10, 4, 4), softmax_weights(9, 8))
    assert out.shape == (2, 8, 4, 4)


def test_mixed_op_errors() -> None:
    op = mixed_op(1, "skip")
    x = images(2, 4, 4, 4)
    with pytest.raises(ValueError, match=r"MixedOp: weights must have one entry per op.*\[3\]"):
        op(x, torch.ones(3))
    with pytest.raises(TypeError, match="MixedOp: weights must be a tensor, got list"):
        op(x, [0.125] * 8)
    with pytest.raises(ValueError, match=r"primitives must be names of none.* got \['conv'\]"):
        MixedOp(4, 1, ["conv"])
    with pytest.raises(ValueError, match=r"primitives must be names of .* got \[\]"):
        MixedOp(4, 1, [])
    with pytest.raises(ValueError, match="MixedOp: stride must be 1 or 2, got 3"):
        MixedOp(4, 3, ["none"])
    with pytest.raises(ValueError, match="MixedOp: zero must be one of multiply, skip, got 'no'"):
        MixedOp(4, 1, ["none"], zero="no")


def test_cell_errors() -> None:
    def build(steps: int, multiplier: int, lists: int, zero: str = "skip") -> Cell:
        names = [DARTS_PRIMITIVES] * lists
        return Cell(steps, multiplier, 4, 4, 4, False, False, primitives=names, zero=zero)

    with pytest.raises(ValueError, match="multiplier must be 1 to steps, got multiplier=3, steps"):
        build(2, 3, 5)
    with pytest.raises(ValueError, match="one list per edge, got 14 lists for 5 edges"):
        build(2, 2, 14)
    with pytest.raises(ValueError, match="Cell: zero must be one of multiply, skip, got 'device'"):
        build(2, 2, 5, "device")
    net = build(2, 2, 5).double()
    with pytest.raises(ValueError, match=r"Cell: weights must have .*\[5, 8\], got \[14, 8\]"):
        net(images(2, 4, 4, 4), images(2, 4, 4, 4), torch.ones(14, 8))

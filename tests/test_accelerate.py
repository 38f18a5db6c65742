# SPDX-License-Identifier: Apache-2.0
"""accelerate on supernets of other code bases: the same results, and its limits."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from native_calls import observed
from originals import darts, darts_pt, nasbench201
from originals.operations import PRIMITIVES
from torch import Tensor, nn

import darts_fast
from darts_fast.nn import build_supernet

RULES = ("multiply", "skip")


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Network(darts_pt.Network):
    """One table for all cells may be given with the images."""

    def forward(self, input, weights=None):  # type: ignore[no-untyped-def]
        tables = None if weights is None else {"normal": weights, "reduce": weights}
        return super().forward(input, tables)


class MultiplyNetwork(Network):
    """Cells of quark0/darts, which have no drop-path."""

    cell = darts.Cell

    def run_cell(self, cell, s0, s1, table):  # type: ignore[no-untyped-def]
        return cell(s0, s1, table)


NETWORKS = {"multiply": MultiplyNetwork, "skip": Network}


def network(zero: str, cell: type[darts.Cell] | None = None, steps: int = 2) -> darts.Network:
    torch.manual_seed(0)
    kind = NETWORKS[zero]
    if cell is not None:
        kind = type(kind.__name__, (kind,), {"cell": cell})
    return kind(2, 5, 3, steps=steps, multiplier=steps, names=PRIMITIVES).double()


def table(kind: str, edges: int = 5) -> Tensor:
    weights = images(edges, 8, seed=2).softmax(-1)
    if kind == "zeros":
        weights[torch.rand(edges, 8, generator=torch.Generator().manual_seed(3)) < 0.4] = 0.0
        weights[:, 4] = 0.1
        weights[3, 5:] = 0.0
    elif kind == "one-hot":
        weights = torch.eye(8, dtype=torch.float64)[torch.arange(edges) + 3]
    return weights.requires_grad_()


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """Grows by one number, its count of operations, for every call of the native op."""
    widths: list[int] = []
    with observed("mixed_cell", lambda _, states, weights, *rest: widths.append(weights.numel())):
        yield widths


def assert_same(actual: nn.Module, expected: nn.Module, *inputs: Tensor) -> None:
    """Both modules give the same output, gradients and buffers; both are changed by the run."""
    outputs = []
    for module in (actual, expected):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = module(*leaves)
        (out * images(*out.shape, seed=5)).sum().backward()
        outputs.append([out, *(leaf.grad for leaf in leaves)])
    for mine, other in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
    gradients = dict(expected.named_parameters())
    assert {name for name, _ in actual.named_parameters()} == {*gradients}
    for name, parameter in actual.named_parameters():
        other = gradients[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            torch.testing.assert_close(parameter.grad, other, rtol=1e-8, atol=1e-9, msg=name)
    assert [*actual.state_dict()] == [*expected.state_dict()]
    for (name, mine), other in zip(actual.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kind", "steps"), [("softmax", 4), ("softmax", 2), ("zeros", 2), ("one-hot", 2)]
)
@pytest.mark.parametrize("zero", RULES)
def test_a_network_computes_the_same(
    zero: str, kind: str, steps: int, training: bool, calls: list[int]
) -> None:
    net = network(zero, steps=steps)
    plain = copy.deepcopy(net)
    keys = [*net.state_dict()]
    assert darts_fast.accelerate(net) is net
    assert [*net.state_dict()] == keys
    assert darts_fast.accelerated(net) == dict.fromkeys(["cells.0", "cells.1", "cells.2"], zero)
    net.train(training)
    plain.train(training)
    calls.clear()
    edges = steps * (steps + 3) // 2
    assert_same(net, plain, images(3, 3, 8, 12), table(kind, edges))
    assert calls == [edges * 8] * 3


@pytest.mark.parametrize("zero", RULES)
def test_the_architecture_gradient_is_the_same(zero: str) -> None:
    """The alphas of the originals are no parameters; the weights are frozen in this step."""
    net, x = network(zero), images(2, 3, 8, 8)
    net.requires_grad_(False)
    grads = []
    for _ in range(2):
        net(x).square().sum().backward()
        grads.append([net.alphas_normal.grad, net.alphas_reduce.grad])
        net.alphas_normal.grad = net.alphas_reduce.grad = None
        darts_fast.accelerate(net)
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_three_steps_of_training() -> None:
    nets = [network("skip"), darts_fast.accelerate(network("skip"))]
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
        for step in range(3):
            optimizer.zero_grad()
            net(images(4, 3, 8, 8, seed=step), table("zeros")).square().mean().backward()
            optimizer.step()
    for (name, mine), other in zip(
        nets[1].state_dict().items(), nets[0].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-8, msg=name)


@pytest.mark.parametrize("affine", [False, True])
def test_a_cell_of_nasbench201(affine: bool, calls: list[int]) -> None:
    torch.manual_seed(0)
    cell = nasbench201.NAS201SearchCell(4, 4, 1, 4).double()
    if affine:
        for part in [*cell.modules()]:
            if isinstance(part, nasbench201.ReLUConvBN):
                part.op[2] = nn.BatchNorm2d(4).double()
                nn.init.normal_(part.op[2].weight)
    plain = copy.deepcopy(cell)
    darts_fast.accelerate(cell)
    assert darts_fast.accelerated(cell) == {"": "multiply"}
    calls.clear()
    weights = images(6, 5, seed=2)
    weights[1] = 0.0
    assert_same(cell, plain, images(2, 4, 7, 5), weights)
    assert calls == [30]


class HalvingCell(darts_pt.Cell):
    def forward(self, s0, s1, weights, drop_prob=0.0):  # type: ignore[no-untyped-def]
        return 0.5 * super().forward(s0, s1, weights, drop_prob)


class StraightThroughCell(darts.Cell):
    """The same values with other gradients."""

    def forward(self, s0, s1, weights):  # type: ignore[no-untyped-def]
        return super().forward(s0, s1, weights.detach()) + 0.0 * weights.sum()


class ThresholdMixedOp(darts.MixedOp):
    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return sum(w * op(x) for w, op in zip(weights, self._ops, strict=True) if w > 0.01)


class ThresholdCell(darts.Cell):
    mixed_op = ThresholdMixedOp


class SteepMixedOp(darts.MixedOp):
    """The same until it is told otherwise."""

    slope = 1

    def forward(self, x, weights):  # type: ignore[no-untyped-def]
        return self.slope * super().forward(x, weights)


class SteepCell(darts.Cell):
    mixed_op = SteepMixedOp


@pytest.mark.parametrize("cell", [HalvingCell, StraightThroughCell])
def test_a_cell_with_another_forward_has_its_mixed_operations_replaced(
    cell: type[darts.Cell], calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    zero = "skip" if cell is HalvingCell else "multiply"
    net = network(zero, cell=cell)
    plain = copy.deepcopy(net)
    with caplog.at_level(logging.WARNING):
        darts_fast.accelerate(net)
    assert "accelerate: 3 modules left alone (cells.0, ...)" in caplog.text
    edges = [f"cells.{cell}._ops.{edge}" for cell in range(3) for edge in range(5)]
    assert darts_fast.accelerated(net) == dict.fromkeys(edges, zero)
    calls.clear()
    assert_same(net, plain, images(2, 3, 8, 8), table("zeros"))
    assert calls == [8] * 15


def cell_of(kind: type[darts.Cell], *names: str) -> darts.Cell:
    return kind(2, 2, 6, 6, 4, False, False, names=names or PRIMITIVES)


@pytest.mark.parametrize(
    "build",
    [
        lambda: cell_of(ThresholdCell),
        lambda: cell_of(darts_pt.Cell, "noise", "sep_conv_3x3_skip"),
        lambda: cell_of(darts.Cell, "sep_conv_3x3"),
    ],
    ids=["threshold", "unknown", "one"],
)
def test_what_computes_something_else_is_left_alone(
    build: Callable[[], darts.Cell], calls: list[int]
) -> None:
    cell = build()
    before = [vars(module).copy() for module in cell.modules()]
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"accelerate: model must have .* got none in \w*Cell"):
        darts_fast.accelerate(cell)
    assert torch.equal(torch.get_rng_state(), state)
    assert [vars(module) for module in cell.modules()] == before
    calls.clear()
    cell(torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8), torch.rand(5, len(cell._ops[0]._ops)))
    assert not calls


def test_an_attribute_that_changes_is_noticed(calls: list[int]) -> None:
    net = network("multiply", cell=SteepCell)
    darts_fast.accelerate(net)
    assert len(darts_fast.accelerated(net)) == 3
    net.cells[1]._ops[1].slope = 3
    plain = darts_fast.restore(copy.deepcopy(net))
    calls.clear()
    assert_same(net, plain, images(2, 3, 8, 8), table("softmax"))
    assert sorted(calls) == [8] * 4 + [40] * 2


def test_drop_path_runs_the_own_forward_of_cells(calls: list[int]) -> None:
    net = network("skip")
    plain = copy.deepcopy(net)
    darts_fast.accelerate(net)
    calls.clear()
    net.drop_path_prob = plain.drop_path_prob = 0.3
    for module in (net, plain):
        torch.manual_seed(0)
        module.result = module(images(4, 3, 8, 8))
    torch.testing.assert_close(net.result, plain.result, rtol=1e-9, atol=1e-9)
    assert calls == [8] * 15
    calls.clear()
    cell, maps, weights = net.cells[0], [images(2, 6, 8, 8)] * 2, table("softmax")
    cell(*maps, weights=weights, drop_prob=0)
    assert len(calls) == 1
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        cell(*maps, weights, other=1)


@pytest.mark.parametrize("where", ["op", "norm", "edge", "preprocess"])
def test_hooks_run(where: str, calls: list[int]) -> None:
    net = darts_fast.accelerate(network("multiply"))
    cell = net.cells[1]
    module = {
        "op": cell._ops[2]._ops[4],
        "norm": cell._ops[2]._ops[4].op[3],
        "edge": cell._ops[2],
        "preprocess": cell.preprocess0,
    }[where]
    x = images(2, 3, 8, 8)
    calls.clear()
    handle = module.register_forward_hook(lambda module, args, out: out + 1)
    shifted = net(x)
    inside = where in ("op", "norm")  # that operation runs as its module, the others are fused
    assert calls == [40, 8, 8, 7 if inside else 8, 8, 8, 40]
    torch.testing.assert_close(shifted, darts_fast.restore(copy.deepcopy(net))(x))
    handle.remove()
    calls.clear()
    assert not torch.allclose(net(x), shifted)
    assert calls == [40] * 3


def test_a_hook_on_the_cell_itself_runs(calls: list[int]) -> None:
    net = darts_fast.accelerate(network("multiply"))
    calls.clear()
    seen: list[torch.Size] = []
    net.cells[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    net(images(2, 3, 8, 8))
    assert seen == [(2, 4, 8, 8)]
    assert len(calls) == 3


def test_a_replaced_submodule_is_noticed(calls: list[int]) -> None:
    net = darts_fast.accelerate(network("multiply"))
    net.cells[0]._ops[3]._ops[4].op[0] = nn.ReLU6()
    net.cells[1]._ops[0] = darts.MixedOp(4, 2, PRIMITIVES).double()
    plain = darts_fast.restore(copy.deepcopy(net))
    calls.clear()
    assert_same(net, plain, images(2, 3, 8, 8), table("softmax"))
    assert calls == [8] * 8 + [40]
    darts_fast.accelerate(net)
    assert {*darts_fast.accelerated(net)} == {
        *("cells.1", "cells.2"),
        *(f"cells.0._ops.{edge}" for edge in range(5)),
    }
    calls.clear()
    assert_same(net, plain, images(2, 3, 8, 8), table("softmax"))
    assert calls == [8, 8, 8, 7, 8, 40, 40]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_uses_its_own_parameters(
    copied: Callable[[nn.Module], nn.Module], calls: list[int]
) -> None:
    net = network("skip")
    darts_fast.accelerate(net)
    other = copied(net)
    assert darts_fast.accelerated(other) == darts_fast.accelerated(net)
    x, before = images(2, 3, 8, 8), net(images(2, 3, 8, 8)).detach()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    plain = darts_fast.restore(copy.deepcopy(other))
    assert not darts_fast.accelerated(plain)
    assert darts_fast.accelerated(other)
    calls.clear()
    assert_same(other, plain, x, table("softmax"))
    assert len(calls) == 3
    torch.testing.assert_close(net(x), before)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_restore_leaves_no_trace(calls: list[int]) -> None:
    net = network("multiply")
    before = [vars(module).copy() for module in net.modules()]
    darts_fast.accelerate(net)
    assert darts_fast.restore(net) is net
    assert [vars(module) for module in net.modules()] == before
    calls.clear()
    net(images(2, 3, 8, 8))
    assert not calls
    assert not darts_fast.accelerated(net)
    darts_fast.restore(net)


def test_accelerate_changes_no_value_and_a_second_call_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network("multiply")
    net.cells[0].eval()
    net.cells[1].requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    darts_fast.accelerate(net)
    forwards = [vars(cell)["forward"] for cell in net.cells]
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("proven again"))
    darts_fast.accelerate(net)
    assert [vars(cell)["forward"] for cell in net.cells] == forwards
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags
    assert all(not parameter.requires_grad for parameter in net.cells[1].parameters())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_forward_that_the_user_set_is_left_alone() -> None:
    net = network("multiply")
    mine = net.cells[0].forward
    net.cells[0].forward = mine
    darts_fast.accelerate(net)
    assert vars(net.cells[0])["forward"] is mine
    darts_fast.restore(net)
    assert vars(net.cells[0])["forward"] is mine


def test_calls_that_run_the_own_forward(calls: list[int]) -> None:
    net = darts_fast.accelerate(network("multiply"))
    cell, maps = net.cells[0], [images(2, 6, 8, 8)] * 2
    weights = table("softmax")
    calls.clear()
    expected = darts_fast.restore(copy.deepcopy(cell))(*maps, weights)
    rows = [list(row) for row in weights]
    for given in (weights, list(weights), rows, weights.detach().tolist()):
        torch.testing.assert_close(cell(*maps, given), expected, rtol=1e-9, atol=1e-9)
    assert calls == [40] * 4
    calls.clear()
    cell(*maps, weights)
    with darts_fast.backend.use_backend("reference"):
        cell(*maps, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cell(*maps, weights)
    copy.deepcopy(cell).bfloat16()(*(x.bfloat16() for x in maps), weights.bfloat16())
    assert len(calls) == 1
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'weights'"):
        cell(*maps)


def test_autocast_in_bfloat16_runs_the_fused_forward(calls: list[int]) -> None:
    net = network("multiply").float()
    cell, maps, weights = net.cells[0], [images(2, 6, 8, 8).float()] * 2, table("softmax").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = cell(*maps, weights)
        darts_fast.accelerate(net)
        calls.clear()
        out = cell(*maps, weights)
    assert len(calls) == 1
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)


def test_torch_compile_sees_the_own_forward(calls: list[int]) -> None:
    torch.manual_seed(0)
    edge = darts.MixedOp(4, 1, ("skip_connect", "sep_conv_3x3", "none"))
    darts_fast.accelerate(edge)
    calls.clear()
    compiled = torch.compile(edge, backend="eager")
    compiled(torch.randn(2, 4, 8, 8), torch.rand(3))
    assert not calls


def test_networks_of_the_package_need_no_change() -> None:
    for space in ("darts", "nasbench201"):
        net = build_supernet(space, channels=2, num_classes=3, layers=1)
        assert darts_fast.accelerate(net) is net
        assert not darts_fast.accelerated(net)


def test_nothing_to_accelerate() -> None:
    with pytest.raises(ValueError, match=r"accelerate: .* got none in Linear"):
        darts_fast.accelerate(nn.Linear(2, 2))

# SPDX-License-Identifier: Apache-2.0
"""Cells and networks under autocast, next to plain PyTorch under the same and to float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from cell_cases import BackwardCalls
from closeness import assert_close
from torch import Tensor, nn

from darts_fast import _C
from darts_fast.backend import use_backend
from darts_fast.nn import Cell, MixedOp, build_supernet
from darts_fast.nn.nasbench201 import NAS201SearchCell
from darts_fast.reference import PRECISION_PRODUCTS
from darts_fast.spaces import get_space

Calls = list[tuple[torch.dtype, int]]


def images(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Dtype of the states and number of operations of every native call of a cell."""
    seen: Calls = []
    run = _C.CellCall.run

    def counted(call: _C.CellCall, *arguments: Any) -> object:
        _, _, states, weights, *_ = arguments
        seen.append((states[0].dtype, weights.numel()))
        return run(call, *arguments)

    monkeypatch.setattr(_C.CellCall, "run", counted)
    return seen


def darts_cell(space: str, reduction: bool) -> Cell:
    torch.manual_seed(0)
    primitives = get_space(space).primitives["reduce" if reduction else "normal"]
    return Cell(4, 4, 24, 32, 8, reduction, True, primitives=primitives, zero="multiply")


def nasbench201_cell() -> NAS201SearchCell:
    torch.manual_seed(0)
    space = get_space("nasbench201")
    edges, primitives = space.edges, space.primitives["cell"]
    return NAS201SearchCell(
        8, edges, primitives, zero="multiply", affine=True, track_running_stats=True
    )


def network(space: str) -> nn.Module:
    torch.manual_seed(0)
    net = build_supernet(space, channels=8, num_classes=4, layers=3)
    for parameter in net.arch_parameters():
        parameter.data.normal_()
    return net


def autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def step(
    module: nn.Module, inputs: list[Tensor], dtype: torch.dtype, backend: str
) -> dict[str, Tensor]:
    """One forward and backward of a copy: output, gradients by role, running statistics.

    In float64 all of it, in bfloat16 under autocast with float32 parameters and inputs as they are.
    """
    low = dtype == torch.bfloat16
    module = copy.deepcopy(module).to(torch.float32 if low else dtype)
    leaves = [x.detach().to(x.dtype if low else dtype).requires_grad_() for x in inputs]
    with use_backend(backend), autocast(low):
        out = module(*leaves)
        assert out.dtype == dtype
    (out * images(*out.shape, seed=5).to(dtype)).sum().backward()
    found: dict[str, list[Tensor]] = {"output": [out.detach()]}
    for i, leaf in enumerate(leaves):
        found[f"gradient of input {i}"] = [leaf.grad]
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            continue
        role = "alphas" if name.startswith(("alphas", "_arch")) else "weights"
        role = "classifier" if name.startswith("classifier") else role
        found.setdefault(f"gradient of {role}", []).append(parameter.grad)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            found.setdefault(name.rsplit(".", 1)[-1], []).append(buffer)
    return {name: torch.cat([x.flatten() for x in values]) for name, values in found.items()}


def assert_as_near_as_eager(module: nn.Module, *inputs: Tensor) -> None:
    truth = step(module, list(inputs), torch.float64, "reference")
    eager = step(module, list(inputs), torch.bfloat16, "reference")
    fused = step(module, list(inputs), torch.bfloat16, "fused")
    assert fused.keys() == truth.keys()
    for name, exact in truth.items():
        gradient = name.startswith("gradient")
        assert_close(name, fused[name], eager[name], exact, gradient=gradient)
        mine, other = ((x[name].double() - exact).norm().item() for x in (fused, eager))
        # Of gradients most of the error is that of values which rounding moves across a ReLU, and
        # by chance more or less.
        assert gradient or mine <= other, f"{name}: {mine:.3e}, eager {other:.3e}"
        assert mine > 0 or other == 0, f"{name}: not in bfloat16"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("space", ["darts", "s5"])
def test_a_cell(
    bf16_backend: str, space: str, reduction: bool, training: bool, calls: Calls
) -> None:
    net = darts_cell(space, reduction).train(training)
    rows, width = len(net.primitives), len(net.primitives[0])
    assert_as_near_as_eager(
        *(net, images(8, 24, 16, 16), images(8, 32, 8, 8), images(rows, width).softmax(-1))
    )
    assert calls == [(torch.bfloat16, rows * width)]


def test_a_cell_of_nasbench201(bf16_backend: str, calls: Calls) -> None:
    net = nasbench201_cell()
    assert_as_near_as_eager(net, images(8, 8, 8, 8).bfloat16(), images(6, 5).softmax(-1))
    assert calls == [(torch.bfloat16, 30)]


@pytest.mark.parametrize("space", ["s5", "darts", "nasbench201"])
def test_a_step_of_a_network(space: str, calls: Calls) -> None:
    net = network(space)
    assert_as_near_as_eager(net, images(8, 3, 16, 16))
    assert {dtype for dtype, _ in calls} == {torch.bfloat16}


def dtypes(module: Callable[..., Tensor], *inputs: Tensor) -> list[torch.dtype]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    with autocast():
        out = module(*leaves)
    out.sum().backward()
    return [out.dtype, *(leaf.grad.dtype for leaf in leaves)]


def test_gradients_have_their_tensors_dtype(calls: Calls) -> None:
    net, weights = MixedOp(4, 1, ("skip_connect", "sep_conv_3x3")), torch.rand(2)
    low, single = torch.bfloat16, torch.float32
    assert dtypes(net, images(2, 4, 8, 8).bfloat16(), weights) == [low, low, single]
    assert dtypes(net, images(2, 4, 8, 8), weights) == [low, single, single]
    assert len(calls) == 2
    assert {p.grad.dtype for p in net.parameters()} == {single}


def test_what_autocast_leaves_alone(calls: Calls) -> None:
    net, weights = MixedOp(4, 1, ("skip_connect", "sep_conv_3x3")).eval(), torch.rand(2)
    x = images(2, 4, 8, 8)
    expected = copy.deepcopy(net).double()(x.double(), weights.double())
    calls.clear()
    with autocast():
        assert net(x, weights).dtype == torch.bfloat16
        assert len(calls) == 1
        # float64 is not cast.
        assert torch.equal(copy.deepcopy(net).double()(x.double(), weights.double()), expected)
    with torch.autocast("cpu", torch.float16):
        out = net(x, weights)
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
    assert len(calls) == 1
    with autocast(), use_backend("reference"):
        net(x, weights)
    assert len(calls) == 1


def test_evaluation_that_saves_nothing_rounds_the_output_alone(bf16_backend: str) -> None:
    net = darts_cell("s5", False).eval()
    states = [images(2, 24, 16, 16), images(2, 32, 8, 8)]
    weights = images(len(net.primitives), len(net.primitives[0])).softmax(-1)
    edge = cast(MixedOp, net._ops[0])
    x = images(2, 8, 8, 8)
    with torch.no_grad():
        expected, single = edge(x, weights[0]), net(*states, weights)
        with autocast():
            assert torch.equal(edge(x, weights[0]), expected.bfloat16())
            low = net(*states, weights)
    assert low.dtype == torch.bfloat16
    assert ((low - single).norm() / single.norm()).item() < 1e-2


def test_products_are_asked_for() -> None:
    net = MixedOp(4, 1, ("skip_connect", "sep_conv_3x3"))
    with autocast():
        out = net(images(2, 4, 8, 8), torch.rand(2))
    with BackwardCalls() as calls:
        out.sum().backward()
    assert [call[-2] for call in calls.seen] == [PRECISION_PRODUCTS]

# SPDX-License-Identifier: Apache-2.0
"""A native call reads of its modules what they are now, whatever it saw of them before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.nn.fused_cell import run_preprocess
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.operations import ReLUConvBN

KINDS = ("edge", "preprocessing")


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    edge = MixedOp(4, 1, ("max_pool_3x3", "sep_conv_3x3"))
    module = (edge if kind == "edge" else ReLUConvBN(4, 6, 1, 1, 0)).double()
    module(*inputs(kind))  # some statistics
    return module


def inputs(kind: str) -> tuple[Tensor, ...]:
    x = torch.randn(3, 4, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([0.3, 0.7], dtype=torch.double)
    return (x, weights) if kind == "edge" else (x,)


def run(module: nn.Module, kind: str) -> dict[str, Tensor]:
    """The output, gradients of the parameters, and buffers afterwards."""
    out = run_preprocess(module, *inputs(kind)) if kind != "edge" else module(*inputs(kind))
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(out.cos().sum(), list(parameters.values()))
    return {"out": out, **dict(zip(parameters, grads, strict=True)), **dict(module.named_buffers())}


def last_norm(module: nn.Module) -> nn.BatchNorm2d:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][-1]


def last_conv(module: nn.Module) -> nn.Conv2d:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1]


def in_place(conv: nn.Conv2d) -> None:
    with torch.no_grad():
        conv.weight.mul_(2.0)


def other_data(conv: nn.Conv2d) -> None:
    conv.weight.data = 3.0 * conv.weight.data.flip(0)


def other_parameter(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(conv.weight.detach().flip(1))


def other_parameter_in_table(conv: nn.Conv2d) -> None:
    conv._parameters["weight"] = nn.Parameter(conv.weight.detach().sin())


def swapped(conv: nn.Conv2d) -> None:
    torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach().cos()))


CONVOLUTIONS = (in_place, other_data, other_parameter, other_parameter_in_table, swapped)


def evaluates(norm: nn.BatchNorm2d) -> None:
    norm.eval()


def other_eps(norm: nn.BatchNorm2d) -> None:
    norm.eps = 0.3


def other_momentum(norm: nn.BatchNorm2d) -> None:
    norm.momentum = 0.7


def cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def stays(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False


def stays_by_table(norm: nn.BatchNorm2d) -> None:
    vars(norm)["track_running_stats"] = False


def other_mean(norm: nn.BatchNorm2d) -> None:
    norm.eval()
    assert norm.running_mean is not None
    norm.running_mean = norm.running_mean + 1.0


def other_counter_in_table(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None
    norm._buffers["num_batches_tracked"] = torch.tensor(9)


def no_statistics(norm: nn.BatchNorm2d) -> None:
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def other_attributes(norm: nn.BatchNorm2d) -> None:
    norm.__dict__ = {**vars(norm), "eps": 0.2}


NORMS = (
    *(evaluates, other_eps, other_momentum, cumulative, stays, stays_by_table, other_mean),
    *(other_counter_in_table, no_statistics, other_attributes),
)


def compared(module: nn.Module, kind: str) -> dict[str, Tensor]:
    """What a native run gives, which is that of the reference on a copy."""
    twin = copy.deepcopy(module)
    with use_backend("reference"):
        expected = run(twin, kind)
    actual = run(module, kind)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    return actual


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [*CONVOLUTIONS, *NORMS])
def test_a_change_between_two_calls(kind: str, change: Callable[[nn.Module], None]) -> None:
    module, unchanged = build(kind), build(kind)
    compared(module, kind)
    change(last_conv(module) if change in CONVOLUTIONS else last_norm(module))
    for _ in range(2):
        found = compared(module, kind)
    for _ in range(3):
        others = run(unchanged, kind)
    assert any(name not in found or not torch.equal(x, found[name]) for name, x in others.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_can_change_without_a_write_is_read_every_time(kind: str) -> None:
    module = build(kind)
    eps = torch.tensor(0.1)
    last_norm(module).eps = eps  # type: ignore[assignment]
    first = run(module, kind)["out"]
    eps.fill_(2.0)
    assert not torch.allclose(run(module, kind)["out"], first)

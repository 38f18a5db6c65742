# SPDX-License-Identifier: Apache-2.0
"""Random numbers behind native calls: those that the original draws, in either memory format."""

from __future__ import annotations

import copy

import pytest
import torch
from originals import confopt, darts, darts_pt, nasbench201, pc_darts
from originals.operations import Noise, searched
from test_accelerate import images
from torch import Tensor, nn
from torch.nn import functional

import darts_fast

S4 = ("noise", "skip_connect", "sep_conv_3x3", "max_pool_3x3")
SIZES = {"steps": 2, "multiplier": 2}


class DropoutNetwork(darts.Network):
    """Drops values behind each cell, by a function."""

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        return functional.dropout(super().run_cell(cell, s0, s1), 0.3, self.training)


class LayerNetwork(pc_darts.Network):
    """By a layer; its edges are accelerated one by one."""

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)
        self.drop = nn.Dropout(0.3)

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        return self.drop(super().run_cell(cell, s0, s1))


class MaskNetwork(darts_pt.Network):
    """By a mask that is made like a map."""

    def run_cell(self, cell, s0, s1, table):  # type: ignore[no-untyped-def]
        out = super().run_cell(cell, s0, s1, table)
        return out * torch.empty_like(out).bernoulli_(0.7)


class DropCell(nasbench201.NAS201SearchCell):
    def __init__(self) -> None:
        names = ("none", "dropout", "nor_conv_3x3", "skip_connect")
        super().__init__(4, 4, 1, 4, op_names=names)
        self.alphas = images(6, 4, seed=3).requires_grad_()

    def forward(self, inputs, weightss=None):  # type: ignore[no-untyped-def]
        return super().forward(inputs, self.alphas if weightss is None else weightss)


def choices() -> nn.Module:
    net = confopt.Chain(4)
    for choice in net.choices:
        stride = choice.ops[4].op[1].stride[0]
        choice.ops[0] = Noise(stride)
        choice.ops.append(nn.Sequential(searched("skip_connect", 4, stride), nn.Dropout(0.4)))
    net.alphas = torch.randn(2, 9).requires_grad_()
    return net


BUILDERS = {
    "noise": lambda: darts.Network(2, 5, 2, **SIZES, names=S4),
    "noise of darts-pt": lambda: darts_pt.Network(2, 5, 2, **SIZES, names=S4),
    "dropout behind cells": lambda: DropoutNetwork(2, 5, 2, **SIZES),
    "layer behind partial channels": lambda: LayerNetwork(8, 5, 2, **SIZES),
    "mask like a map": lambda: MaskNetwork(2, 5, 2, **SIZES),
    "dropout in nasbench201": DropCell,
    "choices": choices,
}


def laid_out(module: nn.Module, x: Tensor, weights: bool, maps: bool) -> tuple[nn.Module, Tensor]:
    if weights:
        module = module.to(memory_format=torch.channels_last)
    return module, x.contiguous(memory_format=torch.channels_last) if maps else x


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients, with random numbers from one seed."""
    torch.manual_seed(7)
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(leaf)
    (out * images(*out.shape, seed=5)).sum().backward()
    leaves = [leaf, *module.parameters()]
    return [out.detach(), *(part.grad for part in leaves if part.grad is not None)]


@pytest.mark.parametrize(
    ("name", "weights", "maps"),
    [
        *((name, both, both) for name in BUILDERS for both in (False, True)),
        ("noise", True, False),
    ],
)
def test_the_same_numbers_are_drawn(name: str, weights: bool, maps: bool) -> None:
    torch.manual_seed(0)
    net = BUILDERS[name]().double()
    first = next(part for part in net.modules() if isinstance(part, nn.Conv2d))
    net, x = laid_out(net, images(3, first.in_channels, 8, 12), weights, maps)
    plain = copy.deepcopy(net)
    darts_fast.accelerate(net)
    assert darts_fast.accelerated(net)
    for other in (net, copy.deepcopy(net)):
        plain.zero_grad()
        for found, expected in zip(run(other, x), run(plain, x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", [darts.Cell, darts_pt.Cell])
def test_where_nothing_draws_by_layout_results_stay_channels_last(kind: type[darts.Cell]) -> None:
    """A copy per cell is saved; drop-path draws one number per image."""
    cell = darts_fast.accelerate(kind(2, 2, 6, 6, 4, False, False).double())
    out = cell(images(2, 6, 8, 8), images(2, 6, 8, 8), images(5, 8))
    assert out.is_contiguous(memory_format=torch.channels_last)

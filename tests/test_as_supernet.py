# SPDX-License-Identifier: Apache-2.0
"""Supernets of other code bases under the selection of this package, on their own weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from originals import darts, nasbench201
from test_originals import ORIGINALS, alphas, batch, build
from torch import Tensor, nn

import darts_fast
from darts_fast.selection import removal_scores, select

# Whose cells all get the same weights in every forward, and are whole native calls.
TAKEN = ("darts", "darts-pt", "darts-pt-proj", "robust-darts", "smooth-darts", "sgas")
SPACES = {**dict.fromkeys(TAKEN, ("normal", "reduce")), "nasbench201": ("cell",)}
# These differ from "darts" in what does not matter here.
LONG = [
    pytest.param(name, marks=pytest.mark.slow if name in ("robust-darts", "smooth-darts") else ())
    for name in SPACES
]


def cell_type_of(cell: nn.Module) -> str:
    reduction = getattr(cell, "reduction", None)
    return "cell" if reduction is None else "reduce" if reduction else "normal"


def masked_loss(net: nn.Module, x: Tensor, y: Tensor, removed: tuple[str, int, int]) -> float:
    """By the model's own code on a copy, in training mode, with one weight of its cells at 0."""
    net = copy.deepcopy(net).train()
    cell_type, edge, op = removed

    def mask(cell: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        place = next(i for i, value in enumerate(args) if value.ndim == 2)
        table = args[place].clone()
        table[edge, op] = 0
        return (*args[:place], table, *args[place + 1 :])

    for cell in net.cells:
        searched = hasattr(cell, "_ops") or hasattr(cell, "edges")
        if searched and cell_type_of(cell) == cell_type:
            cell.register_forward_pre_hook(mask)
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(x), y))


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", LONG)
def test_removals_equal_the_models_own_code(name: str, accelerated: bool) -> None:
    net = build(name)
    x = batch(net)
    y = torch.arange(len(x)) % 5
    removed = [(cell_type, edge, op) for cell_type in SPACES[name] for edge, op in ((2, 3), (1, 1))]
    expected = [masked_loss(net, x, y, each) for each in removed]
    assert len(set(expected)) > 1
    if accelerated:
        darts_fast.accelerate(net)
    found = removal_scores(net, [(x, y)], removals=removed)
    assert found.loss.tolist() == pytest.approx(expected, rel=1e-6)


def test_nothing_is_left_behind() -> None:
    net = build("darts-pt")
    net.cells[0].eval()
    flags = [module.training for module in net.modules()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    random = torch.get_rng_state()
    supernet = darts_fast.as_supernet(net)
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(value.is_meta for value in supernet.state_dict().values())


@pytest.mark.parametrize("training", [True, False])
def test_it_is_in_the_models_mode(training: bool) -> None:
    net = build("nasbench201").train(training)
    supernet = darts_fast.as_supernet(net)
    assert all(module.training == training for module in supernet.modules())
    assert all(module.training == training for module in net.modules())


def test_weights_and_statistics_are_the_models_own() -> None:
    net = build("darts")
    supernet = darts_fast.as_supernet(net)
    x = batch(net)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(1.5)
        assert torch.allclose(supernet(x), net(x), rtol=1e-6)
    assert {id(p) for p in supernet.parameters()} == {id(p) for p in net.parameters()}
    net.load_state_dict(build("darts").state_dict())
    net.double().eval()
    supernet.eval()
    with torch.no_grad():
        assert torch.allclose(supernet(x), net(x), rtol=1e-6)
    assert supernet.state_dict().keys() == net.state_dict().keys()


def test_edge_weights_and_decisions_are_those_of_the_cells() -> None:
    net = build("darts-pt-proj")
    supernet = darts_fast.as_supernet(net)
    for cell_type, table in supernet.edge_weights().items():
        own = net.get_projected_weights(cell_type)
        assert torch.allclose(table.detach(), own.double(), atol=1e-6)
    assert supernet.projection.decided_op("normal", 0) == 4
    assert 2 not in supernet.projection.undecided_edges("normal")
    assert not supernet.projection.undecided_nodes("normal")


def test_selections_run_on_it() -> None:
    net = build("darts").float()
    x = batch(net).float()
    with torch.no_grad():
        alphas(net)[0][:, 4] += 1.0
    found = select(darts_fast.as_supernet(net), method="magnitude")
    assert all(name == "sep_conv_3x3" for name, _ in found.genotype.normal)
    scored = select(darts_fast.as_supernet(net), [(x, torch.arange(len(x)) % 5)], method="one_shot")
    assert len(scored.genotype.normal) == len(found.genotype.normal)


def test_its_own_networks_are_returned() -> None:
    net = darts_fast.nn.Network(2, 5, 3, steps=2, multiplier=2)
    assert darts_fast.as_supernet(net) is net


class Scaled(darts.Network):
    def forward(self, input: Tensor) -> Tensor:
        return 1.01 * super().forward(input)


class EachItsOwn(darts.Network):
    """Cells of one type with weights of their own."""

    def run_cell(self, cell: nn.Module, s0: Tensor, s1: Tensor) -> Tensor:
        return cell(s0, s1, self.table(cell.reduction) ** (2 if cell is self.cells[2] else 1))


class Independent(darts.Network):
    """Every operation has a gate of its own."""

    def table(self, reduction: bool) -> Tensor:
        return torch.sigmoid(self.alphas_reduce if reduction else self.alphas_normal)


def early_reduction() -> nn.Module:
    net = darts.Network(2, 5, 5, steps=2, multiplier=2)
    del net.cells[0]
    return net


def without_classifier() -> nn.Module:
    net = darts.Network(2, 5, 3, steps=2, multiplier=2)
    net.classifier = nn.Sequential(net.classifier)
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no cells": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "none in Sequential"),
    "edges": (lambda: build("naslib"), "must have cells that accelerate recognises"),
    "partial channels": (lambda: build("pc-darts"), "cells.0 must be a cell of native operations"),
    "drawn weights": (lambda: build("drnas"), "all reduce cells must get the same weights"),
    "another head": (
        lambda: Scaled(2, 5, 3, steps=2, multiplier=2).double(),
        "Scaled must compute in training mode what its cells",
    ),
    "own weights": (
        lambda: EachItsOwn(2, 5, 4, steps=2, multiplier=2).double(),
        "cells must get the same weights",
    ),
    "gates": (
        lambda: Independent(2, 5, 3, steps=2, multiplier=2).double(),
        "must be positive and add up to 1",
    ),
    "no classifier": (without_classifier, "model must have a linear classifier, got Sequential"),
    "other places": (early_reduction, "reduction cells must be [1, 2] of 4, got [0, 2]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_does_not_take(case: str) -> None:
    make, message = REFUSED[case]
    torch.manual_seed(0)
    net = make()
    with pytest.raises(ValueError, match="as_supernet: ") as caught:
        darts_fast.as_supernet(net)
    assert message in str(caught.value)


def test_a_model_that_is_no_supernet_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="as_supernet: model must have cells"):
        removal_scores(nn.Linear(2, 2), [])


def test_batch_norms_keep_their_settings() -> None:
    net = nasbench201.TinyNetwork(2, 1, 3, 5).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    x = batch(net)
    supernet = darts_fast.as_supernet(net, x)
    with torch.no_grad():
        assert torch.allclose(supernet(x), net(x), rtol=1e-6)


def test_all_originals_are_taken_or_refused() -> None:
    refused = {"pc-darts", "drnas", "drnas-partial", "naslib", "confopt"}
    assert {*SPACES} | refused == {*ORIGINALS}

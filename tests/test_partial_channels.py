# SPDX-License-Identifier: Apache-2.0
"""The supernet of PC-DARTS against PyTorch's own functions, and its parameters and keys."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import plain_darts as plain
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.backend import use_backend
from darts_fast.nn.partial_channels import (
    PartialMixedOp,
    PartialNetwork,
    channel_shuffle,
)
from darts_fast.nn.partial_nasbench201 import PartialTinyNetwork
from darts_fast.selection import PerturbationConfig, magnitude_genotype
from darts_fast.selection.perturbation import PerturbationSelection
from darts_fast.spaces import get_space

SPACE = get_space("darts")


Partial = PartialNetwork | PartialTinyNetwork
NETWORKS = [lambda: PartialNetwork(8, 10, 3), lambda: PartialTinyNetwork(8, 1, 10)]
_Net = TypeVar("_Net", bound=Partial)


def drawn(make: Callable[[], _Net]) -> _Net:
    """The network with architecture parameters that differ."""
    torch.manual_seed(1)
    net = make()
    with torch.no_grad():
        for parameter in net.arch_parameters():
            parameter.normal_()
    return net


def net_of(C: int = 8, layers: int = 3, **settings: Any) -> PartialNetwork:
    return drawn(lambda: PartialNetwork(C, 10, layers, **settings))


def plain_logits(state: dict[str, Tensor], net: PartialNetwork, x: Tensor, k: int) -> Tensor:
    """The whole network edge by edge: mix the first channels, join, interleave, weigh, add."""

    def edge(prefix: str, x: Tensor, stride: int, weights: Tensor) -> Tensor:
        own = x.shape[1] // k
        names = SPACE.primitives["normal"][0]
        mixed = plain.mixed(state, prefix, names, x[:, :own], stride, weights)
        rest = x[:, own:] if stride == 1 else functional.max_pool2d(x[:, own:], 2)
        joined = torch.cat([mixed, rest], 1)
        size = joined.shape[1] // k
        return joined[:, [group * size + i for i in range(size) for group in range(k)]]

    stem = functional.conv2d(x, state["stem.0.weight"], padding=1)
    s0 = s1 = plain.batch_norm(state, "stem.1", stem)
    for number, cell in enumerate(net.cells):
        kind = "reduce" if cell.reduction else "normal"
        alphas = getattr(net, f"alphas_{kind}").detach().softmax(1)
        betas = getattr(net, f"betas_{kind}").detach()
        prefix = f"cells.{number}."
        states = [
            plain.preprocess(state, f"{prefix}preprocess0.", s0),
            plain.preprocess(state, f"{prefix}preprocess1.", s1),
        ]
        first = 0
        for node in range(2, 6):
            shares = betas[first : first + node].exp() / betas[first : first + node].exp().sum()
            total = torch.zeros(())
            for source in range(node):
                stride = 2 if cell.reduction and source < 2 else 1
                key = f"{prefix}_ops.{first + source}."
                row = alphas[first + source]
                total = total + shares[source] * edge(key, states[source], stride, row)
            states.append(total)
            first += node
        s0, s1 = s1, torch.cat(states[2:], 1)
    return s1.mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize("rival", ["fused", "reference"])
@pytest.mark.parametrize("k", [2, 4])
def test_logits_and_gradients_are_those_of_plain_pytorch(rival: str, k: int) -> None:
    net = net_of(k=k).double()
    x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 3])
    state = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
    expected = plain_logits(state, net, x, k)
    with use_backend(rival):
        logits = net(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    names = ["cells.1._ops.5._ops.4.op.1.weight", "cells.0._ops.13._ops.6.op.2.weight"]
    functional.cross_entropy(logits, y).backward()
    theirs = torch.autograd.grad(functional.cross_entropy(expected, y), [state[n] for n in names])
    for name, gradient in zip(names, theirs, strict=True):
        torch.testing.assert_close(net.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-10)


def test_gradients_of_alphas_and_betas_are_differences_of_the_loss() -> None:
    net = net_of().double()
    x, y = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 2, 3])
    functional.cross_entropy(net(x), y).backward()
    for name in ("alphas_normal", "alphas_reduce", "betas_normal", "betas_reduce"):
        parameter = net.get_parameter(name)
        assert parameter.grad is not None
        direction = torch.randn_like(parameter)
        losses = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(direction, alpha=step)
                losses.append(functional.cross_entropy(net(x), y).item())
            parameter.add_(direction, alpha=1e-5)
        slope = (losses[0] - losses[1]) / 2e-5
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("make", NETWORKS)
def test_running_statistics_move_alike_in_both_backends(make: Callable[[], Partial]) -> None:
    nets = [drawn(make), drawn(make)]
    x = torch.randn(4, 3, 8, 8)
    for net, rival in zip(nets, ("fused", "reference"), strict=True):
        with use_backend(rival):
            net(x)
    for (name, mine), theirs in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_an_edge_alone_is_the_edge_in_a_cell() -> None:
    """Hooks make the cell run its edges one by one."""
    net = net_of().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fused = net(x)
    calls: list[object] = []
    for cell in net.cells:
        for edge in cell._ops:
            edge.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(net(x), fused, rtol=1e-9, atol=1e-9)
    assert len(calls) == 3 * 14


def test_drop_path_drops_whole_edges_in_training() -> None:
    net = net_of(drop_path_prob=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_replaced_edges_and_operations_are_seen() -> None:
    net = net_of()
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    net.cells[0]._ops[4]._ops[5] = nn.Identity()
    after = net(x)
    assert not torch.allclose(before, after)
    net.cells[0]._ops[4] = PartialMixedOp(8, 1, SPACE.primitives["normal"][4])
    assert not torch.allclose(net(x), after)
    torch.testing.assert_close(copy.deepcopy(net)(x), net(x))


def test_keys_and_parameters_are_those_of_the_authors_network() -> None:
    """Counts as measured on the original (16 channels, 8 cells, CIFAR-10)."""
    net = PartialNetwork(16, 10, 8)
    state = net.state_dict()
    assert len(state) == 4186
    assert not any("alpha" in key or "beta" in key for key in state)
    assert sum(parameter.numel() for parameter in net.parameters()) == 299_578
    shapes = [tuple(parameter.shape) for parameter in net.arch_parameters()]
    assert shapes == [(14, 8), (14, 8), (14,), (14,)]
    weights = {id(parameter) for parameter in net.parameters()}
    assert not any(id(parameter) in weights for parameter in net.arch_parameters())
    assert state["cells.0._ops.0._ops.4.op.1.weight"].shape == (4, 1, 3, 3)
    net.load_state_dict(state)


@pytest.mark.parametrize("make", NETWORKS)
def test_full_state_has_the_betas(make: Callable[[], Partial], tmp_path: Path) -> None:
    net, other = drawn(make), make()
    torch.save(net.full_state_dict(), tmp_path / "net.pt")
    other.load_full_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    twin = net.new()
    for copied in (other, twin):
        for mine, theirs in zip(net.arch_parameters(), copied.arch_parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert type(twin) is type(net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), net(x))
    assert not torch.equal(twin(x), net(x))
    state = net.full_state_dict()
    name, beta = next(iter(net.betas().items()))
    del state["alphas"][f"{name} edges"]
    message = rf"must have {name} edges alphas of shape \[{len(beta)}\], got None"
    with pytest.raises(ValueError, match=message):
        other.load_full_state_dict(state)


def test_the_genotype_weighs_operations_with_their_edges() -> None:
    net = net_of()
    with torch.no_grad():
        for parameter in net.arch_parameters():
            parameter.zero_()
        net.alphas_normal[:, 4] = 1.0
        net.alphas_normal[9, 5] = 3.0  # the strongest operation of node 5, on an edge that is not
        net.betas_normal[[10, 12]] = 5.0
    normal = net.genotype().normal
    assert sorted(normal[6:]) == [("sep_conv_3x3", 1), ("sep_conv_3x3", 3)]
    assert magnitude_genotype(net).normal == normal
    shares = net.edge_importance()["normal"]
    torch.testing.assert_close(shares[:2], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(shares[9:].sum(), torch.tensor(1.0))


def test_dropped_edges_have_no_part_in_their_node() -> None:
    net = net_of()
    net.projection.project_edges("normal", 4, [5, 7])
    importance = net.edge_importance()["normal"]
    assert [edge for edge in range(14) if importance[edge] == 0] == [6, 8]
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    for cell in net.cells:
        if not cell.reduction:
            with torch.no_grad():
                for parameter in cell._ops[6].parameters():
                    parameter.normal_()
    torch.testing.assert_close(net(x), before)


def test_removals_are_scored_on_it() -> None:
    net = net_of()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    found = PerturbationSelection(net, [(x, y)], PerturbationConfig()).decide_op("normal", 4)
    own = {name: table.detach() for name, table in net.edge_weights().items()}
    for op, loss in enumerate(found.loss[0]):
        table = own["normal"].clone()
        table[4, op] = 0
        with torch.no_grad():
            expected = functional.cross_entropy(net(x, weights={**own, "normal": table}), y)
        assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_the_shuffle_takes_channels_in_turns() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert channel_shuffle(x, 4).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_channels_must_divide() -> None:
    with pytest.raises(ValueError, match="k must divide the channels, got k=4 for 6"):
        PartialMixedOp(6, 1, ["skip_connect"])
    with pytest.raises(ValueError, match="k must divide the channels, got k=0 for 8"):
        PartialNetwork(8, 10, 3, k=0)

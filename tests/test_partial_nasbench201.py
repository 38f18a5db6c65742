# SPDX-License-Identifier: Apache-2.0
"""The supernet of PC-DARTS on NAS-Bench-201 against PyTorch's own functions."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import plain_darts as plain
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.backend import use_backend
from darts_fast.nn import partial_channels
from darts_fast.nn.partial_channels import PartialNetwork
from darts_fast.nn.partial_nasbench201 import PartialTinyNetwork
from darts_fast.selection import PerturbationConfig, magnitude_genotype
from darts_fast.selection.perturbation import PerturbationSelection
from darts_fast.spaces import NASBENCH201_PRIMITIVES

EDGES = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")
WIDE = {"dtype": torch.float64}


def net_of(C: int = 8, N: int = 1, **settings: Any) -> PartialTinyNetwork:
    torch.manual_seed(1)
    net = PartialTinyNetwork(C, N, 10, **settings)
    with torch.no_grad():
        for parameter in net.arch_parameters():
            parameter.normal_()
    return net


def convolved(state: dict[str, Tensor], prefix: str, x: Tensor, stride: int = 1) -> Tensor:
    """ReLU, convolution, batch norm of the batch."""
    weight = state[f"{prefix}op.1.weight"]
    y = functional.conv2d(x.relu(), weight, None, stride, weight.shape[-1] // 2)
    return plain.batch_norm(state, f"{prefix}op.2", y)


def operation(state: dict[str, Tensor], prefix: str, name: str, x: Tensor) -> Tensor:
    if name.startswith("nor_conv"):
        return convolved(state, prefix, x)
    if name == "avg_pool_3x3":
        return plain.pool(x, 1, "avg")
    return x if name == "skip_connect" else torch.zeros_like(x)


def plain_cell(
    state: dict[str, Tensor], prefix: str, x: Tensor, weights: Tensor, betas: Tensor, k: int
) -> Tensor:
    """Edge by edge: mix the first channels, join, interleave, weigh, add."""
    nodes, first = [x], 0
    for node in range(1, 4):
        exponents = betas[first : first + node].exp()
        total = torch.zeros(())
        for source in range(node):
            own = x.shape[1] // k
            mixed = torch.zeros(())
            for op, name in enumerate(NASBENCH201_PRIMITIVES):
                place = f"{prefix}edges.{EDGES[first + source]}.{op}."
                y = operation(state, place, name, nodes[source][:, :own])
                mixed = mixed + weights[first + source, op] * y
            joined = torch.cat([mixed, nodes[source][:, own:]], 1)
            joined = joined[:, [group * own + i for i in range(own) for group in range(k)]]
            total = total + exponents[source] / exponents.sum() * joined
        nodes.append(total)
        first += node
    return nodes[-1]


def plain_logits(state: dict[str, Tensor], x: Tensor, k: int) -> Tensor:
    x = functional.conv2d(x, state["stem.0.weight"], padding=1)
    x = plain.batch_norm(state, "stem.1", x)
    weights = state["_arch_parameters"].softmax(1)
    for number in range(5):
        prefix = f"cells.{number}."
        if number % 2:
            y = convolved(state, f"{prefix}conv_a.", x, 2)
            y = convolved(state, f"{prefix}conv_b.", y)
            halved = functional.avg_pool2d(x, 2)
            x = y + functional.conv2d(halved, state[f"{prefix}downsample.1.weight"])
        else:
            x = plain_cell(state, prefix, x, weights, state["betas_cell"], k)
    x = plain.batch_norm(state, "lastact.0", x).relu().mean((2, 3))
    return x @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize("rival", ["fused", "reference"])
@pytest.mark.parametrize("k", [2, 4])
def test_logits_and_gradients_are_those_of_plain_pytorch(rival: str, k: int) -> None:
    net = net_of(k=k).double()
    x, y = torch.randn(3, 3, 8, 8, **WIDE), torch.tensor([1, 2, 3])
    state = {name: value.detach().requires_grad_() for name, value in net.named_parameters()}
    expected = plain_logits(state, x, k)
    with use_backend(rival):
        logits = net(x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    functional.cross_entropy(logits, y).backward()
    theirs = torch.autograd.grad(functional.cross_entropy(expected, y), list(state.values()))
    for name, gradient in zip(state, theirs, strict=True):
        mine = net.get_parameter(name).grad
        torch.testing.assert_close(mine, gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_a_cell_makes_one_native_call_per_node(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = partial_channels.run_cell

    def counted(plan: Any, inputs: Any, *rest: Any) -> Tensor:
        calls.append(len(inputs))
        return run(plan, inputs, *rest)

    monkeypatch.setattr(partial_channels, "run_cell", counted)
    net_of()(torch.randn(2, 3, 8, 8))
    assert calls == [1, 2, 3] * 3


def test_the_operations_have_a_part_of_the_channels() -> None:
    net = net_of(16, k=4)
    assert net.cells[0].edges["1<-0"][3].op[1].weight.shape == (4, 4, 3, 3)
    shapes = [tuple(parameter.shape) for parameter in net.arch_parameters()]
    assert shapes == [(6, 5), (6,)]
    weights = {id(parameter) for parameter in net.parameters()}
    assert not any(id(parameter) in weights for parameter in net.arch_parameters())
    assert not any("beta" in key or "arch" in key for key in net.state_dict())


def test_replaced_operations_are_seen_and_copies_are_alike() -> None:
    net = net_of()
    x = torch.randn(2, 3, 8, 8)
    before = net(x)
    net.cells[0].edges["2<-1"][3] = nn.Identity()
    after = net(x)
    assert not torch.allclose(before, after)
    twin = copy.deepcopy(net)
    torch.testing.assert_close(twin(x), net(x))
    with torch.no_grad():
        twin.cells[0].edges["3<-2"][3].op[1].weight.zero_()
    assert not torch.allclose(twin(x), net(x))


def test_a_hook_on_an_operation_is_called() -> None:
    net = net_of().double()
    x = torch.randn(2, 3, 8, 8, **WIDE)
    expected = net(x)
    seen: list[Any] = []
    net.cells[0].edges["3<-1"][2].register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    assert seen == [1]


@pytest.mark.parametrize("kind", [PartialTinyNetwork, PartialNetwork])
def test_a_network_that_has_run_is_freed(kind: type[nn.Module]) -> None:
    """What is kept about its modules must not keep them."""
    net = kind(8, 1, 10) if kind is PartialTinyNetwork else kind(8, 10, 3)
    net(torch.randn(2, 3, 8, 8))
    modules = [weakref.ref(module) for module in net.modules()]
    del net
    gc.collect()
    assert [module() for module in modules if module() is not None] == []


def test_the_architecture_has_the_largest_operation_of_every_edge() -> None:
    net = net_of()
    best = net.alpha_tables()["cell"].argmax(1).tolist()
    names = [NASBENCH201_PRIMITIVES[op] for op in best]
    expected = f"|{names[0]}~0|+|{names[1]}~0|{names[2]}~1|+"
    expected += f"|{names[3]}~0|{names[4]}~1|{names[5]}~2|"
    assert net.genotype() == magnitude_genotype(net) == expected


def test_removals_are_scored_on_it() -> None:
    net = net_of()
    x, y = torch.randn(4, 3, 8, 8), torch.arange(4)
    found = PerturbationSelection(net, [(x, y)], PerturbationConfig()).decide_op("cell", 4)
    own = net.edge_weights()["cell"].detach()
    for op, loss in enumerate(found.loss[0]):
        table = own.clone()
        table[4, op] = 0
        with torch.no_grad():
            expected = functional.cross_entropy(net(x, weights={"cell": table}), y)
        assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_channels_must_divide() -> None:
    with pytest.raises(ValueError, match="k must divide the channels, got k=4 for 6"):
        PartialTinyNetwork(6, 1, 10)
    with pytest.raises(ValueError, match="k must divide the channels, got k=0 for 8"):
        PartialTinyNetwork(8, 1, 10, k=0)

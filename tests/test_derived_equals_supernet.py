# SPDX-License-Identifier: Apache-2.0
"""The NAS-Bench-201 network, and derived networks against supernets with decided weights."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from darts_fast.derive import NasBench201Network, NetworkCIFAR
from darts_fast.nn import Network, TinyNetwork
from darts_fast.spaces import (
    Genotype,
    arch_from_index,
    get_space,
    ops_from_arch,
    random_genotype,
)


def test_nasbench201_network_has_the_benchmarks_size() -> None:
    net = NasBench201Network(arch_from_index(1462)).eval()
    assert sum(p.numel() for p in net.parameters()) == 1_531_546
    work = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal work
        if isinstance(module, nn.Conv2d):
            work += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            work += module.weight.numel()

    for module in net.modules():
        module.register_forward_hook(count)
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    assert work == 220_119_680
    assert "cells.0.layers.5.op.1.weight" in net.state_dict()
    assert "cells.5.downsample.1.weight" in net.state_dict()


def test_nasbench201_sizes() -> None:
    net = NasBench201Network(arch_from_index(0), C=2, N=1)
    for size in ((6, 8), (8, 2), (31, 32)):
        with pytest.raises(ValueError, match=f"multiples of 4, got {size[0]}x{size[1]}"):
            net(torch.randn(1, 3, *size))


def test_nasbench201_none_multiplies_by_zero() -> None:
    """An infinite input poisons the output also through `none`, as in the benchmark's code."""
    net = NasBench201Network("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", C=2, N=1).eval()
    cell = net.cells[0]
    assert torch.equal(cell(torch.ones(1, 2, 4, 4)), torch.zeros(1, 2, 4, 4))
    assert cell(torch.full((1, 2, 4, 4), float("inf"))).isnan().all()


@pytest.mark.parametrize("index", [1462, 0, 7, *range(900, 15_000, 829)])
def test_a_one_hot_supernet_is_the_nasbench201_network(index: int) -> None:
    arch = arch_from_index(index)
    space = get_space("nasbench201")
    torch.manual_seed(index)
    supernet = TinyNetwork(4, 1, 3).double().train()
    derived = NasBench201Network(arch, C=4, N=1, num_classes=3).double().train()
    ops = [space.primitives["cell"][0].index(op) for op in ops_from_arch(arch)]
    source = supernet.state_dict()
    for key, value in derived.state_dict().items():
        match = re.fullmatch(r"(cells\.\d+)\.layers\.(\d)\.(.*)", key)
        name = key
        if match:
            edge = int(match[2])
            j, i = space.edges[edge]
            name = f"{match[1]}.edges.{i}<-{j}.{ops[edge]}.{match[3]}"
        if name in source:
            value.copy_(source[name])
        else:
            # The searched cells have no affine batch norms; theirs start as the identity.
            assert key.endswith((".op.2.weight", ".op.2.bias"))
    weights = torch.zeros(6, 5, dtype=torch.float64)
    weights[torch.arange(6), ops] = 1.0
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        derived(x), supernet(x, {"cell": weights}), rtol=1e-9, atol=1e-9, equal_nan=True
    )


def test_a_projected_supernet_is_the_derived_network() -> None:
    """All edges decided, two per node kept: the same function (pools aside, which have no BN)."""
    space = get_space("s2")
    genotype = random_genotype(space, torch.Generator().manual_seed(4))
    assert isinstance(genotype, Genotype)
    supernet = Network(4, 3, 4, space="s2").double().train()
    derived = NetworkCIFAR(4, 3, 4, False, genotype).double().train()
    weights = {key: torch.zeros(14, 2, dtype=torch.float64) for key in space.cell_types}
    edge_of = {pair: edge for edge, pair in enumerate(space.edges)}
    places: dict[str, list[tuple[int, int]]] = {}
    for key in space.cell_types:
        places[key] = []
        for position, (op, state) in enumerate(getattr(genotype, key)):
            edge = edge_of[(state, 2 + position // 2)]
            index = space.primitives[key][edge].index(op)
            weights[key][edge, index] = 1.0
            places[key].append((edge, index))
    source = supernet.state_dict()
    copied = 0
    for name, value in derived.state_dict().items():
        match = re.fullmatch(r"cells\.(\d+)\._ops\.(\d)\.(.*)", name)
        if match:
            key = "reduce" if int(match[1]) in (1, 2) else "normal"
            edge, index = places[key][int(match[2])]
            name = f"cells.{match[1]}._ops.{edge}._ops.{index}.{match[3]}"
        if name in source:
            value.copy_(source[name])
            copied += 1
    assert copied > len(derived.state_dict()) / 2
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(derived(x)[0], supernet(x, weights), rtol=1e-9, atol=1e-9)

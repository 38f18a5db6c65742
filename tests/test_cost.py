# SPDX-License-Identifier: Apache-2.0
"""Costs of derived networks: against numbers by hand and PyTorch's own counter of operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from darts_fast.cost import (
    CostTable,
    DerivedSizes,
    cost_table,
    count,
    entries,
    forward_ms,
    median_ms,
)
from darts_fast.derive import build_derived
from darts_fast.nn.operations import OPS
from darts_fast.spaces import DARTS_V2, arch_from_index, get_space, random_genotype

SIZES = DerivedSizes(channels=4, layers=5, num_classes=10, image_size=(16, 16))


def counted_by_torch(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of the operators that run; torch counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def test_the_all_convolution_cell_of_nasbench201_has_the_published_size() -> None:
    net = build_derived(arch_from_index(1462), channels=16, num_classes=10, layers=5)
    cost = count(net, (3, 32, 32))
    # Stem; 5 cells of 6 dense convolutions at each of three stages, all of the same number; two
    # residual blocks of two convolutions and a shortcut; classifier.
    stem = 3 * 16 * 9 * 32 * 32
    cell = 6 * 16 * 16 * 9 * 32 * 32
    block = (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32) * 16 * 16
    assert cost.macs == stem + 3 * 5 * cell + 2 * block + 64 * 10 == 220_119_680
    assert cost.parameters == 1_531_546


@pytest.mark.parametrize("layers", [1, 6])
def test_counts_are_those_of_the_operators_that_run(layers: int) -> None:
    net = build_derived(DARTS_V2, channels=4, num_classes=7, layers=layers)
    cost = count(net, (3, 32, 32))
    assert cost.macs == counted_by_torch(net, (3, 32, 32))
    assert cost.parameters == sum(weight.numel() for weight in net.parameters())


@pytest.mark.parametrize("op", sorted(OPS))
def test_counts_of_every_operation_at_both_strides(op: str) -> None:
    for stride in (1, 2) if not op.endswith("_skip") else (1,):
        module = OPS[op](6, stride, True)
        assert count(module, (6, 8, 8)).macs == counted_by_torch(module, (6, 8, 8))


def test_one_separable_convolution_by_hand() -> None:
    cost = count(OPS["sep_conv_5x5"](16, 2, True), (16, 32, 32))
    # Both halves run at 16x16; a batch norm has a factor and a shift for each channel.
    assert cost.macs == 2 * (25 * 16 + 16 * 16) * 16 * 16
    assert cost.parameters == 2 * (25 * 16 + 16 * 16 + 2 * 16)


def test_counting_leaves_the_network_and_the_random_state_alone() -> None:
    net = build_derived("DARTS_V2", channels=4, num_classes=10, layers=2).train()
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    count(net, (3, 16, 16))
    cost_table("macs", "s5", SIZES)
    assert torch.equal(random, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_module_without_a_rule_is_named() -> None:
    with pytest.raises(TypeError, match="Conv2d or Linear, got Bilinear at 0"):
        count(nn.Sequential(nn.Bilinear(2, 2, 2)), (3, 4, 4))


@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("space", ["darts", "s1", "s4", "nasbench201"])
def test_table_sums_are_the_costs_of_the_networks(space: str, layers: int) -> None:
    sizes = DerivedSizes(channels=4, layers=layers, num_classes=10, image_size=(16, 16))
    macs, params = (cost_table(name, space, sizes) for name in ("macs", "params"))
    generator = torch.Generator().manual_seed(layers)
    for _ in range(2):
        architecture = random_genotype(get_space(space), generator)
        with torch.device("meta"):
            net = build_derived(architecture, channels=4, num_classes=10, layers=layers)
        cost = count(net, (3, 16, 16))
        assert (macs.total(architecture), params.total(architecture)) == (
            cost.macs,
            cost.parameters,
        )


def test_costs_follow_the_edges_of_a_reduction() -> None:
    table = cost_table("macs", "s5", SIZES)
    skip = get_space("s5").primitives["reduce"][0].index("skip_connect")
    # Of 5 layers the cells 1 and 3 reduce: skip connections from the inputs become convolutions.
    halving = 8 * 8 * 8 * 8 + 16 * 16 * 4 * 4
    costs = [row[skip] for row in table.tables["reduce"]]
    assert costs == [halving if source < 2 else 0 for source, _ in table.space.edges]
    assert [row[skip] for row in table.tables["normal"]] == [0] * 14


def test_latency_is_measured_on_operations_that_differ() -> None:
    sizes = DerivedSizes(4, 1, 10, (16, 16), batch=2, repeats=3)
    table = cost_table("latency_ms", "nasbench201", sizes)
    (row, *others) = table.tables["cell"]
    assert others == [row] * 5
    names = table.space.primitives["cell"][0]
    assert row[names.index("nor_conv_3x3")] > row[names.index("skip_connect")] >= 0
    assert table.total(arch_from_index(1462)) > table.base + 6 * row[names.index("skip_connect")]


def test_forward_time_is_the_median_and_leaves_the_mode() -> None:
    calls: list[torch.Size] = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            calls.append(x.shape)
            return x

    net = Net()
    assert forward_ms(net, (2, 3, 4, 4), repeats=5) >= 0
    assert calls == [torch.Size((2, 3, 4, 4))] * 8  # three of them warm up
    assert net.training


def test_median_of_odd_and_even_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 5.0, 7.0, 10.0, 40.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert median_ms(lambda: None, 3) == 2000
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        median_ms(lambda: None, 0)


def test_entries_are_indices_of_the_space() -> None:
    space = get_space("darts")
    found = entries(space, DARTS_V2)
    assert len(found) == 16
    cell, edge, op = found[7]  # the last of the normal cell: ("dil_conv_3x3", 2) into node 5
    assert (cell, space.edges[edge], space.primitives[cell][edge][op]) == (
        "normal",
        (2, 5),
        "dil_conv_3x3",
    )
    with pytest.raises(ValueError, match=r"normal edge 0 of space s2 offers .* got max_pool_3x3"):
        entries(get_space("s2"), DARTS_V2._replace(normal=[("max_pool_3x3", 0)] * 8))


def test_unknown_resources_are_refused() -> None:
    with pytest.raises(ValueError, match="resource must be one of macs, params, latency_ms, got"):
        cost_table("flops", "s5", SIZES)
    assert isinstance(cost_table("params", "s5", SIZES), CostTable)

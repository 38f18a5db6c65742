# SPDX-License-Identifier: Apache-2.0
"""compat.nasbench201: the ways to run a cell, its strides, and the operations of other spaces."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from compat_cases import ARGS
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.compat.nasbench201 import NAS201SearchCell, Structure, TinyNetwork
from darts_fast.compat.nasbench201.cell_operations import (
    NAS_BENCH_201,
    OPS,
    POOLING,
    FactorizedReduce,
    NoiseOp,
    ReLUConvBNSkip,
    ResNetBasicblock,
    SearchSpaceNames,
)
from darts_fast.compat.nasbench201.genotypes import (
    AllFull_CODE,
    ResNet_CODE,
    architectures,
    get_combination,
)
from darts_fast.compat.nasbench201.search_cells import NAS201SearchCell_PartialChannel
from darts_fast.compat.nasbench201.search_model_darts_proj import TinyNetworkDartsProj

Edge = Callable[[int, Sequence[nn.Module], Tensor], Tensor]


def cell_of(stride: int = 1, **named: object) -> NAS201SearchCell:
    torch.manual_seed(0)
    return NAS201SearchCell(4, 4, stride, 4, NAS_BENCH_201, **named).double()


def images(size: int = 8, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, size, size, dtype=torch.float64, generator=generator)


def table(edges: int = 6, ops: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(edges, ops, dtype=torch.float64, generator=generator)
    return weights.softmax(-1).requires_grad_()


def node_by_node(cell: NAS201SearchCell, x: Tensor, run: Edge) -> Tensor:
    """The definition: node i is the sum over j < i of what run gives on edge i<-j."""
    states = [x]
    for i in range(1, cell.max_nodes):
        terms = []
        for j in range(i):
            key = f"{i}<-{j}"
            terms.append(run(cell.edge2index[key], list(cell.edges[key]), states[j]))
        states.append(torch.stack(terms).sum(0))
    return states[-1]


def mixed(weights: Tensor) -> Edge:
    return lambda edge, ops, x: sum(w * op(x) for w, op in zip(weights[edge], ops, strict=True))


def assert_same(
    cell: NAS201SearchCell, own: Callable[[NAS201SearchCell], Tensor], run: Edge, x: Tensor
) -> None:
    """Output, gradients of weights and running statistics."""
    plain = copy.deepcopy(cell)
    outs = [own(cell), node_by_node(plain, x, run)]
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(*outs, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(cell.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-8)
    for mine, theirs in zip(cell.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [8, 7])
def test_stride_two(size: int, affine: bool) -> None:
    """Only what reads the input has the stride; odd sizes are rounded up."""
    cell, weights, x = cell_of(2, affine=affine), table(), images(size)
    assert isinstance(cell.edges["3<-0"][1], FactorizedReduce)
    assert cell.edges["3<-1"][3].op[1].stride == (1, 1)
    assert_same(cell, lambda c: c(x, weights), mixed(weights), x)
    assert cell(x, weights).shape == (3, 4, 4, 4)


def test_a_change_of_channels() -> None:
    cell = NAS201SearchCell(4, 6, 2, 2, NAS_BENCH_201).double()
    weights, x = table(1), images()
    assert_same(cell, lambda c: c(x, weights), mixed(weights), x)
    assert cell.extra_repr() == "info :: 2 nodes, inC=4, outC=6"
    with pytest.raises(ValueError, match="C_in must be C_out, got C_in=4, C_out=6, max_nodes=3"):
        NAS201SearchCell(4, 6, 1, 3, NAS_BENCH_201)


def test_gdas_runs_one_operation_and_gives_all_weights_a_gradient() -> None:
    cell, x, soft = cell_of(), images(), table()
    index = torch.tensor([3, 1, 2, 4, 0, 3])
    hard = functional.one_hot(index, 5) - soft.detach() + soft

    def run(edge: int, ops: Sequence[nn.Module], x: Tensor) -> Tensor:
        row = hard[edge]
        chosen = int(index[edge])
        return sum(row[k] * op(x) if k == chosen else row[k] for k, op in enumerate(ops))

    expected = node_by_node(copy.deepcopy(cell), x, run)
    (by_definition,) = torch.autograd.grad(expected.square().sum(), soft, retain_graph=True)
    (gradient,) = torch.autograd.grad(
        cell_of().forward_gdas(x, hard, index).square().sum(), soft, retain_graph=True
    )
    torch.testing.assert_close(gradient, by_definition, rtol=1e-9, atol=1e-9)
    assert (gradient[0] != 0).all()
    assert_same(cell, lambda c: c.forward_gdas(x, hard.detach(), index), run, x)
    moved = [op.op[2].num_batches_tracked.item() for op in cell.edges["1<-0"][2:4]]
    assert moved == [0, 1]


def test_select_and_joint() -> None:
    x, weights = images(), table()
    best = weights.argmax(-1).tolist()
    assert_same(
        *(cell_of(), lambda c: c.forward_select(x, weights)),
        *(lambda edge, ops, x: ops[best[edge]](x), x),
    )
    assert_same(cell_of(), lambda c: c.forward_joint(x, weights), mixed(weights), x)


def test_uniform_sampling_never_draws_only_zeros() -> None:
    cell = NAS201SearchCell(4, 4, 1, 4, ["none", "nor_conv_1x1"]).double()
    x = images()
    for seed in range(8):
        random.seed(seed)
        drawn: list[int] = []
        for node in range(1, 4):
            row = [0] * node
            while not any(row):
                row = [random.choice(range(2)) for _ in range(node)]
            drawn += row
        expected = node_by_node(cell, x, lambda edge, ops, x, d=drawn: ops[d[edge]](x))
        random.seed(seed)
        out = cell.forward_urs(x)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        assert out.abs().sum() > 0
    with pytest.raises(ValueError, match="op_names must have more than none, got none"):
        NAS201SearchCell(4, 4, 1, 3, ["none"]).forward_urs(images().float())


def test_one_architecture_alone() -> None:
    x = images()
    structure = Structure.str2structure("|nor_conv_3x3~0|+|avg_pool_3x3~1|+|none~0|nor_conv_1x1~2|")
    cell = cell_of()
    plain = copy.deepcopy(cell)
    first = plain.edges["1<-0"][3](x)
    second = plain.edges["2<-1"][4](first)
    expected = plain.edges["3<-0"][0](x) + plain.edges["3<-2"][2](second)
    torch.testing.assert_close(cell.forward_dynamic(x, structure), expected, rtol=1e-9, atol=1e-9)


def test_partial_channels() -> None:
    torch.manual_seed(0)
    cell = NAS201SearchCell_PartialChannel(8, 8, 1, 4, NAS_BENCH_201).double()
    x, weights = images(6, 8), table()
    order = [group * 2 + i for i in range(2) for group in range(4)]

    def run(edge: int, ops: Sequence[nn.Module], x: Tensor) -> Tensor:
        first = sum(w * op(x[:, :2]) for w, op in zip(weights[edge], ops, strict=True))
        return torch.cat([first, x[:, 2:]], 1)[:, order]

    assert (cell.k, cell.in_dim, cell.out_dim) == (4, 8, 8)
    assert_same(cell, lambda c: c(x, weights), run, x)
    with pytest.raises(ValueError, match="a multiple of k, and stride 1"):
        NAS201SearchCell_PartialChannel(6, 6, 1, 4, NAS_BENCH_201)


def plain_convolution(state: dict[str, Tensor], x: Tensor, stride: int, dilation: int) -> Tensor:
    """ReLU, the convolutions of a state_dict, batch norm; the first has stride and dilation."""
    weights = [value for key, value in state.items() if key.endswith("weight")]
    x = x.relu()
    for i, weight in enumerate(weights):
        size = weight.shape[-1]
        by = dilation if size > 1 else 1
        groups = x.shape[1] // weight.shape[1]
        step = stride if i == 0 else 1
        x = functional.conv2d(x, weight, None, step, by * (size // 2), by, groups)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("name", "dilation"),
    [("nor_conv_7x7", 1), ("dua_sepc_3x3", 1), ("dua_sepc_5x5", 1), ("dil_sepc_3x3", 2)],
)
def test_convolutions_of_other_spaces(name: str, dilation: int, stride: int) -> None:
    torch.manual_seed(0)
    op, x = OPS[name](4, 6, stride, False, False).double(), images()
    state = op.state_dict()
    if name.startswith("dua"):
        halves = [{k: v for k, v in state.items() if k.startswith(f"op_{h}.")} for h in "ab"]
        first = plain_convolution(halves[0], x, stride, dilation)
        expected = plain_convolution(halves[1], first, 1, dilation)
    else:
        expected = plain_convolution(state, x, stride, dilation)
    torch.testing.assert_close(op(x), expected, rtol=1e-9, atol=1e-9)
    assert not any("running" in key for key in state)


def test_the_other_operations() -> None:
    x = images()
    windows = functional.pad(x, (1, 1, 1, 1), value=float("-inf")).unfold(2, 3, 2).unfold(3, 3, 2)
    assert torch.equal(OPS["max_pool_3x3"](4, 4, 2, False, True)(x), windows.amax((4, 5)))
    noise = OPS["noise"](4, 4, 2, False, True)
    assert isinstance(noise, NoiseOp)
    assert noise(x).shape == (3, 4, 4, 4)
    skip = ReLUConvBNSkip(4, 4, (3, 3), (1, 1), (1, 1), (1, 1), False).double()
    torch.testing.assert_close(skip(x), plain_convolution(skip.state_dict(), x, 1, 1) + x)
    for make, rule in (
        (lambda: POOLING(4, 4, 1, "min"), "mode must be avg or max, got 'min'"),
        (lambda: FactorizedReduce(4, 4, 3, False, True), "stride must be 1 or 2, got 3"),
        (lambda: ResNetBasicblock(4, 8, 3), "stride must be 1 or 2, got 3"),
    ):
        with pytest.raises(ValueError, match=rule):
            make()


@pytest.mark.parametrize("planes", [4, 8])
def test_a_residual_block_that_keeps_the_size(planes: int) -> None:
    block, x = ResNetBasicblock(4, planes, 1, False).double(), images()
    state = block.state_dict()
    parts = [
        {k: v for k, v in state.items() if k.startswith(part)} for part in ("conv_a", "conv_b")
    ]
    expected = plain_convolution(parts[1], plain_convolution(parts[0], x, 1, 1), 1, 1)
    shortcut = {k: v for k, v in state.items() if k.startswith("downsample")}
    expected = expected + (plain_convolution(shortcut, x, 1, 1) if planes == 8 else x)
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", SearchSpaceNames)
def test_every_space_trains(space: str) -> None:
    net = TinyNetwork(4, 1, 4, 5, nn.CrossEntropyLoss(), SearchSpaceNames[space], ARGS)
    assert net._arch_parameters.shape == (6, len(SearchSpaceNames[space]))
    before = net.stem[0].weight.detach().clone()
    _, loss = net.step(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), ARGS)
    assert loss.isfinite()
    assert net._arch_parameters.grad.abs().sum() > 0
    assert not torch.equal(net.stem[0].weight, before)
    ops = {op for node in net.genotype().nodes for op, _ in node}
    assert ops <= {*SearchSpaceNames[space]}


def test_building_a_network_draws_what_its_parameters_need() -> None:
    """So that a seed gives the same run: nothing is built and thrown away."""
    torch.manual_seed(0)
    net = TinyNetworkDartsProj(4, 1, 4, 5, None, NAS_BENCH_201, ARGS)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    torch.randn(6, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_published_structures_and_completion() -> None:
    assert get_combination(["a", "b"], 2)[1] == [("a", 0), ("b", 1)]
    assert len(get_combination(["a", "b", "c"], 3)) == 27
    assert {name: len(cell) for name, cell in architectures.items()} == dict.fromkeys(
        ("resnet", "all_c3x3", "all_c1x1", "all_idnt", "all_full"), 4
    )
    assert AllFull_CODE.node_N == [4, 8, 12]
    assert (
        ResNet_CODE.tostr() == "|nor_conv_3x3~0|+|nor_conv_3x3~1|+|skip_connect~0|skip_connect~2|"
    )
    full = Structure.str2fullstructure("|skip_connect~0|+|nor_conv_1x1~1|+|nor_conv_3x3~2|")
    assert full.tostr() == (
        "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|nor_conv_3x3~2|"
    )

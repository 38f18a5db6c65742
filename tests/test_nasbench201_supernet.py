# SPDX-License-Identifier: Apache-2.0
"""The NAS-Bench-201 operations and supernet: names, values, and the stand-alone network."""

from __future__ import annotations

import plain_darts
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.derive.nasbench201 import NasBench201Network
from darts_fast.nn import TinyNetwork
from darts_fast.nn.nasbench201 import OPS, NAS201SearchCell, ResNetBasicblock
from darts_fast.spaces import get_space

SPACE = get_space("nasbench201")
EDGES = ("1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2")
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def small(**options: object) -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork(4, 1, 5, **options).double()  # type: ignore[arg-type]


def relu_conv_bn(state: plain_darts.State, prefix: str, x: Tensor, stride: int) -> Tensor:
    weight = state[f"{prefix}op.1.weight"]
    y = functional.conv2d(x.relu(), weight, None, stride, weight.shape[-1] // 2)
    return plain_darts.batch_norm(state, f"{prefix}op.2", y)


def operation(state: plain_darts.State, name: str, x: Tensor, stride: int, channels: int) -> Tensor:
    same = x.shape[1] == channels
    if name == "none":
        return torch.zeros_like(x[:, :1, ::stride, ::stride]).expand(-1, channels, -1, -1)
    if name == "avg_pool_3x3":
        if not same:
            x = relu_conv_bn(state, "preprocess.", x, 1)
        return plain_darts.pool(x, stride, "avg")
    if name == "skip_connect":
        if stride == 2:
            x = x.relu()
            even = functional.conv2d(x[:, :, ::2, ::2], state["convs.0.weight"])
            odd = functional.conv2d(
                functional.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2], state["convs.1.weight"]
            )
            return plain_darts.batch_norm(state, "bn", torch.cat([even, odd], 1))
        if same:
            return x
        return plain_darts.batch_norm(state, "bn", functional.conv2d(x, state["conv.weight"]))
    assert state["op.1.weight"].shape[2:] == ((1, 1) if name.endswith("1x1") else (3, 3))
    return relu_conv_bn(state, "", x, stride)


def test_names() -> None:
    assert {*OPS} == {*NAMES}


@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
@pytest.mark.parametrize("channels", [4, 6, 7])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_operations_equal_formula(
    name: str, stride: int, affine: bool, channels: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    op = OPS[name](4, channels, stride, affine, True).double()
    for parameter in op.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    x = images(3, 4, *size)
    before = x.clone()
    expected = operation(op.state_dict(), name, x, stride, channels)
    out = op(x)
    assert out.shape == (3, channels, *((length + stride - 1) // stride for length in size))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before), "an operation must not write to its input"
    norms = [module for module in op.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.affine == affine for norm in norms)


@pytest.mark.parametrize("track", [False, True])
def test_batch_norms_track_running_statistics_on_demand(track: bool) -> None:
    for name in ("nor_conv_3x3", "skip_connect", "avg_pool_3x3"):
        op = OPS[name](4, 6, 2, False, track)
        assert any(key.endswith("running_var") for key in op.state_dict()) == track
    net = TinyNetwork(4, 1, 5, track_running_stats=track)
    searched = [key for key in net.state_dict() if ".edges." in key]
    assert any(key.endswith("running_var") for key in searched) == track


def test_none_multiplies() -> None:
    x = images(2, 4, 4, 4)
    x[0, 0, 0, 0] = float("inf")
    assert OPS["none"](4, 4, 1, False, True)(x)[0, 0, 0, 0].isnan()


def test_residual_block() -> None:
    torch.manual_seed(0)
    block = ResNetBasicblock(4, 8, 2).double()
    state, x = block.state_dict(), images(3, 4, 8, 6)
    y = relu_conv_bn(state, "conv_b.", relu_conv_bn(state, "conv_a.", x, 2), 1)
    shortcut = functional.conv2d(
        x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), state["downsample.1.weight"]
    )
    torch.testing.assert_close(block(x), y + shortcut, rtol=1e-10, atol=1e-10)
    assert "conv_a.op.2.weight" in state
    assert "conv_b.op.2.weight" in state


def test_state_dict_names() -> None:
    norm = ["running_mean", "running_var", "num_batches_tracked"]
    affine = ["weight", "bias", *norm]
    expected = {"stem.0.weight", "classifier.weight", "classifier.bias"}
    expected |= {f"{key}.{field}" for key in ("stem.1", "lastact.0") for field in affine}
    for cell in range(17):
        if cell in (5, 11):
            expected.add(f"cells.{cell}.downsample.1.weight")
            for block in ("conv_a", "conv_b"):
                expected.add(f"cells.{cell}.{block}.op.1.weight")
                expected |= {f"cells.{cell}.{block}.op.2.{field}" for field in affine}
        else:
            for edge in EDGES:
                for op in (2, 3):
                    prefix = f"cells.{cell}.edges.{edge}.{op}.op"
                    expected.add(f"{prefix}.1.weight")
                    expected |= {f"{prefix}.2.{field}" for field in norm}
    net = TinyNetwork(16, 5, 10)
    assert {*net.state_dict()} == expected
    assert len(expected) == 759
    assert [alpha.shape for alpha in net.arch_parameters()] == [(6, 5)]
    assert [*net.cells[0].edges] == [*EDGES]


@pytest.mark.parametrize("zero", ["multiply", "skip"])
def test_cell_equals_formula(zero: str) -> None:
    torch.manual_seed(0)
    cell = NAS201SearchCell(
        4,
        SPACE.edges,
        SPACE.primitives["cell"],
        zero=zero,
        affine=False,
        track_running_stats=True,
    ).double()
    weights = images(6, 5).softmax(-1)
    weights[1, 3] = 0.0
    weights[3] = 0.0
    weights.requires_grad_()
    x, state = images(2, 4, 6, 6), cell.state_dict()
    nodes = [x]
    for node in range(1, 4):
        total = torch.zeros(())
        for source in range(node):
            key = f"{node}<-{source}"
            for op, name in enumerate(NAMES):
                prefix = f"edges.{key}.{op}."
                own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
                y = operation(own, name, nodes[source], 1, 4)
                total = total + weights[EDGES.index(key), op] * y
        nodes.append(total)
    out = cell(x, weights)
    torch.testing.assert_close(out, nodes[-1], rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    skipped = cell.edges["2<-0"][3]
    assert skipped.op[2].num_batches_tracked == (1 if zero == "multiply" else 0)
    assert (skipped.op[1].weight.grad is None) == (zero == "skip")
    assert weights.grad is not None
    assert (weights.grad[1, 3] == 0) == (zero == "skip")
    assert cell.edges["2<-0"][2].op[2].num_batches_tracked == 1


def stand_alone(net: TinyNetwork, ops: list[int]) -> NasBench201Network:
    """The network of the chosen operations with the supernet's parameters and statistics."""
    weights = {"cell": torch.eye(5)[ops]}
    arch = SPACE.genotype(weights)
    assert isinstance(arch, str)
    other = NasBench201Network(arch, 4, 1, 5).double()
    own = net.state_dict()
    state = other.state_dict()
    for key in state:
        source = key
        for edge, name in enumerate(EDGES):
            source = source.replace(f"layers.{edge}.", f"edges.{name}.{ops[edge]}.")
        if source in own:
            state[key] = own[source]
        else:  # the searched batch norms are not affine: identity
            assert ".op.2." in key
            assert key.endswith((".weight", ".bias"))
    other.load_state_dict(state)
    return other


@pytest.mark.parametrize("zero", ["multiply", "skip"])
def test_one_hot_weights_give_the_stand_alone_network(zero: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = images(4, 3, 8, 8)
    net = small(zero=zero)
    for _ in range(20):
        ops = torch.randint(5, (6,), generator=generator).tolist()
        weights = {"cell": torch.eye(5, dtype=torch.float64)[ops]}
        net.train()
        other = stand_alone(net, ops)
        torch.testing.assert_close(net(x, weights), other(x), rtol=1e-6, atol=1e-6)
        net.eval()
        other.eval()
        torch.testing.assert_close(net(x, weights), other(x), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(net(x), other(x), atol=1e-4)


def test_a_projected_supernet_is_the_stand_alone_network() -> None:
    net, ops = small(), [3, 0, 2, 1, 4, 3]
    for edge, op in enumerate(ops):
        net.projection.project_op("cell", edge, op)
    other, x = stand_alone(net, ops), images(4, 3, 8, 8)
    torch.testing.assert_close(net(x), other(x), rtol=1e-6, atol=1e-6)


def test_new_has_the_configuration_and_alphas_but_its_own_weights() -> None:
    net = small(affine=True, track_running_stats=False, zero="skip")
    other = net.new()
    assert repr(other) == repr(net)
    assert {module.zero for module in other.modules() if hasattr(module, "zero")} == {"skip"}
    assert torch.equal(other.arch_parameters()[0], net.arch_parameters()[0])
    assert not torch.equal(other.classifier.weight, net.classifier.weight)
    other.load_state_dict(net.state_dict())
    x = images(2, 3, 8, 8)
    assert torch.equal(other(x), net(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"C": 0}, "TinyNetwork: C must be at least 1, got 0"),
        ({"N": 0}, "TinyNetwork: N must be at least 1, got 0"),
        ({"num_classes": 0}, "TinyNetwork: num_classes must be at least 1, got 0"),
        ({"zero": "no"}, "TinyNetwork: zero must be one of multiply, skip, got 'no'"),
        ({"space": "s5"}, "the one cell type cell, got 's5' with normal, reduce"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyNetwork(**{"C": 2, "N": 1, "num_classes": 3, **arguments})  # type: ignore[arg-type]


def test_weights_that_do_not_fit() -> None:
    net = small()
    with pytest.raises(ValueError, match="weights must be for cell, got 'normal'"):
        net(images(2, 3, 8, 8), {"normal": torch.ones(6, 5)})
    with pytest.raises(ValueError, match=r"NAS201SearchCell: .*\[6, 5\], got \[14, 5\]"):
        net.cells[0](images(2, 4, 8, 8), torch.ones(14, 5))

# SPDX-License-Identifier: Apache-2.0
"""The DARTS supernets: names, sizes, values from the state_dict alone, arguments."""

from __future__ import annotations

import re

import plain_darts
import pytest
import torch
from torch import Tensor

from darts_fast.nn import Network, Supernet, TinyNetwork, build_supernet
from darts_fast.spaces import get_space

DARTS_SPACES = ("darts", "s1", "s2", "s3", "s4", "s5")


def small(space: str, **options: object) -> Network:
    torch.manual_seed(0)
    return Network(2, 5, 3, space=space, **options).double()  # type: ignore[arg-type]


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def random_weights(space: str) -> dict[str, Tensor]:
    spec = get_space(space)
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randn(14, spec.num_ops, dtype=torch.float64, generator=generator).softmax(-1)
        for name in spec.cell_types
    }


@pytest.mark.parametrize(
    ("space", "keys"),
    [("darts", 4186), ("s1", 824), ("s2", 1274), ("s3", 1274), ("s4", 1194), ("s5", 4186)],
)
def test_number_of_state_dict_keys(space: str, keys: int) -> None:
    net = build_supernet(space, channels=16, num_classes=10, layers=8)
    assert isinstance(net, Network)
    assert len(net.state_dict()) == keys
    if keys == 4186:
        assert sum(p.numel() for p in net.parameters()) == 1_930_618


def test_state_dict_names() -> None:
    norm = ["running_mean", "running_var", "num_batches_tracked"]
    sep = ["op.1.weight", "op.2.weight", "op.5.weight", "op.6.weight"]
    sep += [f"op.{i}.{field}" for i in (3, 7) for field in norm]
    dil = ["op.1.weight", "op.2.weight", *(f"op.3.{field}" for field in norm)]
    reduce = ["conv_1.weight", "conv_2.weight", *(f"bn.{field}" for field in norm)]
    pool = [f"1.{field}" for field in norm]
    preprocess = ["op.1.weight", *(f"op.2.{field}" for field in norm)]
    expected = {"stem.0.weight", "classifier.weight", "classifier.bias"}
    expected |= {f"stem.1.{field}" for field in ("weight", "bias", *norm)}
    for cell in range(8):
        after_reduction = cell in (3, 6)
        expected |= {f"cells.{cell}.preprocess1.{key}" for key in preprocess}
        first = reduce if after_reduction else preprocess
        expected |= {f"cells.{cell}.preprocess0.{key}" for key in first}
        for edge, (source, _) in enumerate(get_space("darts").edges):
            strided = cell in (2, 5) and source < 2
            skip = reduce if strided else []
            for op, keys in enumerate([[], pool, pool, skip, sep, sep, dil, dil]):
                expected |= {f"cells.{cell}._ops.{edge}._ops.{op}.{key}" for key in keys}
    net = Network(4, 10, 8)
    assert {*net.state_dict()} == expected
    assert len(net.cells[0]._bns) == 0


@pytest.mark.parametrize("zero", [None, "multiply", "skip"])
@pytest.mark.parametrize("space", ["darts", "s1", "s2", "s3", "s5"])
def test_equals_formula(space: str, zero: str | None) -> None:
    net = small(space, zero=zero)
    for parameter in net.stem.parameters():
        torch.nn.init.normal_(parameter)
    weights = random_weights(space)
    weights["normal"][4] = 0.0
    weights["normal"][7, 1] = 0.0
    weights["reduce"][1, 0] = 0.0
    x = images(3, 3, 8, 12)
    primitives = get_space(space).primitives
    expected = plain_darts.network(net.state_dict(), x, 3, primitives, weights)
    torch.testing.assert_close(net(x, weights), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("space", DARTS_SPACES)
def test_one_hot_weights_run_a_single_path(space: str) -> None:
    """One operation per edge: the value is that of the chosen ones, and only they are touched."""
    net = small(space, zero="skip")
    spec = get_space(space)
    chosen = {name: torch.arange(14) % spec.num_ops for name in spec.cell_types}
    chosen["reduce"] = chosen["reduce"].flip(0)
    weights = {name: torch.eye(spec.num_ops).double()[ops] for name, ops in chosen.items()}
    x = images(3, 3, 8, 8)
    if space != "s4":  # noise has no formula
        expected = plain_darts.network(net.state_dict(), x, 3, spec.primitives, weights)
        torch.testing.assert_close(net(x, weights), expected, rtol=1e-8, atol=1e-8)
    net(x, weights).square().sum().backward()
    for name, parameter in net.named_parameters():
        match = re.match(r"cells\.(\d)\._ops\.(\d+)\._ops\.(\d)\.", name)
        if match:
            cell, edge, op = map(int, match.groups())
            kind = "reduce" if cell > 0 else "normal"
            assert (parameter.grad is None) == (op != chosen[kind][edge]), name
    assert all(alpha.grad is None for alpha in net.arch_parameters())


@pytest.mark.parametrize(
    ("space", "rule"),
    [("darts", "multiply"), ("s1", "skip"), ("s2", "skip"), ("s4", "skip"), ("s5", "skip")],
)
def test_the_default_zero_rule_is_the_space_s(space: str, rule: str) -> None:
    net = small(space)
    assert {module.zero for module in net.modules() if hasattr(module, "zero")} == {rule}
    spec = get_space(space)
    zeros = {name: torch.zeros(14, spec.num_ops).double() for name in spec.cell_types}
    net(images(2, 3, 8, 8), zeros)
    tracked = [b for n, b in net.cells.named_buffers() if "_ops" in n and n.endswith("tracked")]
    assert {int(count) for count in tracked} == {0 if rule == "skip" else 1}


def test_given_weights_replace_one_cell_type() -> None:
    net = small("s5")
    x, weights = images(2, 3, 8, 8), random_weights("s5")
    own = net.edge_weights()
    for name, other in (("normal", "reduce"), ("reduce", "normal")):
        both = net(x, {name: weights[name], other: own[other]})
        assert torch.equal(net(x, {name: weights[name]}), both)
        assert not torch.equal(net(x), both)
    assert torch.equal(net(x), net(x, own))
    assert torch.equal(net(x), net(x, {}))


def test_gradients_reach_given_weights() -> None:
    net = small("s5")
    weights = {name: table.requires_grad_() for name, table in random_weights("s5").items()}
    net(images(2, 3, 8, 8), weights).square().sum().backward()
    assert all(table.grad is not None and table.grad.any() for table in weights.values())
    assert all(alpha.grad is None for alpha in net.arch_parameters())


def test_drop_path_prob_is_used_in_training_only() -> None:
    net = small("s5", drop_path_prob=0.3)
    x = images(4, 3, 8, 8)
    torch.manual_seed(0)
    dropped = net(x)
    net.drop_path_prob = 0.0
    assert not torch.allclose(dropped, net(x))
    net.eval()
    plain = net(x)
    net.drop_path_prob = 0.3
    assert torch.equal(net(x), plain)


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 8])
def test_depths(layers: int) -> None:
    torch.manual_seed(0)
    net = Network(2, 5, layers, space="s2")
    reductions = [i for i, cell in enumerate(net.cells) if cell.reduction]
    assert reductions == sorted({layers // 3, 2 * layers // 3})
    size = 2 ** len(reductions)
    assert net(torch.randn(2, 3, 2 * size, size)).shape == (2, 5)


@pytest.mark.parametrize("space", [*DARTS_SPACES, "nasbench201"])
def test_image_sizes(space: str) -> None:
    net = build_supernet(space, channels=2, num_classes=3, layers=1 if space[0] == "n" else 5)
    for size in ((8, 8), (12, 20), (4, 32)):
        net.check_image_size(*size)
        assert net(torch.randn(2, 3, *size)).shape == (2, 3)
    for h, w in ((6, 8), (8, 10), (33, 32), (2, 2), (0, 8)):
        message = rf"{type(net).__name__}: .* even at each of the 2 reductions.* got {h}x{w}"
        with pytest.raises(ValueError, match=message):
            net.check_image_size(h, w)
        before = [buffer.clone() for buffer in net.buffers()]
        with pytest.raises(ValueError, match=message):
            net(torch.randn(2, 3, h, w))
        assert all(map(torch.equal, before, net.buffers())), "nothing may run before the check"
    # The rule is not stricter than it must be: without the check these sizes fail too.
    for size in ((14, 8), (8, 10)):
        with pytest.raises((RuntimeError, ValueError)):
            net._features(torch.randn(2, 3, *size), net.edge_weights())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fewer_steps(steps: int) -> None:
    torch.manual_seed(0)
    net = Network(2, 5, 3, steps=steps, multiplier=1, space="s1")
    edges = steps * (steps + 3) // 2
    assert [alpha.shape for alpha in net.arch_parameters()] == [(edges, 2)] * 2
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    genotype = net.genotype()
    assert genotype.normal_concat == genotype.reduce_concat == range(1 + steps, 2 + steps)
    assert len(genotype.normal) == 2 * steps


def test_genotype_of_the_weights() -> None:
    net = small("darts")
    assert net.genotype() == get_space("darts").genotype(net.edge_weights())
    assert net.genotype().normal_concat == range(2, 6)
    with torch.no_grad():
        net.alphas_normal[:, 4] += 5
    assert {name for name, _ in net.genotype().normal} == {"sep_conv_3x3"}


def test_new_has_the_configuration_and_alphas_but_its_own_weights() -> None:
    net = small("s3", zero="multiply", drop_path_prob=0.1)
    net.projection.project_op("normal", 2, 1)
    other = net.new()
    assert type(other) is Network
    assert repr(other) == repr(net)
    assert other.drop_path_prob == 0.1
    assert other.projection.state_dict() == net.projection.state_dict()
    for own, copied in zip(net.arch_parameters(), other.arch_parameters(), strict=True):
        assert torch.equal(own, copied)
        assert own is not copied
    assert other.classifier.weight.dtype == torch.float64
    assert not torch.equal(other.classifier.weight, net.classifier.weight)
    other.load_state_dict(net.state_dict())
    x = images(2, 3, 8, 8)
    assert torch.equal(other.eval()(x), net.eval()(x))


def test_loss_is_the_criterion_s() -> None:
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    net = Network(2, 5, 3, space="s2")
    assert torch.equal(net._loss(x, labels), torch.nn.CrossEntropyLoss()(net(x), labels))
    net = Network(2, 5, 3, torch.nn.MultiMarginLoss(), space="s2")
    assert torch.equal(net._loss(x, labels), torch.nn.MultiMarginLoss()(net(x), labels))


def test_the_same_seed_gives_the_same_network() -> None:
    first, second = small("s5"), small("s5")
    for (name, a), (other, b) in zip(
        first.named_parameters(), second.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)


def test_build_supernet() -> None:
    for space in DARTS_SPACES:
        net = build_supernet(get_space(space), channels=2, num_classes=3, layers=2)
        assert type(net) is Network
        assert isinstance(net, Supernet)
        assert net.space.name == space
        assert len(net.cells) == 2
    net = build_supernet("nasbench201", channels=2, num_classes=3, layers=2)
    assert type(net) is TinyNetwork
    assert len(net.cells) == 8
    with pytest.raises(ValueError, match=r"must be one of darts, .*got 's6'"):
        build_supernet("s6", channels=2, num_classes=3, layers=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"C": 0}, "Network: C must be at least 1, got 0"),
        ({"num_classes": 0}, "Network: num_classes must be at least 1, got 0"),
        ({"layers": 0}, "Network: layers must be at least 1, got 0"),
        ({"steps": 5}, "Network: steps must be 1 to 4 in space 'darts', got 5"),
        ({"steps": 0}, "Network: steps must be 1 to 4 in space 'darts', got 0"),
        ({"multiplier": 5}, "Cell: multiplier must be 1 to steps, got multiplier=5, steps=4"),
        ({"drop_path_prob": 1.0}, "drop_path_prob must be at least 0 and below 1, got 1.0"),
        ({"zero": "no"}, "Network: zero must be one of multiply, skip, got 'no'"),
        ({"space": "nasbench201"}, "cell types normal and reduce, got 'nasbench201' with cell"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(**{"C": 2, "num_classes": 3, "layers": 3, **arguments})  # type: ignore[arg-type]


def test_inputs_that_do_not_fit() -> None:
    net = small("s5")
    x = images(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[2, 1, 8, 8\]"):
        net(x[:, :1])
    with pytest.raises(ValueError, match=r"images must be \[N, 3, H, W\], got \[3, 8, 8\]"):
        net(x[0])
    with pytest.raises(ValueError, match="weights must be for normal, reduce, got 'cell'"):
        net(x, {"cell": torch.ones(14, 7)})
    with pytest.raises(ValueError, match=r"Network normal: .* \[14, 7\], got \[14, 8\]"):
        net(x, {"normal": torch.ones(14, 8)})
    with pytest.raises(TypeError, match="Network reduce: weights must be a tensor, got list"):
        net(x, {"reduce": [[1.0]]})

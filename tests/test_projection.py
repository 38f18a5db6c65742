# SPDX-License-Identifier: Apache-2.0
"""Decisions about edges and nodes: their rows, their gradients, their bookkeeping."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from darts_fast.nn import Network, Projection, build_supernet
from darts_fast.spaces import get_space


@pytest.fixture
def net() -> Network:
    torch.manual_seed(0)
    net = Network(2, 3, 3, space="s5")
    for alpha in net.arch_parameters():
        alpha.data.normal_()
    return net


def one_hot(op: int, ops: int = 7) -> Tensor:
    return torch.eye(ops)[op]


def test_undecided_weights_are_the_softmax(net: Network) -> None:
    weights = net.edge_weights()
    assert [*weights] == ["normal", "reduce"]
    assert torch.equal(weights["normal"], net.alphas_normal.softmax(-1))
    assert torch.equal(weights["reduce"], net.alphas_reduce.softmax(-1))


def test_rows_of_decided_edges(net: Network) -> None:
    net.projection.project_op("normal", 3, 5)
    net.projection.project_op("normal", 0, 0)
    weights = net.edge_weights()
    assert torch.equal(weights["normal"][3], one_hot(5))
    assert torch.equal(weights["normal"][0], one_hot(0))
    others = [edge for edge in range(14) if edge not in (0, 3)]
    assert torch.equal(weights["normal"][others], net.alphas_normal.softmax(-1)[others])
    assert torch.equal(weights["reduce"], net.alphas_reduce.softmax(-1))
    assert net.projection.undecided_edges("normal") == others
    assert net.projection.undecided_edges("reduce") == [*range(14)]


@pytest.mark.parametrize("decided", [False, True])
def test_rows_of_dropped_edges(net: Network, decided: bool) -> None:
    if decided:
        for edge in range(5, 9):
            net.projection.project_op("reduce", edge, edge - 5)
    net.projection.project_edges("reduce", 4, [8, 6])
    weights = net.edge_weights()["reduce"]
    assert weights[[5, 7]].count_nonzero() == 0
    softmax = net.alphas_reduce.softmax(-1)
    if decided:
        assert torch.equal(weights[[6, 8]], torch.stack([one_hot(1), one_hot(3)]))
    else:
        assert torch.equal(weights[[6, 8]], softmax[[6, 8]])
    kept = [edge for edge in range(14) if edge not in range(5, 9)]
    assert torch.equal(weights[kept], softmax[kept])
    assert net.projection.undecided_edges("reduce") == (kept if decided else sorted([*kept, 6, 8]))


def test_nodes(net: Network) -> None:
    assert net.projection.undecided_nodes("normal") == [3, 4, 5]
    net.projection.project_edges("normal", 4, [5, 6])
    assert net.projection.undecided_nodes("normal") == [3, 5]
    assert net.projection.undecided_nodes("reduce") == [3, 4, 5]
    net.projection.project_edges("normal", 3, [2, 4])
    net.projection.project_edges("normal", 5, [9, 13])
    assert net.projection.undecided_nodes("normal") == []
    assert net.projection.undecided_edges("normal") == [0, 1, 2, 4, 5, 6, 9, 13]


def test_gradient_of_decided_rows_is_exactly_zero(net: Network) -> None:
    net.projection.project_op("normal", 3, 5)
    net.projection.project_op("reduce", 13, 2)
    net.projection.project_edges("normal", 4, [5, 6])
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    grads = torch.autograd.grad(net._loss(images, labels), net.arch_parameters())
    for grad, decided in zip(grads, ([3, 7, 8], [13]), strict=True):
        assert grad[decided].count_nonzero() == 0
        others = [edge for edge in range(14) if edge not in decided]
        assert (grad[others] != 0).any(dim=1).all()


def test_decisions_act_in_the_forward(net: Network) -> None:
    images = torch.randn(4, 3, 8, 8)
    for edge in range(14):
        net.projection.project_op("normal", edge, edge % 7)
    net.projection.project_edges("reduce", 5, [9, 10])
    rows = torch.stack([one_hot(edge % 7) for edge in range(14)])
    table = net.alphas_reduce.softmax(-1).detach().clone()
    table[[11, 12, 13]] = 0
    assert torch.equal(net(images), net(images, {"normal": rows, "reduce": table}))
    assert not torch.equal(net(images), net(images, {"normal": net.alphas_normal.softmax(-1)}))


def test_dtype_follows_the_alphas(net: Network) -> None:
    net.projection.project_op("normal", 3, 5)
    assert net.double().edge_weights()["normal"].dtype == torch.float64


def test_genotype_follows_the_decisions(net: Network) -> None:
    weakest = net.alphas_normal.argmin(-1).tolist()
    for edge in range(14):
        net.projection.project_op("normal", edge, weakest[edge])
    net.projection.project_edges("normal", 3, [2, 4])
    net.projection.project_edges("normal", 4, [5, 6])
    net.projection.project_edges("normal", 5, [9, 13])
    names = net.space.primitives["normal"][0]
    kept = [0, 1, 2, 4, 5, 6, 9, 13]
    expected = [(names[weakest[edge]], net.space.edges[edge][0]) for edge in kept]
    assert net.genotype().normal == expected


def test_nasbench201_has_no_topology_step() -> None:
    net = build_supernet("nasbench201", channels=2, num_classes=3, layers=1)
    assert net.projection.undecided_nodes("cell") == []
    assert net.projection.undecided_edges("cell") == [0, 1, 2, 3, 4, 5]
    for edge, op in enumerate((3, 1, 0, 2, 4, 3)):
        net.projection.project_op("cell", edge, op)
    assert torch.equal(
        net.edge_weights()["cell"], torch.stack([one_hot(op, 5) for op in (3, 1, 0, 2, 4, 3)])
    )
    assert net.genotype() == (
        "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    )
    with pytest.raises(ValueError, match=r"more than two inputs, \[\], got 3"):
        net.projection.project_edges("cell", 3, [3, 4])


def test_state_dict_round_trip(net: Network) -> None:
    net.projection.project_op("normal", 3, 5)
    net.projection.project_op("reduce", 7, 1)
    net.projection.project_edges("reduce", 4, [8, 5])
    buffer = io.BytesIO()
    torch.save(net.projection.state_dict(), buffer)
    buffer.seek(0)
    other = Projection(get_space("s5"))
    other.project_op("normal", 0, 0)  # is forgotten
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.state_dict() == net.projection.state_dict()
    for cell_type in ("normal", "reduce"):
        weights = torch.rand(14, 7)
        assert torch.equal(
            other.apply(cell_type, weights), net.projection.apply(cell_type, weights)
        )
    other.project_op("normal", 1, 1)  # the copies are independent
    assert 1 in net.projection.undecided_edges("normal")


def test_a_state_that_does_not_fit_changes_nothing(net: Network) -> None:
    net.projection.project_op("normal", 3, 5)
    before = net.projection.state_dict()
    bad = Projection(get_space("s5"))
    bad.project_op("normal", 2, 6)
    state = bad.state_dict()
    with pytest.raises(ValueError, match="state must belong to space 's5', got 's2'"):
        net.projection.load_state_dict({**state, "space": "s2"})
    with pytest.raises(ValueError, match="state must have space, ops, edges, got space, ops"):
        net.projection.load_state_dict({"space": "s5", "ops": {}})
    state["ops"]["reduce"][14] = 0
    with pytest.raises(ValueError, match="edge must be 0 to 13, got 14"):
        net.projection.load_state_dict(state)
    assert net.projection.state_dict() == before


ERRORS: list[tuple[Callable[[Projection], object], str]] = [
    (lambda p: p.project_op("cell", 0, 0), "cell_type must be one of normal, reduce, got 'cell'"),
    (lambda p: p.project_op("normal", 14, 0), "project_op: edge must be 0 to 13, got 14"),
    (lambda p: p.project_op("normal", -1, 0), "project_op: edge must be 0 to 13, got -1"),
    (lambda p: p.project_op("normal", 0, 7), "project_op: op must be 0 to 6, got 7"),
    (lambda p: p.project_op("normal", 3, 0), "edge 3 must be undecided, got .* fixed to op 5"),
    (lambda p: p.project_op("normal", 9, 0), "edge 9 must be undecided, got one its node dropped"),
    (lambda p: p.project_edges("cell", 3, [2, 3]), "cell_type must be one of normal, reduce"),
    (lambda p: p.project_edges("normal", 2, [0, 1]), r"two inputs, \[3, 4, 5\], got 2"),
    (lambda p: p.project_edges("normal", 6, [0, 1]), r"two inputs, \[3, 4, 5\], got 6"),
    (lambda p: p.project_edges("normal", 5, [9, 10]), r"undecided, got one that keeps \[12, 13\]"),
    (lambda p: p.project_edges("normal", 3, [2, 5]), r"edges of \[2, 3, 4\], got \[2, 5\]"),
    (lambda p: p.project_edges("normal", 3, [2, 2]), r"edges of \[2, 3, 4\], got \[2, 2\]"),
    (lambda p: p.project_edges("normal", 3, [2]), r"edges of \[2, 3, 4\], got \[2\]"),
    (lambda p: p.project_edges("normal", 3, [2, 3, 4]), r"edges of .*, got \[2, 3, 4\]"),
    (lambda p: p.undecided_edges("x"), "undecided_edges: cell_type must be .* got 'x'"),
    (lambda p: p.undecided_nodes("x"), "undecided_nodes: cell_type must be .* got 'x'"),
    (lambda p: p.apply("x", torch.ones(14, 7)), "apply: cell_type must be .* got 'x'"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors(call: Callable[[Projection], object], message: str) -> None:
    projection = Projection(get_space("s5"))
    projection.project_op("normal", 3, 5)
    projection.project_edges("normal", 5, [13, 12])
    before = projection.state_dict()
    with pytest.raises(ValueError, match=message):
        call(projection)
    assert projection.state_dict() == before

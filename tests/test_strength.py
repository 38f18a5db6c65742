# SPDX-License-Identifier: Apache-2.0
"""Operation strength: the identity behind it, its quality, its degeneracy, and what it selects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from planted import EDGES, SPACE, planted
from scipy import stats
from selection_cases import Batches, small_batches, small_net
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.nn import Supernet
from darts_fast.selection import (
    PerturbationConfig,
    StationaryPointWarning,
    StrengthConfig,
    StrengthSelection,
    removal_scores,
    select,
    strengths,
)
from darts_fast.selection.strength import gate_gradients, ranked_shares, stationarity


class ChainNet(Supernet):
    """Mixed edges in a row with the operations tanh of a matrix, a matrix, identity: every
    contribution is at hand."""

    def __init__(self, scale: float = 1.0, width: int = 8, classes: int = 4) -> None:
        super().__init__(SPACE, None)
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(EDGES, width, width, dtype=torch.float64) / width**0.5)
        self.b = nn.Parameter(torch.randn(EDGES, width, width, dtype=torch.float64) / width**0.5)
        self.scale = scale
        self.head = nn.Parameter(torch.randn(classes, width, dtype=torch.float64))
        self._register_alphas({"cell": "alphas"})
        self.alphas.data = 0.5 * torch.randn(EDGES, 3, dtype=torch.float64)
        self.contributions: list[list[Tensor]] = []

    def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        table = {**self.edge_weights(), **(weights or {})}["cell"]
        x = x.flatten(1)
        self.contributions = []
        for edge in range(EDGES):
            w = table[edge]
            outs = [
                self.scale * w[0] * (x @ self.a[edge].T).tanh(),
                self.scale * w[1] * (x @ self.b[edge].T),
                w[2] * x,
            ]
            self.contributions.append(outs)
            x = outs[0] + outs[1] + outs[2]
        return x @ self.head.T


def chain_batches(images: int = 60, batch: int = 20) -> Batches:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(images, 8, 1, 1, dtype=torch.float64, generator=generator)
    y = torch.randint(4, (images,), generator=generator)
    return list(zip(x.split(batch), y.split(batch), strict=True))


# (a) the identity


def test_gate_gradient_is_the_inner_product_with_the_contribution() -> None:
    net = ChainNet()
    ((x, y),) = batches = chain_batches(20)
    gates = gate_gradients(net, batches)["cell"][0]

    # dL/dz with z kept in the graph.
    loss = functional.cross_entropy(net(x), y)
    flat = [z for outs in net.contributions for z in outs]
    products = [
        (gradient * z).sum()
        for gradient, z in zip(torch.autograd.grad(loss, flat), flat, strict=True)
    ]
    torch.testing.assert_close(gates, torch.stack(products).view(EDGES, 3), rtol=1e-9, atol=1e-12)

    # dL/dg of a gate on the weight, by central differences.
    w = net.edge_weights()["cell"].detach()
    for edge, op in ((0, 0), (2, 1), (4, 2)):
        ends = []
        for step in (1e-5, -1e-5):
            table = w.clone()
            table[edge, op] *= 1 + step
            ends.append(functional.cross_entropy(net(x, {"cell": table}), y).item())
        slope = (ends[0] - ends[1]) / 2e-5
        assert gates[edge, op].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("space", ["nasbench201", "s2"])
def test_one_backward_gives_all_cells_and_edges(space: str) -> None:
    net, batches = small_net(space).double(), small_batches(6)
    found = gate_gradients(net, batches)
    ((x, y),) = batches
    own = {name: w.detach() for name, w in net.edge_weights().items()}
    net.train()
    for name, gates in found.items():
        assert gates.shape == (1, net.space.num_edges, net.space.num_ops)
        for edge, op in ((0, 0), (net.space.num_edges - 1, net.space.num_ops - 1)):
            ends = []
            for step in (1e-7, -1e-7):
                table = own[name].clone()
                table[edge, op] *= 1 + step
                with torch.no_grad():
                    logits = net(x.double(), {**own, name: table})
                ends.append(functional.cross_entropy(logits, y).item())
            slope = (ends[0] - ends[1]) / 2e-7
            assert gates[0, edge, op].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_estimating_leaves_no_trace() -> None:
    net, batches = small_net("s4"), small_batches(6, 4)
    net.eval()
    next(net.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in net.parameters()]
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    state = torch.get_rng_state()
    first = strengths(net, batches).tables
    assert torch.equal(state, torch.get_rng_state())
    assert flags == [p.requires_grad for p in net.parameters()]
    assert not net.training
    assert all(torch.equal(buffers[name], buffer) for name, buffer in net.named_buffers())
    assert all(parameter.grad is None for _, parameter in net.named_parameters())
    second = strengths(net, batches).tables  # s4 has noise: its draws are keyed
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_variants_are_what_they_are_called() -> None:
    net, batches = small_net("nasbench201").double(), small_batches(6, 4)
    gates = gate_gradients(net, batches)["cell"]
    assert gates.shape[0] == 2
    for variant, expected in (
        ("taylor", (gates[0].abs() + gates[1].abs()) / 2),
        ("taylor2", (gates[0] ** 2 + gates[1] ** 2) / 2),
        ("signed", -(gates[0] + gates[1]) / 2),
    ):
        found = strengths(net, batches, variant=variant)
        torch.testing.assert_close(found.tables["cell"], expected)
        assert (found.variant, found.images) == (variant, 10)
    exact = strengths(net, batches, variant="exact").tables["cell"]
    scores = removal_scores(net, batches, cell_type="cell")
    torch.testing.assert_close(exact, scores.loss - scores.base.loss)


# (b), (c), (d) against the exact removal


def test_it_is_exact_where_the_loss_is_linear_in_the_contribution() -> None:
    class Linear(ChainNet):
        """Its cross entropy is linear in the logits of one class: the other is constant and far."""

        def forward(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
            score = super().forward(x, weights)[:, :1]
            return torch.cat([score, torch.full_like(score, 60.0)], dim=1)

    net = Linear()
    batches = [(x, torch.zeros_like(y)) for x, y in chain_batches()]  # loss = 60 - score
    signed = strengths(net, batches, variant="signed").tables["cell"][EDGES - 1]
    exact = strengths(net, batches, variant="exact").tables["cell"][EDGES - 1]
    torch.testing.assert_close(signed, exact, rtol=1e-6, atol=1e-6)


def test_the_gap_to_the_exact_removal_shrinks_with_the_operation() -> None:
    gaps = []
    for scale in (1.0, 0.5, 0.25, 0.05):
        net, batches = ChainNet(scale), chain_batches()
        signed = strengths(net, batches, variant="signed").tables["cell"][:, :2]
        exact = strengths(net, batches, variant="exact").tables["cell"][:, :2]
        gaps.append(((signed - exact).norm() / exact.norm()).item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 * gaps[0]


def test_it_ranks_operations_as_their_removal_does() -> None:
    net, batches = ChainNet(0.7), chain_batches()
    signed = strengths(net, batches, variant="signed").tables["cell"]
    exact = strengths(net, batches, variant="exact").tables["cell"]
    correlation = stats.spearmanr(signed.flatten(), exact.flatten()).statistic
    assert correlation >= 0.8
    assert (signed.argmax(1) == exact.argmax(1)).double().mean() >= 0.5


# (e) the stationary point


def trained_to_a_stationary_point() -> tuple[ChainNet, Batches]:
    """Alphas at the minimum of the loss; labels drawn from the network itself, so that the minimum
    is a mixture."""
    net = ChainNet()
    batches = []
    for x, _ in chain_batches(3000, 500):
        with torch.no_grad():
            labels = torch.multinomial(net(x).softmax(1), 1)[:, 0]
        batches.append((x, labels))
    with torch.no_grad():
        net.alphas += 0.3 * torch.randn_like(net.alphas)
    optimizer = torch.optim.LBFGS(
        [net.alphas],
        max_iter=600,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([functional.cross_entropy(net(x), y) for x, y in batches]).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return net, batches


def test_signed_strength_degenerates_at_a_stationary_point_and_says_so() -> None:
    net, batches = trained_to_a_stationary_point()
    with pytest.warns(StationaryPointWarning, match="near a stationary point"):
        signed = strengths(net, batches, variant="signed")
    w = signed.weights["cell"]
    assert w.min() > 0.02  # a mixture: no operation was driven out
    ratio = signed.tables["cell"] / w
    assert torch.equal((ratio.amax(1) - ratio.amin(1)) < 0.002 * ratio.abs().amax(1), WHOLE)
    taylor = strengths(net, batches).tables["cell"] / w  # no warning: an error otherwise
    assert ((taylor.amax(1) / taylor.amin(1)) > 1.05).any()


WHOLE = torch.ones(EDGES, dtype=torch.bool)


def test_away_from_a_stationary_point_there_is_no_warning() -> None:
    net, batches = ChainNet(), chain_batches()
    strengths(net, batches, variant="signed")
    spread = stationarity(gate_gradients(net, batches), net.edge_weights())
    assert spread.shape == (EDGES,)
    assert spread.median() > 0.05


# (f) selections


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("variant", ["taylor", "taylor2", "exact"])
def test_strength_picks_the_planted_operation(seed: int, variant: str) -> None:
    net, batches = planted(seed=seed)
    config = StrengthConfig(variant=variant)
    genotype = select(net, batches, method="strength", config=config).genotype
    assert isinstance(genotype, str)
    assert genotype.split("|").count("rotation") >= 4


@pytest.mark.parametrize("seed", range(3))
def test_one_shot_picks_the_planted_operation(seed: int) -> None:
    net, batches = planted(seed=seed)
    selection = select(net, batches, method="one_shot")
    assert isinstance(selection.genotype, str)
    assert selection.genotype.split("|").count("rotation") >= 4
    assert all(decision.outcomes == ["full"] for decision in selection.decisions)


@pytest.mark.parametrize("space", ["nasbench201", "s2"])
def test_one_shot_scores_are_those_of_the_untouched_supernet(space: str) -> None:
    net, batches = small_net(space), small_batches(4, 4)
    scores = {
        name: removal_scores(net, batches, cell_type=name).loss for name in net.space.cell_types
    }
    config = PerturbationConfig(proj_crit="loss", seed=1)
    selection = select(net, batches, method="one_shot", config=config)
    w = net.edge_weights()
    for decision in selection.decisions:
        if decision.kind == "op":
            row = scores[decision.cell_type][decision.place]
            assert decision.loss == [pytest.approx(row.tolist(), rel=1e-12)]
            assert decision.chosen == [int(row.argmax())]
            if space == "nasbench201":  # no edge is dropped: the decision is in the network
                assert w[decision.cell_type][decision.place, decision.chosen[0]] == 1
        else:
            edges = net.space.node_edges[decision.place]
            (loss,) = decision.loss
            two = sorted(sorted(range(len(edges)), key=lambda i: -loss[i])[:2])
            assert decision.chosen == [edges[i] for i in two]
    assert selection.genotype == net.genotype()


@pytest.mark.parametrize("node_rule", ["max", "sum"])
def test_nodes_keep_their_strongest_edges(node_rule: str) -> None:
    net, batches = small_net("s2"), small_batches(4)
    table = strengths(net, batches).tables
    selection = select(
        net, batches, method="strength", config=StrengthConfig(node_rule=node_rule, seed=4)
    )
    nodes = [decision for decision in selection.decisions if decision.kind == "edge"]
    assert len(nodes) == 6
    for decision in nodes:
        rows = table[decision.cell_type][list(net.space.node_edges[decision.place])]
        worth = rows.amax(1) if node_rule == "max" else rows.sum(1)
        best = worth.argsort(descending=True)[:2].tolist()
        edges = net.space.node_edges[decision.place]
        assert decision.chosen == sorted(edges[i] for i in best)
        assert decision.strengths == [pytest.approx(worth.tolist())]
    operations = [decision for decision in selection.decisions if decision.kind == "op"]
    assert len(operations) == 28
    for decision in operations:
        assert decision.chosen == [int(table[decision.cell_type][decision.place].argmax())]
    assert selection.genotype == net.genotype()


def test_progressive_strength_tunes_between_and_sees_its_decisions() -> None:
    net, batches = small_net("nasbench201").double(), small_batches(4)
    tuned: list[int] = []
    config = StrengthConfig(schedule="progressive", proj_intv=2)
    phase = StrengthSelection(net, batches, config, tune=tuned.append)
    phase.run()
    assert [d.epoch for d in phase.decisions] == [0, 2, 4, 6, 8, 9]
    assert tuned == list(range(9))
    assert phase.evaluations == 6
    one_shot = StrengthSelection(small_net("nasbench201").double(), batches, tune=tuned.append)
    one_shot.run()
    assert len(tuned) == 9  # nothing more
    assert one_shot.evaluations == 1
    # The first decision is the same, a later one is made on what the first has left.
    assert one_shot.decisions[0].strengths == phase.decisions[0].strengths
    assert one_shot.decisions[-1].strengths != phase.decisions[-1].strengths


def test_ranked_shares() -> None:
    assert ranked_shares([0.1, 0.3, 0.2], largest=True) == pytest.approx([2 / 11, 6 / 11, 3 / 11])
    assert ranked_shares([0.1, 0.3, 0.2], largest=False) == pytest.approx([6 / 11, 2 / 11, 3 / 11])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "x"}, "variant must be one of taylor, taylor2, signed, exact, got 'x'"),
        ({"schedule": "x"}, "schedule must be one of one_shot, progressive, got 'x'"),
        ({"node_rule": "x"}, "node_rule must be one of max, sum, got 'x'"),
        ({"proj_intv": -1}, "proj_intv must be 0 or more, got -1"),
        ({"variant": "exact", "schedule": "progressive"}, "variant exact needs schedule one_shot"),
    ],
)
def test_strength_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StrengthConfig(**settings)


def test_strength_arguments_are_checked() -> None:
    net, batches = small_net("nasbench201").double(), small_batches(6, 4)
    with pytest.raises(ValueError, match="batches must not be empty, got 0 batches"):
        strengths(net, [])
    with pytest.raises(ValueError, match=r"variant must be one of .* got 'x'"):
        strengths(net, batches, variant="x")
    with pytest.raises(ValueError, match="batches must not be empty, got 0 batches"):
        select(net, [], method="strength")
    with pytest.raises(ValueError, match="batches must be a sequence, got a function"):
        select(net, lambda: batches, method="strength")
    with pytest.raises(
        ValueError, match="method one_shot takes a PerturbationConfig, got Strength"
    ):
        select(net, batches, method="one_shot", config=StrengthConfig())

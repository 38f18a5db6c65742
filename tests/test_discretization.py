# SPDX-License-Identifier: Apache-2.0
"""Selection by accuracy after discretisation, progressive magnitude, and tuning hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import EDGES, planted
from torch import Tensor

from darts_fast.data import Dataset, load_data
from darts_fast.nn import Supernet, build_supernet
from darts_fast.search import Search
from darts_fast.seeding import seed_everything
from darts_fast.selection import (
    DiscretizationConfig,
    DiscretizationSelection,
    MagnitudeSelection,
    PerturbationConfig,
    discretized,
    magnitude_genotype,
    score_tables,
    select,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def net_of(space: str = "nasbench201") -> Supernet:
    seed_everything(0)
    layers = 1 if space == "nasbench201" else 3
    return build_supernet(space, channels=4, num_classes=10, layers=layers)


def alphas_of(net: Supernet) -> list[Tensor]:
    return [alpha.detach().clone() for alpha in net.arch_parameters()]


def test_every_operation_is_tried_on_a_copy_that_is_trained() -> None:
    net, batches = planted()
    trained: list[Supernet] = []

    def converge(twin: Supernet) -> None:
        trained.append(twin)
        with torch.no_grad():
            twin.classifier.weight += 1

    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = discretized(net, batches, converge, cell_type="cell", edge=2)
    assert [choice for choice, _, _ in found] == [[0], [1], [2]]
    assert [twin for _, _, twin in found] == trained
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.projection.undecided_edges("cell") == list(range(EDGES))
    for op, (_, score, twin) in enumerate(found):
        assert twin.projection.undecided_edges("cell") == [0, 1, 3, 4]
        assert twin.edge_weights()["cell"][2].tolist() == [float(i == op) for i in range(3)]
        assert score == score_tables(twin, batches, [{}]).score(0)


def test_nodes_try_every_pair_of_inputs() -> None:
    net = net_of("s2")
    images = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    found = discretized(net, [images], lambda twin: None, cell_type="reduce", node=4)
    pairs = [choice for choice, _, _ in found]
    assert pairs == [[5, 6], [5, 7], [5, 8], [6, 7], [6, 8], [7, 8]]
    for pair, _, twin in found:
        rows = twin.edge_weights()["reduce"].sum(1)
        assert [edge for edge in (5, 6, 7, 8) if rows[edge] > 0] == pair
    with pytest.raises(ValueError, match="give either edge or node, got edge=None, node=None"):
        discretized(net, [images], lambda twin: None, cell_type="reduce")


@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_discretization_finds_the_planted_architecture(criterion: str) -> None:
    net, batches = planted()
    config = DiscretizationConfig(criterion=criterion)
    selection = select(
        net, batches, method="discretization", config=config, converge=lambda twin: None
    )
    assert selection.genotype == "|".join(["rotation"] * EDGES)


def test_the_selection_goes_on_with_the_winner() -> None:
    net, batches = planted()
    steps = 0

    def converge(twin: Supernet) -> None:
        nonlocal steps
        steps += 1
        with torch.no_grad():
            twin.classifier.weight *= 2
            twin.alphas += 1

    weight, alphas = net.classifier.weight.detach().clone(), net.alphas.detach().clone()
    phase = DiscretizationSelection(net, batches, converge)
    phase.run()
    assert steps == phase.trainings == phase.evaluations == 3 * EDGES
    torch.testing.assert_close(net.classifier.weight.detach(), weight * 2**EDGES)
    torch.testing.assert_close(net.alphas.detach(), alphas + EDGES)


def test_a_search_discretizes(digits: Dataset) -> None:
    logged: list[str] = []
    config = DiscretizationConfig(proj_intv=1)
    search = Search(
        net_of(),
        digits,
        method="blank",
        epochs=1,
        batch_size=12,
        select="discretization",
        selection=config,
    )
    search.reporter.log = logged.append  # type: ignore[method-assign]
    result = search.run()
    assert len(result.decisions) == 6
    assert all(len(decision.accuracy[0]) == 5 for decision in result.decisions)
    assert logged.count("epoch 0 lr 2.500000e-03") == 30
    assert result.genotype == search.net.genotype()


def test_progressive_magnitude_decides_as_magnitude_does() -> None:
    for space in ("s3", "darts", "nasbench201"):
        net = net_of(space)
        with torch.no_grad():
            for alpha in net.arch_parameters():
                alpha.copy_(torch.randn(alpha.shape))
                alpha[:, list(net.space.primitives[net.space.cell_types[0]][0]).index("none")] -= 9
        before = magnitude_genotype(net)
        phase = MagnitudeSelection(net, proj_intv=0)
        phase.run()
        found = net.genotype()
        if isinstance(found, str) or isinstance(before, str):
            assert found == before
        else:  # the order of a node's two inputs says nothing
            for mine, theirs in ((found.normal, before.normal), (found.reduce, before.reduce)):
                assert [sorted(mine[i : i + 2]) for i in range(0, 8, 2)] == [
                    sorted(theirs[i : i + 2]) for i in range(0, 8, 2)
                ]


def test_progressive_magnitude_follows_the_tuning() -> None:
    net = net_of()

    def tune(epoch: int) -> None:
        with torch.no_grad():
            net.arch_parameters()[0].copy_(-net.arch_parameters()[0])

    first = net.arch_parameters()[0].detach().clone()
    phase = MagnitudeSelection(net, proj_intv=1, tune=tune)
    phase.run()
    for number, decision in enumerate(phase.decisions):
        row = first[decision.place] * (-1) ** number
        assert decision.chosen == [int(row.argmax())]


def test_fixed_alphas_stay_through_search_and_selection(digits: Dataset) -> None:
    net = net_of()
    before = alphas_of(net)
    config = PerturbationConfig(proj_intv=1)
    Search(net, digits, method="blank", epochs=1, batch_size=12, selection=config).run()
    assert all(
        torch.equal(mine, theirs) for mine, theirs in zip(before, alphas_of(net), strict=True)
    )


@pytest.mark.parametrize("amount", [0.0, 0.3])
def test_tuning_takes_perturbed_architecture_weights(digits: Dataset, amount: float) -> None:
    seen: list[Tensor] = []

    def perturb(net: Supernet, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Uniform noise on the rows that are open (SDARTS-RS inside DARTS-PT)."""
        table = net.edge_weights()["cell"].detach().clone()
        assert len(images) == len(labels)
        for edge in net.projection.undecided_edges("cell"):
            table[edge] += amount * (2 * torch.rand(table[edge].shape) - 1)
        seen.append(table)
        return {"cell": table}

    def result(**settings: Any) -> dict[str, Tensor]:
        net = net_of()
        config = PerturbationConfig(proj_intv=1)
        search = Search(net, digits, epochs=1, batch_size=12, selection=config, **settings)
        search.run()
        return net.state_dict()

    plain, perturbed = result(), result(perturb=perturb)
    assert len(seen) == 2 * 5  # two steps in each of the tuning epochs, none in the search
    decided = [int(((row == 0) | (row == 1)).all(1).sum()) for row in seen]
    assert decided == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    same = all(torch.equal(plain[name], perturbed[name]) for name in plain)
    assert same == (amount == 0.0)


@pytest.mark.parametrize("valid_freq", [0, 1])
def test_compat_evaluates_after_every_tuning_epoch(digits: Dataset, valid_freq: int) -> None:
    """As the published code does; it changes nothing."""

    def result(freq: int) -> tuple[list[str], dict[str, Tensor]]:
        net, lines = net_of(), []
        config = PerturbationConfig(mode="compat", proj_intv=1)
        search = Search(net, digits, epochs=1, batch_size=12, valid_freq=freq, selection=config)
        search.reporter.log = lines.append  # type: ignore[method-assign]
        search.run()
        return lines, net.state_dict()

    lines, state = result(valid_freq)
    tuned = lines[lines.index("project op") :]
    found = [line for line in tuned if line.startswith("valid_acc ") and line[10] != " "]
    assert len(found) == 6 * valid_freq
    _, other = result(0)
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_discretization_arguments_are_checked() -> None:
    net, batches = planted()
    with pytest.raises(ValueError, match="needs converge to train copies, got None"):
        select(net, batches, method="discretization")
    with pytest.raises(ValueError, match="batches must not be empty, got 0 batches"):
        DiscretizationSelection(net, [], lambda twin: None)
    with pytest.raises(ValueError, match="batches must be a sequence, got a function"):
        select(net, lambda: batches, method="discretization", converge=lambda twin: None)
    with pytest.raises(ValueError, match="criterion must be one of acc, loss, got 'x'"):
        DiscretizationConfig(criterion="x")
    with pytest.raises(ValueError, match="proj_intv must be 1 or more, got 0"):
        DiscretizationConfig(proj_intv=0)
    with pytest.raises(ValueError, match="magnitude takes no config, got Discretization"):
        select(net, method="magnitude", config=DiscretizationConfig())
    with pytest.raises(ValueError, match="one_shot: mode must be paired, got 'compat'"):
        select(net, batches, method="one_shot", config=PerturbationConfig(mode="compat"))

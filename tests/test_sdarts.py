# SPDX-License-Identifier: Apache-2.0
"""SmoothDARTS: the perturbations, what an attack gains, and the step that is taken under them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor
from torch.nn import functional

from darts_fast.data import Dataset, load_data
from darts_fast.nn import build_supernet
from darts_fast.search import Reporter, SearchConfig, Trainer
from darts_fast.search.methods.sdarts import add_noise, attack, clip, epsilon

SCHEDULE = [epsilon(epoch, 50, 0.3) for epoch in range(50)]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def trainer_of(data: Dataset, method: str, space: str = "s2", **settings: Any) -> Trainer:
    torch.manual_seed(0)
    layers = 1 if space == "nasbench201" else 3
    net = build_supernet(space, channels=4, num_classes=10, layers=layers).double()
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.normal_()
    config = SearchConfig(method=method, batch_size=12, epochs=3).with_settings(**settings)
    return Trainer(net, data, config)


class StopError(Exception):
    """After one step."""


def one_step(trainer: Trainer) -> None:
    def stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        trainer.run_epoch(Reporter(), stop)


# (a) what an attack gains


def best_in_the_box(costs: Tensor, row: Tensor, size: float) -> float:
    """The largest gain of a linear loss over the simplex within `size` of the row."""
    bounds = [(max(0.0, value - size), min(1.0, value + size)) for value in row.tolist()]
    ones = [[1.0] * len(bounds)]
    found = linprog((-costs).numpy(), A_eq=ones, b_eq=[1.0], bounds=bounds)
    return -found.fun - float(costs @ row)


def test_an_attack_on_a_linear_loss_gains_most_of_what_there_is() -> None:
    """200 random rows, with the sizes of the schedule."""
    shares, random = [], []
    for index in range(200):
        size = SCHEDULE[index % 50]
        row = torch.randn(7, dtype=torch.float64).softmax(-1)
        costs = torch.randn(7, dtype=torch.float64)

        def gain(tables: Sequence[Tensor], costs: Tensor = costs, row: Tensor = row) -> float:
            return float(costs @ (tables[0][0] - row))

        def gradients(
            tables: Sequence[Tensor], costs: Tensor = costs
        ) -> tuple[float, list[Tensor]]:
            return gain(tables), [costs[None]]

        most = best_in_the_box(costs, row, size)
        shares.append(gain(attack(gradients, gain, [row[None]], size)) / most)
        random.append(gain([clip(add_noise(row[None], size))]) / most)
    assert min(shares) >= 0
    assert torch.tensor(shares).median() >= 0.8
    assert abs(torch.tensor(random).median()) < 0.1


def test_an_attack_that_loses_gives_back_what_it_was_given() -> None:
    own = [torch.tensor([[0.2, 0.8]])]
    asked: list[list[Tensor]] = []

    def gradients(tables: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        asked.append(list(tables))
        return 0.0, [torch.tensor([[1.0, -1.0]])]  # the wrong direction

    found = attack(gradients, lambda tables: float(tables[0][0, 1]), own, 0.1)
    assert torch.equal(found[0], own[0])
    assert len(asked) == 7


def test_an_attack_takes_seven_clamped_steps_from_noise() -> None:
    """Number by number, on a loss that is not linear."""
    own, size = [0.5, 0.3, 0.15, 0.05], 0.1
    direction = [1.0, 2.0, -3.0, 0.5]

    def loss(tables: Sequence[Tensor]) -> float:
        return float((torch.tensor(direction) * tables[0][0].square()).sum())

    def gradients(tables: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        return loss(tables), [2 * torch.tensor(direction) * tables[0]]

    def clipped(row: list[float]) -> list[float]:
        kept = [min(max(value, 0.0), 1.0) for value in row]
        return [value / sum(kept) for value in kept]

    random = torch.get_rng_state()
    (found,) = attack(gradients, loss, [torch.tensor([own], dtype=torch.float64)], size)
    torch.set_rng_state(random)
    noise = torch.rand(1, 4, dtype=torch.float64)[0].tolist()
    row = clipped([p + size * (2 * u - 1) for p, u in zip(own, noise, strict=True)])
    for _ in range(7):
        slopes = [factor * value for factor, value in zip(direction, row, strict=True)]
        signs = [(slope > 0) - (slope < 0) for slope in slopes]
        moved = [value + 2 * size / 7 * sign for value, sign in zip(row, signs, strict=True)]
        row = clipped([p + min(max(m - p, -size), size) for p, m in zip(own, moved, strict=True)])
    assert found[0].tolist() == pytest.approx(row, abs=1e-12)
    assert row != pytest.approx(own, abs=0.05)


# clip


def test_clipping_clamps_and_renormalises() -> None:
    rows = torch.tensor([[0.5, -0.2, 1.5], [-0.3, -0.1, -0.2], [0.2, 0.2, 0.6]])
    expected = torch.tensor([[1 / 3, 0.0, 2 / 3], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    torch.testing.assert_close(clip(rows), expected)


def test_clipping_is_no_projection() -> None:
    """A clipped weight may end farther than the size from where it was (known of the original)."""
    row = torch.full((1000, 7), 1 / 7)
    moved = (clip(add_noise(row, 0.3)) - row).abs()
    assert moved.max() > 0.3
    none = (clip(add_noise(row, 0.3)) == 0).float().mean()
    assert 0.2 < none < 0.32  # about a quarter of the operations are left out
    assert not (clip(add_noise(row, 0.03)) == 0).any()


# (c) and (d)


def test_the_sizes_are_those_of_the_formula(digits: Dataset) -> None:
    assert [0.03 + (0.3 - 0.03) * epoch / 50 for epoch in range(50)] == SCHEDULE
    assert SCHEDULE[-1] == pytest.approx(0.2946)
    trainer = trainer_of(digits, "sdarts-rs", epsilon_alpha=0.2)
    sizes: list[float] = []

    def perturb(loop: object, own: Sequence[Tensor], size: float) -> list[Tensor]:
        sizes.append(size)
        return list(own)

    trainer.method.perturb = perturb  # type: ignore[attr-defined]
    for _ in range(3):
        trainer.run_epoch(Reporter(), lambda: None)
    trainer.start_tuning()
    trainer.run_epoch(Reporter(), lambda: None)
    steps = trainer.epoch_steps
    expected = [0.03 + 0.17 * epoch / 3 for epoch in range(3)] + [0.2]
    assert sizes == pytest.approx([size for size in expected for _ in range(steps)])


def test_uniform_noise_adds_a_sixth_of_the_trace() -> None:
    """Mean of a quadratic loss over 1e5 draws: L + eps^2 / 6 Tr(H), no clipping active."""
    H = torch.randn(5, 5, dtype=torch.float64)
    H = H @ H.T
    linear = torch.randn(5, dtype=torch.float64)
    row = torch.randn(5, dtype=torch.float64).softmax(-1)

    def loss(rows: Tensor) -> Tensor:
        return (rows @ H * rows).sum(-1) / 2 + rows @ linear

    size = 0.05
    draws = loss(add_noise(row.expand(100_000, 5), size)) - loss(row)
    expected = size**2 / 6 * H.trace()
    error = draws.std() / 100_000**0.5
    assert abs(draws.mean() - expected) < 3 * error
    assert expected > 6 * error  # so that 0 would be told from it


# (b) and (e): the step


@pytest.mark.parametrize("method", ["sdarts-rs", "sdarts-adv"])
def test_alphas_are_what_the_clean_step_left(digits: Dataset, method: str) -> None:
    clean, smooth = trainer_of(digits, "darts"), trainer_of(digits, method)
    one_step(clean)
    one_step(smooth)
    for mine, theirs in zip(smooth.net.arch_parameters(), clean.net.arch_parameters(), strict=True):
        assert torch.equal(mine, theirs)
    pairs = zip(smooth.net.parameters(), clean.net.parameters(), strict=True)
    assert not all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_a_weight_step_is_sgd_under_the_noise(digits: Dataset) -> None:
    trainer = trainer_of(digits, "sdarts-rs", "nasbench201")
    twin = copy.deepcopy(trainer.net)
    random = torch.get_rng_state()
    images, labels = copy.deepcopy(trainer._search_batches).draw()
    one_step(trainer)

    torch.set_rng_state(random)
    (alpha,) = trainer.net.arch_parameters()
    (start,) = (table.detach() for table in twin.edge_weights().values())
    assert not torch.equal(alpha, twin.arch_parameters()[0])
    table = alpha.detach().exp() / alpha.detach().exp().sum(-1, keepdim=True)
    noisy = table + 0.03 * (2 * torch.rand(table.shape, dtype=torch.float64) - 1)
    assert (noisy >= 0).all()  # nothing to clamp: clipping divides by the sum
    noisy = noisy / noisy.sum(-1, keepdim=True)
    assert not torch.allclose(noisy, start)
    weights = list(twin.parameters())
    loss = functional.cross_entropy(twin(images.double(), weights={"cell": noisy}), labels)
    found = torch.autograd.grad(loss, weights)
    norm = sum(gradient.square().sum() for gradient in found) ** 0.5
    for mine, weight, gradient in zip(trainer.net.parameters(), weights, found, strict=True):
        gradient = gradient * min(1.0, 5.0 / (norm + 1e-6)) + 3e-4 * weight
        torch.testing.assert_close(mine, weight - 0.025 * gradient, rtol=1e-9, atol=1e-12)


def test_an_attack_on_a_supernet_raises_its_loss_and_moves_nothing(digits: Dataset) -> None:
    trainer = trainer_of(digits, "sdarts-adv", "nasbench201", epsilon_alpha=0.3)
    one_step(trainer)
    trainer.start_tuning()  # the largest size
    net, loop = trainer.net, trainer._loop
    kept = [*net.parameters(), *net.buffers(), *net.arch_parameters()]
    before = [tensor.detach().clone() for tensor in kept]
    given = trainer.method.edge_weights(loop)
    assert given is not None
    assert not any(table.requires_grad for table in given.values())
    assert net.training
    assert all(torch.equal(old, new) for old, new in zip(before, kept, strict=True))
    net.eval()
    with torch.no_grad():
        losses = [
            functional.cross_entropy(net(loop.train.images, weights=weights), loop.train.labels)
            for weights in (None, given)
        ]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("method", ["sdarts-rs", "sdarts-adv"])
def test_decided_edges_are_not_perturbed(digits: Dataset, method: str) -> None:
    trainer = trainer_of(digits, method)
    one_step(trainer)
    trainer.start_tuning()  # the largest size
    net = trainer.net
    net.projection.project_op("normal", 3, 1)
    net.projection.project_edges("normal", 5, [9, 12])
    given = trainer.method.edge_weights(trainer._loop)
    assert given is not None
    own = net.edge_weights()["normal"]
    same = [edge for edge in range(14) if torch.equal(given["normal"][edge], own[edge])]
    assert same == [3, 10, 11, 13]


def test_a_size_below_the_schedules_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon_alpha must be 0\.03 to 1, got 0\.01"):
        SearchConfig(method="sdarts-rs", method_options={"epsilon_alpha": 0.01})

# SPDX-License-Identifier: Apache-2.0
"""Variational natural gradients: noise law, update, fixed points, and what the noise does."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_fast.search.methods.vadam import SampledGradients, Vadam


def one(value: float, count: int = 1) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def constant(slope: float) -> SampledGradients:
    return lambda samples: (
        torch.zeros(len(samples[0])),
        [torch.full_like(sample, slope) for sample in samples],
    )


# (a) the noise law


@pytest.mark.parametrize(("square", "sigma"), [(0.0, 1.0), (1e-4, 0.5345), (4e-3, 0.0995)])
def test_samples_have_the_deviation_of_the_posterior(square: float, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vadam = Vadam([one(0.7)], initial_precision=25_000 * square + 1, generator=generator)
    (draws,) = vadam.sample(200_000)
    assert draws.shape == (200_000, 1)
    assert float(vadam.deviations()[0]) == pytest.approx(sigma, abs=5e-5)
    assert float(draws.std()) == pytest.approx(1 / math.sqrt(25_000 * square + 1), rel=0.01)
    assert float(draws.mean()) == pytest.approx(0.7, abs=4 * sigma / math.sqrt(200_000))


# (b) the first step


def test_the_first_step_is_the_formula() -> None:
    mu = one(0.3)
    Vadam([mu]).step(constant(0.02))
    step = 3e-4 * (0.02 + 0.3 / 25_000) / (0.02 + 1 / 25_000)
    assert 0.3 - float(mu) == pytest.approx(step, abs=1e-15)
    assert step == pytest.approx(2.9958e-4, abs=1e-8)


# (c) a quadratic


def test_the_mean_tends_to_the_map_and_deviations_follow_the_curvature() -> None:
    """Loss ``sum h (a - b)^2 / 2``, whose maximum a posteriori is ``N h b / (N h + lambda)``; where
    the prior is weak, ``N h^2 sigma^4 = 1``."""
    h = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    b = torch.tensor([0.8, -0.5, 0.6], dtype=torch.float64)
    size = 25_000
    mu = torch.zeros(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    vadam = Vadam([mu], lr=0.01, data_size=size, generator=generator)

    def closure(samples: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        (a,) = samples
        return (h * (a - b).square()).sum(1) / 2, [h * (a - b)]

    total = torch.zeros_like(mu)
    for step in range(8000):
        vadam.step(closure)
        if step >= 4000:
            total += mu / 4000
    torch.testing.assert_close(total, size * h * b / (size * h + 1), rtol=0, atol=0.01)
    sigma = vadam.deviations()[0]
    assert sigma[1] < sigma[0] < sigma[2]
    torch.testing.assert_close(sigma, size**-0.25 / h.sqrt(), rtol=0.05, atol=0)


# (d) smoothing


def test_the_expected_loss_adds_half_of_variance_times_curvature() -> None:
    h = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    mu = torch.zeros(3, dtype=torch.float64)
    vadam = Vadam([mu], initial_precision=50.0, generator=generator)
    (draws,) = vadam.sample(400_000)
    measured = float((h * draws.square()).sum(1).mean()) / 2
    expected = float((vadam.deviations()[0].square() * h).sum()) / 2
    assert expected == pytest.approx(5.25 / 50 / 2)
    assert measured == pytest.approx(expected, rel=0.01)


# (e) an independent reference


def test_the_trajectory_is_bitwise_that_of_plain_numbers() -> None:
    n, prior, rate, (b1, b2) = 50, 2.0, 0.03, (0.6, 0.99)
    steps, samples = 40, 3
    mu = torch.tensor([0.4, -0.3], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    noise = torch.Generator().manual_seed(4)
    vadam = Vadam(
        [mu],
        lr=rate,
        betas=(b1, b2),
        data_size=n,
        prior_precision=prior,
        initial_precision=3.0,
        samples=samples,
        generator=generator,
    )

    def slope(a: Tensor) -> Tensor:
        return a * a * a - 0.5 * a

    values = [0.4, -0.3]
    mean, square = [0.0, 0.0], [(3.0 - prior) / n] * 2
    for t in range(1, steps + 1):
        vadam.step(lambda drawn: (torch.zeros(samples), [slope(drawn[0])]))
        eps = torch.randn(samples, 2, dtype=torch.float64, generator=noise).tolist()
        for i in range(2):
            sigma = 1 / math.sqrt(n * square[i] + prior)
            gs = []
            for row in eps:
                a = values[i] + sigma * row[i]
                gs.append(a * a * a - 0.5 * a)
            g = (gs[0] + gs[1] + gs[2]) / 3
            g2 = (gs[0] * gs[0] + gs[1] * gs[1] + gs[2] * gs[2]) / 3
            mean[i] = b1 * mean[i] + (1 - b1) * (g + prior / n * values[i])
            square[i] = b2 * square[i] + (1 - b2) * g2
            scale = math.sqrt(square[i] / (1 - b2**t)) + prior / n
            values[i] = values[i] - rate * (mean[i] / (1 - b1**t)) / scale
        assert mu.tolist() == values


# (f) flat and sharp wells

SHARP, FLAT = -1.0, 1.0


def wells(a: Tensor) -> Tensor:
    """A sharp well of depth 1 and a flat one of depth 0.8, in units of 0.05."""
    sharp = torch.exp(-((a - SHARP) ** 2) / (2 * 0.1**2))
    return -0.05 * (sharp + 0.8 * torch.exp(-((a - FLAT) ** 2) / (2 * 0.8**2)))


def slopes(samples: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    a = samples[0].clone().requires_grad_()
    losses = wells(a).sum(1)
    return losses.detach(), list(torch.autograd.grad(losses.sum(), a))


def test_it_ends_in_the_flat_well_where_adam_stays_in_the_sharp_one() -> None:
    """Ten runs of one number each, all from the sharp well."""
    assert float(wells(one(SHARP))) < float(wells(one(FLAT)))  # the sharp one is the deeper
    generator = torch.Generator().manual_seed(0)
    start = SHARP + 0.1 * torch.randn(10, dtype=torch.float64, generator=generator)
    plain, mu = start.clone().requires_grad_(), start.clone()
    adam = torch.optim.Adam([plain], lr=0.01, betas=(0.5, 0.999))
    vadam = Vadam([mu], lr=0.01, data_size=200, generator=generator)
    for _ in range(3000):
        adam.zero_grad()
        wells(plain).sum().backward()
        adam.step()
        vadam.step(slopes)
    assert ((plain.detach() - SHARP).abs() < 0.1).sum() == 10
    assert ((mu - FLAT).abs() < 0.5).sum() >= 8


# Posterior


def test_the_divergence_is_the_integral() -> None:
    """Against quadrature of ``q log(q / p)``."""
    vadam = Vadam([one(0.4), one(-0.2, 2)], prior_precision=2.0, initial_precision=9.0)
    expected = 0.0
    for mean in (0.4, -0.2, -0.2):
        q = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), 1 / 3)
        p = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 0.5**0.5)
        x = torch.linspace(mean - 4, mean + 4, 20_001, dtype=torch.float64)
        density = q.log_prob(x).exp()
        expected += float(torch.trapezoid(density * (q.log_prob(x) - p.log_prob(x)), x))
    assert vadam.divergence() == pytest.approx(expected, rel=1e-6)
    assert Vadam([one(0.0)]).divergence() == 0.0


def test_it_goes_on_bitwise_from_its_state_and_keeps_the_storage() -> None:
    mu = torch.tensor([0.2, 0.1], dtype=torch.float64)
    place = mu.data_ptr()
    draws = torch.Generator().manual_seed(1)
    first = Vadam([mu], samples=2, generator=draws)
    for _ in range(3):
        first.step(slopes)
    other = mu.clone()
    copied = torch.Generator().set_state(draws.get_state())
    second = Vadam([other], samples=2, generator=copied)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for vadam in (first, second):
        vadam.step(slopes)
    assert torch.equal(mu, other)
    assert torch.equal(first.deviations()[0], second.deviations()[0])
    assert mu.data_ptr() == place


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    mu = one(0.3)
    vadam = Vadam([mu])
    losses = vadam.step(lambda drawn: (torch.tensor([math.nan]), [torch.ones_like(drawn[0])]))
    assert losses.isnan().all()
    assert float(mu) == 0.3
    assert vadam.state[mu]["step"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_size": 0}, "data_size must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"lr": -1.0}, "lr must be finite and >= 0, got -1.0"),
        ({"betas": (0.5, 1.0)}, "betas must be at least 0 and below 1"),
        ({"prior_precision": 0.0}, "initial_precision must be at least prior_precision"),
        ({"prior_precision": 2.0}, "got 1.0 and 2.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vadam([one(0.0)], **settings)

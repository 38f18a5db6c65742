# SPDX-License-Identifier: Apache-2.0
"""The implicit hypergradient against closed forms, finite differences and unrolled training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_fast.search.methods.implicit import (
    DivergenceError,
    Hypergradient,
    ImplicitConfig,
    implicit_gradient,
)
from darts_fast.search.methods.products import InnerDerivatives

ETA = 0.25
SIZE = 20


def gradients_of(loss: Callable[[], Tensor]) -> Callable[..., tuple[float, list[Tensor]]]:
    def gradients(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        value = loss()
        found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return float(value.detach()), list(found)

    return gradients


@dataclass
class Quadratic:
    """``L_train = w'Hw/2 - w'Ba``, ``L_val = |w - c|^2/2``; eigenvalues of H from 0.5 to 4."""

    eigenvalues: Tensor = field(
        default_factory=lambda: torch.linspace(0.5, 4.0, SIZE, dtype=torch.float64)
    )

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.Q = torch.linalg.qr(draw(SIZE, SIZE)).Q
        self.H = self.Q @ self.eigenvalues.diag() @ self.Q.T
        self.B, self.c = draw(SIZE, 6), draw(SIZE)
        self.a = draw(6).requires_grad_()
        self.w = self.response(self.a.detach()).requires_grad_()

    def response(self, a: Tensor) -> Tensor:
        return torch.linalg.solve(self.H, self.B @ a)

    def train_loss(self) -> Tensor:
        return self.w @ self.H @ self.w / 2 - self.w @ self.B @ self.a

    def valid_loss(self) -> Tensor:
        return (self.w - self.c).square().sum() / 2

    def exact(self) -> Tensor:
        return self.B.T @ torch.linalg.solve(self.H, self.w.detach() - self.c)

    def implicit(self, rate: float = ETA, **settings: Any) -> Hypergradient:
        return implicit_gradient(
            gradients_of(self.train_loss),
            gradients_of(self.valid_loss),
            [self.w],
            [self.a],
            rate=rate,
            config=ImplicitConfig(**settings),
            loss=self.train_loss,
        )


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# (a) the implicit function theorem


@pytest.mark.parametrize("products", ["exact", "difference"])
@pytest.mark.parametrize("mixed", ["exact", "difference"])
@pytest.mark.parametrize(("solver", "terms"), [("conjugate_gradient", 25), ("neumann", 400)])
def test_it_is_the_derivative_of_the_response(
    solver: str, terms: int, mixed: str, products: str
) -> None:
    problem = Quadratic()
    found = problem.implicit(solver=solver, terms=terms, mixed=mixed, products=products)
    slopes = []
    for along in torch.eye(6, dtype=torch.float64):
        ends = [
            (problem.response(problem.a.detach() + step * along) - problem.c).square().sum() / 2
            for step in (1e-4, -1e-4)
        ]
        slopes.append((ends[0] - ends[1]) / 2e-4)
    assert relative(found.gradients[0], torch.stack(slopes)) < 1e-8
    assert found.loss == float(problem.valid_loss().detach())
    assert not found.diverged


# (b) the truncated series


@pytest.mark.parametrize("terms", [0, 1, 2, 5, 20, 100])
def test_the_truncation_error_is_that_of_the_series(terms: int) -> None:
    problem = Quadratic()
    found = problem.implicit(terms=terms, mixed="exact").gradients[0]
    tail = (1 - ETA * problem.eigenvalues) ** (terms + 1) / problem.eigenvalues
    error = problem.B.T @ problem.Q @ (tail * (problem.Q.T @ (problem.w.detach() - problem.c)))
    torch.testing.assert_close(problem.exact() - found, error, rtol=0, atol=1e-12)
    assert len(problem.implicit(terms=terms).norms) == terms + 1


# (c), (d) the other hypergradients


def unrolled(problem: Quadratic, steps: int) -> Tensor:
    """``dL_val/da`` through so many steps of gradient descent from w = 0."""
    a = problem.a.detach().requires_grad_()
    w = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(steps):
        w = w - ETA * (problem.H @ w - problem.B @ a)
    loss = (w - problem.c).square().sum() / 2
    return torch.autograd.grad(loss, a)[0]


def test_unrolled_training_tends_to_it() -> None:
    problem = Quadratic()
    errors = [relative(unrolled(problem, steps), problem.exact()) for steps in (1, 5, 50, 400)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[2] < 5e-3
    assert errors[3] < 1e-12


def test_the_first_order_gradient_is_another() -> None:
    problem = Quadratic()
    value = problem.valid_loss() + 0 * problem.a.sum()
    (first_order,) = torch.autograd.grad(value, problem.a)
    assert relative(first_order, problem.exact()) > 0.9
    assert relative(problem.implicit().gradients[0], problem.exact()) < 0.6


# Damping


def test_damping_solves_with_the_damped_hessian() -> None:
    problem = Quadratic()
    damped = problem.H + 0.3 * torch.eye(SIZE, dtype=torch.float64)
    expected = problem.B.T @ torch.linalg.solve(damped, problem.w.detach() - problem.c)
    for solver, terms in (("neumann", 300), ("conjugate_gradient", 25)):
        found = problem.implicit(solver=solver, terms=terms, damping=0.3, mixed="exact")
        assert relative(found.gradients[0], expected) < 1e-10


def test_without_an_iteration_both_solvers_take_one_step() -> None:
    problem = Quadratic()
    expected = ETA * problem.B.T @ (problem.w.detach() - problem.c)
    for solver in ("neumann", "conjugate_gradient"):
        found = problem.implicit(solver=solver, terms=0).gradients[0]
        torch.testing.assert_close(found, expected)


# (e) what stays


def test_weights_are_bitwise_as_before() -> None:
    problem = Quadratic()
    before, place = problem.w.detach().clone(), problem.w.data_ptr()
    for settings in ({}, {"products": "difference"}, {"solver": "conjugate_gradient"}):
        problem.implicit(**settings)
        assert torch.equal(problem.w, before)
    assert problem.w.data_ptr() == place
    assert problem.w.grad is None
    assert problem.a.grad is None


def test_the_noise_of_the_released_code_is_what_its_restoring_leaves() -> None:
    problem = Quadratic()
    w = problem.w.detach()
    v0 = w - problem.c
    v1 = v0 - ETA * problem.H @ v0
    v2 = v1 - ETA * problem.H @ v1
    step = 0.01 / v0.norm()
    after = w + step * (v0 + v1 + v2)
    after = after - 2 * step * (v0 + v1 + v2)
    after = after + step * v0  # where the code means v0 + v1 + v2
    noise = problem.implicit().noise[0]
    torch.testing.assert_close(w + noise, after, rtol=0, atol=1e-14)
    assert float(noise @ v0) < 0  # descent on the validation loss


# (f) a network


def test_it_is_the_derivative_of_a_trained_network() -> None:
    """Inner problem: a small network with weight decay, solved to convergence; a scales its
    features."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, y, x_valid, y_valid = draw(30, 4), draw(30), draw(30, 4), draw(30)
    a = (1 + 0.3 * draw(4)).requires_grad_()
    decay = 0.1

    def plain(w: Tensor, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        hidden = ((x * a) @ w[:12].view(3, 4).T).tanh()
        return (hidden @ w[12:] - y).square().mean()

    def solve(a: Tensor, w: Tensor) -> Tensor:
        """Gradient descent, then Newton's method."""

        def inner(w: Tensor) -> Tensor:
            return plain(w, a, x, y) + decay / 2 * w.square().sum()

        for step in range(305):
            w = w.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(inner(w), w)
            if step < 300:
                w = w - 0.3 * gradient
            else:
                w = w - torch.linalg.solve(torch.autograd.functional.hessian(inner, w), gradient)
        return w.detach()

    w = solve(a.detach(), 0.5 * draw(15))
    slopes = []
    for along in 1e-4 * torch.eye(4, dtype=torch.float64):
        ends = [a.detach() + along, a.detach() - along]
        plus, minus = (plain(solve(end, w), end, x_valid, y_valid) for end in ends)
        slopes.append((plus - minus) / 2e-4)
    expected = torch.stack(slopes)
    w.requires_grad_()

    def train_loss() -> Tensor:
        return plain(w, a, x, y)

    def valid_loss() -> Tensor:
        return plain(w, a, x_valid, y_valid)

    cg = {"terms": 60, "solver": "conjugate_gradient"}
    for settings, error in (
        ({"terms": 1000, "radius": 1e-4}, 1e-2),
        ({"terms": 1000, "mixed": "exact"}, 1e-5),
        ({**cg, "mixed": "exact"}, 1e-5),
        ({**cg, "products": "difference", "radius": 1e-4}, 1e-2),
    ):
        config = ImplicitConfig(damping=decay, **settings)
        found = implicit_gradient(
            gradients_of(train_loss),
            gradients_of(valid_loss),
            [w],
            [a],
            rate=0.3,
            config=config,
            loss=train_loss,
        )
        assert relative(found.gradients[0], expected) < error
    (first_order,) = torch.autograd.grad(valid_loss(), a)
    assert relative(first_order, expected) > 0.05


# (g) divergence


def test_a_series_that_diverges_is_detected() -> None:
    problem = Quadratic()
    for terms in (2, 100):
        with pytest.raises(DivergenceError, match="must shrink"):
            problem.implicit(rate=1.2, terms=terms)
    with pytest.raises(DivergenceError, match="must shrink"):
        problem.implicit(rate=0.51, terms=300)
    problem.implicit(rate=0.49, terms=300)


def test_a_series_that_diverges_can_be_cut() -> None:
    problem = Quadratic()
    found = problem.implicit(rate=1.2, terms=100, diverging="truncate", mixed="exact")
    assert found.diverged
    kept = len(found.norms) - 1
    shorter = problem.implicit(rate=1.2, terms=kept, mixed="exact")
    assert not shorter.diverged
    assert torch.equal(found.gradients[0], shorter.gradients[0])


def test_a_series_that_diverges_can_be_kept_and_is_told() -> None:
    problem = Quadratic()
    found = problem.implicit(rate=1.2, terms=6, diverging="keep", mixed="exact")
    assert found.diverged
    sums = sum((1 - 1.2 * problem.eigenvalues) ** k for k in range(7))
    v0 = problem.w.detach() - problem.c
    expected = 1.2 * problem.B.T @ problem.Q @ (sums * (problem.Q.T @ v0))
    torch.testing.assert_close(found.gradients[0], expected)


def test_negative_curvature_is_detected() -> None:
    problem = Quadratic(torch.linspace(-0.5, 4.0, SIZE, dtype=torch.float64))
    for solver in ("neumann", "conjugate_gradient"):
        with pytest.raises(DivergenceError, match="must"):
            problem.implicit(solver=solver, terms=200)
        assert problem.implicit(solver=solver, terms=200, diverging="truncate").diverged
        assert not problem.implicit(solver=solver, terms=200, damping=0.7).diverged


# Errors and corners


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": -1}, "terms must be at least 0, got -1"),
        ({"solver": "inverse"}, "solver must be one of neumann, conjugate_gradient, got 'inverse'"),
        ({"products": "none"}, "products must be one of exact, difference, got 'none'"),
        ({"mixed": "none"}, "mixed must be one of exact, difference, got 'none'"),
        ({"diverging": "ignore"}, "diverging must be one of raise, truncate, keep, got 'ignore'"),
        ({"damping": -0.1}, "damping must be finite and >= 0, got -0.1"),
        ({"radius": 0.0}, "radius must be finite and positive, got 0.0"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitConfig(**settings)


def test_arguments_are_checked() -> None:
    problem = Quadratic()
    with pytest.raises(ValueError, match=r"rate must be finite and positive, got 0\.0"):
        problem.implicit(rate=0.0)
    inner = InnerDerivatives(gradients_of(problem.train_loss), [problem.w], [problem.a])
    with pytest.raises(ValueError, match="exact products need the loss, got None"):
        inner.hessian_product([problem.w])


def test_at_the_minimum_of_both_losses_it_is_the_direct_gradient() -> None:
    problem = Quadratic()
    problem.c = problem.w.detach().clone()
    found = problem.implicit()
    assert (found.gradients[0] == 0).all()
    assert found.norms == [0.0]


def test_leaves_that_a_loss_does_not_read_have_products_of_zero() -> None:
    problem = Quadratic()
    unread = torch.ones(3, dtype=torch.float64, requires_grad=True)
    inner = InnerDerivatives(
        gradients_of(problem.train_loss),
        [problem.w, unread],
        [problem.a, unread],
        loss=problem.train_loss,
    )
    vector = [torch.ones_like(problem.w), torch.ones_like(unread)]
    for radius in (None, 0.1):
        # The quadratic's gradient is linear, so that differences are exact.
        image, zero = inner.hessian_product(vector, radius)
        torch.testing.assert_close(image, problem.H.sum(1))
        assert (zero == 0).all()
        along, zero = inner.mixed_product(vector, radius)
        torch.testing.assert_close(along, -problem.B.sum(0))
        assert (zero == 0).all()

# SPDX-License-Identifier: Apache-2.0
"""The alpha-Hessian and its largest eigenvalue, against autograd and dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from darts_fast.backend import use_backend
from darts_fast.nn import build_supernet
from darts_fast.search.alpha_hessian import alpha_product, exact_hessian, largest_eigenvalue


def dense(product: Callable[[Tensor], Tensor], size: int) -> Tensor:
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)])


@pytest.mark.parametrize("space", ["s2", "nasbench201"])
def test_products_of_fused_gradients_are_those_of_the_exact_hessian(space: str) -> None:
    net = build_supernet(space, channels=4, num_classes=3, layers=3 if space == "s2" else 1)
    net.double()
    alphas = net.arch_parameters()
    with torch.no_grad():
        for alpha in alphas:
            alpha.normal_()
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.randint(0, 3, (6,))

    def loss() -> Tensor:
        return nn.functional.cross_entropy(net(images), labels)

    with use_backend("reference"):
        exact = exact_hessian(net, loss).double()
    size = sum(alpha.numel() for alpha in alphas)
    assert exact.shape == (size, size)
    torch.testing.assert_close(exact, exact.T, rtol=0, atol=1e-9 * float(exact.abs().max()))

    before = [alpha.clone() for alpha in alphas]
    product = alpha_product(alphas, lambda: torch.autograd.grad(loss(), alphas))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        vector = torch.randn(size, dtype=torch.float64, generator=generator)
        found = product(vector)
        assert (found - exact @ vector).norm() < 1e-3 * (exact @ vector).norm()
    assert all(torch.equal(alpha, old) for alpha, old in zip(alphas, before, strict=True))

    wanted = float(torch.linalg.eigvalsh((exact + exact.T) / 2)[-1])
    decayed = alpha_product(alphas, lambda: torch.autograd.grad(loss(), alphas), weight_decay=0.5)
    found_value = largest_eigenvalue(decayed, size, tolerance=1e-5)
    assert found_value == pytest.approx(wanted + 0.5, rel=1e-3)


def test_a_quadratic_loss_by_hand() -> None:
    """L = x' A x / 2 has the Hessian A wherever x is, in pieces of any shape."""
    matrix = torch.tensor([[2.0, 1, 0], [1, -3, 0.5], [0, 0.5, 1]], dtype=torch.float64)
    parts = [torch.tensor([[0.3, -1]]).double(), torch.tensor([4.0]).double()]

    def gradient() -> list[Tensor]:
        x = matrix @ torch.cat([part.reshape(-1) for part in parts])
        return [x[:2].view(1, 2), x[2:]]

    product = alpha_product(parts, gradient, weight_decay=0.25)
    torch.testing.assert_close(
        dense(product, 3), matrix + 0.25 * torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert torch.equal(product(torch.zeros(3).double()), torch.zeros(3).double())


@pytest.mark.parametrize("kind", ["spread", "negative", "twice", "low rank"])
def test_the_largest_eigenvalue_of_a_98_by_98_matrix(kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(98, 98, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(noise).Q
    values = torch.linspace(-1, 3, 98, dtype=torch.float64)
    if kind == "negative":  # the largest is not the one of largest size
        values = torch.linspace(-9, 0.5, 98, dtype=torch.float64)
    elif kind == "twice":
        values[-2:] = 3
    elif kind == "low rank":
        values[:90] = 0
    matrix = basis @ torch.diag(values) @ basis.T
    matrix = (matrix + matrix.T) / 2
    wanted = float(torch.linalg.eigvalsh(matrix)[-1])
    found = largest_eigenvalue(lambda vector: matrix @ vector, 98, tolerance=1e-12)
    assert found == pytest.approx(wanted, abs=1e-9)


def test_products_are_saved_where_the_tolerance_allows() -> None:
    calls = 0
    values = torch.linspace(0, 1, 98, dtype=torch.float64)
    values[-1] = 2

    def product(vector: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return values * vector

    assert largest_eigenvalue(product, 98, tolerance=1e-3) == pytest.approx(2, rel=1e-3)
    assert calls < 20
    calls = 0
    largest_eigenvalue(product, 98, tolerance=0, iterations=7)
    assert calls == 7
    assert largest_eigenvalue(lambda vector: -vector, 1) == -1


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        largest_eigenvalue(lambda vector: vector, 0)
    with pytest.raises(TypeError, match=r"alphas must be float64, got torch\.float32"):
        alpha_product([torch.zeros(2)], lambda: [torch.zeros(2)])
    with pytest.raises(ValueError, match="products must be finite"):
        largest_eigenvalue(lambda vector: vector * float("nan"), 3)

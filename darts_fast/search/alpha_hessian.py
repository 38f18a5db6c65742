# SPDX-License-Identifier: Apache-2.0
"""The Hessian of the validation loss by the architecture weights, and its largest eigenvalue, which
rises before a search collapses (RobustDARTS, Zela et al., ICLR 2020, section 4).

Products with the Hessian are central differences of gradients, so that they run on the kernels of
the search:

    H v = (dL/dalpha at alpha + e v / |v|  -  the same at alpha - e v / |v|) |v| / (2 e)

The gradient jumps where a ReLU of some image changes sign, and a step that crosses many such places
measures a curvature of its own, which autograd's Hessian does not have. So e is 1e-8 and gradients
are float64: rounding over e stays small, and hardly a sign changes. `exact_hessian` is the check:
autograd twice, one backward pass for every architecture weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from darts_fast.nn import Supernet

__all__ = ["alpha_product", "exact_hessian", "largest_eigenvalue"]

Product = Callable[[Tensor], Tensor]

STEP = 1e-8  # e of the central differences


def alpha_product(
    alphas: Sequence[Tensor],
    gradient: Callable[[], Sequence[Tensor]],
    *,
    weight_decay: float = 0.0,
) -> Product:
    """Products of vectors with the Hessian of a loss by the architecture weights.

    Args:
        alphas: the architecture weights, float64, ``n`` numbers in all; moved during a product and
            put back bit for bit.
        gradient: of the loss by each of them, where they are now; it must be the same function at
            every call.
        weight_decay: added to the diagonal, as the optimizer of the architecture weights adds it to
            the loss.

    Returns:
        A function from a vector ``[n]`` to ``[n]``, float64 on the CPU.

    Raises:
        TypeError: architecture weights of another dtype.
    """
    for alpha in alphas:
        if alpha.dtype != torch.float64:
            raise TypeError(f"alpha_product: alphas must be float64, got {alpha.dtype}")
    sizes = [alpha.numel() for alpha in alphas]

    def at(vector: Tensor) -> Tensor:
        before = [alpha.detach().clone() for alpha in alphas]
        try:
            with torch.no_grad():
                for alpha, part in zip(alphas, vector.split(sizes), strict=True):
                    alpha.add_(part.view(alpha.shape).to(alpha))
            return torch.cat([part.detach().double().cpu().reshape(-1) for part in gradient()])
        finally:
            with torch.no_grad():
                for alpha, value in zip(alphas, before, strict=True):
                    alpha.copy_(value)

    def product(vector: Tensor) -> Tensor:
        length = float(vector.norm())
        if length == 0:
            return torch.zeros_like(vector)
        move = vector * (STEP / length)
        return (at(move) - at(-move)) * (length / (2 * STEP)) + weight_decay * vector

    return product


def largest_eigenvalue(
    product: Product,
    size: int,
    *,
    tolerance: float = 1e-3,
    iterations: int | None = None,
    seed: int = 0,
) -> float:
    """The largest eigenvalue of a symmetric matrix, by Lanczos iterations with the basis kept
    orthogonal.

    Args:
        product: of the matrix with a vector ``[size]``, float64.
        size: rows of the matrix.
        tolerance: the iteration ends when the residual of the eigenpair is at most this share of
            the eigenvalues' spread.
        iterations: at most so many products; default ``size``, after which nothing is left.
        seed: of the first vector.

    Raises:
        ValueError: no row, or a product that is not finite.
    """
    if size < 1:
        raise ValueError(f"largest_eigenvalue: size must be at least 1, got {size}")
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    most = size if iterations is None else min(iterations, size)
    while True:
        image = product(basis[-1])
        if not bool(image.isfinite().all()):
            raise ValueError("largest_eigenvalue: products must be finite, got nan or inf")
        diagonal.append(float(image @ basis[-1]))
        rest = image
        known = torch.stack(basis)
        for _ in range(2):  # once is not enough where much of the vector is taken away
            rest = rest - known.T @ (known @ rest)
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        )
        left = float(rest.norm())
        spread = max(abs(float(values[0])), abs(float(values[-1])))
        residual = left * abs(float(vectors[-1, -1]))
        if len(diagonal) == most or residual <= tolerance * spread:
            return float(values[-1])
        beside.append(left)
        basis.append(rest / left)


def exact_hessian(net: Supernet, loss: Callable[[], Tensor]) -> Tensor:
    """The whole Hessian by autograd twice, ``[n, n]`` for the ``n`` architecture weights in the
    order of `arch_parameters()`, all of which the loss depends on; for small networks.

    loss: computed with its graph.
    """
    alphas = net.arch_parameters()
    first = torch.autograd.grad(loss(), alphas, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in first])
    rows = []
    for entry in flat:
        parts = torch.autograd.grad(
            entry, alphas, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows).detach()

# SPDX-License-Identifier: Apache-2.0
"""The implicit hypergradient of a bilevel problem (iDARTS: Zhang et al., ICML 2021, arXiv
2106.10784).

Where the weights w solve the inner problem for the architecture a, the implicit function theorem
gives ``dL_val/da = d_a L_val - (d_w L_val) H^-1 (d2_wa L_train)`` with ``H = d2_ww L_train``. The
inverse is a truncated Neumann series, ``H^-1 = eta sum_k (I - eta H)^k``, which converges where
``0 < eta lambda < 2`` for all eigenvalues, or the method of conjugate gradients, which needs a
positive definite H. Both look at what they compute and say where that does not hold.

The defaults are those of the released code: K = 2, products with H by a second backward pass, the
mixed term by central differences at ``w +- R g`` with ``g = sum_k v_k`` and ``R = 0.01 / |v_0|``
(the norm of v_0, not of g).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.search.methods.numeric import Gradients, global_norm
from darts_fast.search.methods.products import InnerDerivatives, dot

__all__ = ["CHOICES", "DivergenceError", "Hypergradient", "ImplicitConfig", "implicit_gradient"]

CHOICES = {
    "solver": ("neumann", "conjugate_gradient"),
    "products": ("exact", "difference"),
    "mixed": ("exact", "difference"),
    "diverging": ("raise", "truncate", "keep"),
}


class DivergenceError(ArithmeticError):
    """The inverse Hessian cannot be had this way: its series grows, or H is not positive."""


@dataclass(frozen=True)
class ImplicitConfig:
    """How the implicit hypergradient is computed.

    Args:
        terms: K, products with the Hessian: the series has K + 1 terms; of conjugate gradients the
            most iterations.
        solver: ``"neumann"`` or ``"conjugate_gradient"``.
        damping: added to the diagonal of H. An inner problem with weight decay has it in H, and not
            in the mixed term: give it here.
        products: Hessian-vector products, ``"exact"`` (second backward pass) or ``"difference"``
            (central differences of gradients).
        mixed: the mixed term, likewise.
        radius: R |v_0|; of the other differences the distance that the weights are moved.
        diverging: ``"raise"``; ``"truncate"``: what was summed before the growing term stands; or
            ``"keep"``: all K + 1 terms are summed, as the released code does. Conjugate gradients
            stop at negative curvature under both.

    Raises:
        ValueError: a value out of its range; the message names it.
    """

    terms: int = 2
    solver: str = "neumann"
    damping: float = 0.0
    products: str = "exact"
    mixed: str = "difference"
    radius: float = 0.01
    diverging: str = "raise"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ImplicitConfig: {name} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.terms < 0:
            raise ValueError(f"ImplicitConfig: terms must be at least 0, got {self.terms}")
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"ImplicitConfig: damping must be finite and >= 0, got {self.damping}")
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(
                f"ImplicitConfig: radius must be finite and positive, got {self.radius}"
            )


@dataclass(frozen=True)
class Hypergradient:
    """What `implicit_gradient` returns.

    Attributes:
        gradients: ``dL_val/da``, one per architecture tensor.
        loss: the validation loss.
        norms: of the terms of the series that were summed, or of the residuals.
        diverged: whether the series grew, or curvature was negative.
        noise: ``-R (g - v_0)``, by which the released code leaves the weights moved, since it goes
            back by ``R v_0`` after its differences: a step of descent on the validation loss.
    """

    gradients: list[Tensor]
    loss: float
    norms: list[float]
    diverged: bool
    noise: list[Tensor]


def implicit_gradient(
    train: Gradients,
    valid: Gradients,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    *,
    rate: float,
    config: ImplicitConfig | None = None,
    loss: Callable[[], Tensor] | None = None,
    join: Callable[[list[Tensor]], object] | None = None,
) -> Hypergradient:
    """``dL_val/da`` through the inner solution, at the weights as they stand.

    The weights are bit for bit as before afterwards. What else the losses change, such as running
    statistics, is the caller's to keep.

    Args:
        train: the inner loss and its gradient by any leaves; the same images at every call.
        valid: the outer loss, likewise.
        weights: leaves w of both.
        alphas: leaves a of both.
        rate: eta of the series, the learning rate of the weights.
        config: default `ImplicitConfig()`.
        loss: the inner loss with its graph, for exact products; of several processes a share.
        join: makes the sum over the processes of the tensors it is given, in place.

    Raises:
        ValueError: a rate that is not positive; exact products without `loss`.
        DivergenceError: the series grows, or H is not positive definite where conjugate gradients
            need it, and ``config.diverging`` is "raise".
    """
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"implicit_gradient: rate must be finite and positive, got {rate}")
    config = config or ImplicitConfig()
    weights = list(weights)
    value, both = valid([*weights, *alphas])
    first, direct = both[: len(weights)], both[len(weights) :]
    length = global_norm(first)
    if length == 0:
        still = [torch.zeros_like(w) for w in weights]
        return Hypergradient(direct, value, [length], diverged=False, noise=still)
    inner = InnerDerivatives(train, weights, alphas, loss=loss, join=join)
    radius = config.radius if config.products == "difference" else None

    def product(vector: Sequence[Tensor]) -> list[Tensor]:
        found = inner.hessian_product(vector, radius)
        return [h + config.damping * v for h, v in zip(found, vector, strict=True)]

    solve = _neumann if config.solver == "neumann" else _conjugate_gradient
    solved = solve(product, first, rate, config)
    radius = config.radius if config.mixed == "difference" else None
    series = config.solver == "neumann"
    mixed = inner.mixed_product(solved.vector, radius, norm=length if series else None)
    gradients = [a - solved.scale * b for a, b in zip(direct, mixed, strict=True)]
    beyond = zip(solved.vector, first, strict=True)
    noise = [-config.radius / length * (g - v) for g, v in beyond]
    return Hypergradient(gradients, value, solved.norms, solved.diverged, noise)


@dataclass(frozen=True)
class _Solved:
    """``H^-1 first`` is scale times vector."""

    vector: list[Tensor]
    scale: float
    norms: list[float]
    diverged: bool


_Product = Callable[[Sequence[Tensor]], list[Tensor]]


def _neumann(
    product: _Product, first: list[Tensor], rate: float, config: ImplicitConfig
) -> _Solved:
    """``sum_k (I - eta H)^k first`` for k = 0 to K, and eta.

    A term is longer than the one before it only if H has an eigenvalue below 0 or above 2 / eta;
    curvature above 2 / eta along a term proves the latter.
    """
    total, norms = first, [global_norm(first)]
    term, diverged = first, False
    slack = 1 + 8 * torch.finfo(first[0].dtype).eps
    for _ in range(config.terms):
        image = product(term)
        steepness = rate * dot(term, image) / norms[-1] ** 2
        term = [v - rate * h for v, h in zip(term, image, strict=True)]
        length = global_norm(term)
        if not (length <= slack * norms[-1] and steepness <= 2):
            if config.diverging == "raise":
                raise DivergenceError(
                    "implicit_gradient: the terms of the Neumann series must shrink (0 < eta * "
                    f"eigenvalue < 2), got norms {norms[-1]:.3g} and {length:.3g} where eta * "
                    f"curvature = {steepness:.3g}; a smaller rate or more damping may help"
                )
            diverged = True
            if config.diverging == "truncate":
                break
        norms.append(length)
        if length == 0:
            break
        total = [t + v for t, v in zip(total, term, strict=True)]
    return _Solved(total, rate, norms, diverged)


def _conjugate_gradient(
    product: _Product, first: list[Tensor], rate: float, config: ImplicitConfig
) -> _Solved:
    """x with ``H x = first`` (Hestenes and Stiefel, 1952) from x = 0; without a step of it, eta
    first, as the series with K = 0."""
    x: list[Tensor] | None = None
    residual = direction = first
    norms = [global_norm(first)]
    enough = 8 * torch.finfo(first[0].dtype).eps * norms[0]
    diverged = False
    while len(norms) <= config.terms and norms[-1] > enough:
        image = product(direction)
        curvature = dot(direction, image)
        if not curvature > 0:
            if config.diverging == "raise":
                raise DivergenceError(
                    "implicit_gradient: the Hessian must be positive definite for conjugate "
                    f"gradients, got curvature {curvature / dot(direction, direction):.3g}; more "
                    "damping may help"
                )
            diverged = True
            break
        step = norms[-1] ** 2 / curvature
        moved = [step * d for d in direction]
        x = moved if x is None else [a + b for a, b in zip(x, moved, strict=True)]
        residual = [r - step * h for r, h in zip(residual, image, strict=True)]
        norms.append(global_norm(residual))
        ratio = (norms[-1] / norms[-2]) ** 2
        direction = [r + ratio * d for r, d in zip(residual, direction, strict=True)]
    if x is None:
        return _Solved(first, rate, norms, diverged)
    return _Solved(x, 1.0, norms, diverged)

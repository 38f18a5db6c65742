# SPDX-License-Identifier: Apache-2.0
"""Products of a vector with the second derivatives of an inner loss.

Exact ones differentiate the gradient once more (Pearlmutter, Neural Computation 1994): one graph
serves all products. Central differences take two gradients each, at weights moved along the vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from darts_fast.search.methods.numeric import Gradients, central_difference
from darts_fast.seeding import seeded

__all__ = ["InnerDerivatives", "dot", "drawing"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The inner product, summed in double precision."""
    products = [(a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)]
    return float(torch.stack(products).sum())


def drawing(seed: int, function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, every call of which draws the same random numbers, and leaves torch's generators
    where they are.

    The two ends of a difference must differ in the weights alone, not in the noise of a noise
    operation.

    Args: seed, such as one of `darts_fast.seeding.draw_seed`.
    """

    def repeated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with seeded(seed):
            return function(*args, **kwargs)

    return repeated


class InnerDerivatives:
    """Second derivatives of a loss L(w, a) at the weights w and the architecture a as they stand.

    Args:
        gradients: loss and gradient by any leaves at their present values; the same function at
            every call.
        weights: leaves w.
        alphas: leaves a.
        loss: L with its graph, for exact products; of several processes the share of this one.
        join: makes the sum over the processes of the tensors it is given, in place.
    """

    def __init__(
        self,
        gradients: Gradients,
        weights: Sequence[Tensor],
        alphas: Sequence[Tensor],
        *,
        loss: Callable[[], Tensor] | None = None,
        join: Callable[[list[Tensor]], object] | None = None,
    ) -> None:
        self._gradients = gradients
        self._weights = list(weights)
        self._alphas = list(alphas)
        self._loss = loss
        self._join = join
        self._first: Sequence[Tensor] | None = None

    def hessian_product(
        self, vector: Sequence[Tensor], radius: float | None = None
    ) -> list[Tensor]:
        """``d2L/dw2 v``: exact, or with a `radius` from the gradients at weights moved by so much
        to both sides along v.
        """
        if radius is None:
            return self._exact(vector, self._weights)
        weights = self._weights
        return central_difference(self._gradients, weights, vector, weights, scale=radius)

    def mixed_product(
        self, vector: Sequence[Tensor], radius: float | None = None, norm: float | None = None
    ) -> list[Tensor]:
        """``v d2L/dw da``, likewise (DARTS, Liu et al., equation 8).

        Args: norm, of which the weights are moved by ``radius / norm * v``, default that of v.
        """
        if radius is None:
            return self._exact(vector, self._alphas)
        return central_difference(
            self._gradients, self._weights, vector, self._alphas, scale=radius, norm=norm
        )

    def _exact(self, vector: Sequence[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        """The derivative of ``<dL/dw, v>`` by the leaves."""
        pairs = [
            (gradient, v)
            for gradient, v in zip(self._gradient(), vector, strict=True)
            if gradient.requires_grad
        ]
        found = [torch.zeros_like(leaf) for leaf in leaves]
        if pairs:
            outputs, vectors = zip(*pairs, strict=True)
            found = list(
                torch.autograd.grad(
                    outputs,
                    leaves,
                    vectors,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        if self._join is not None:
            self._join(found)
        return found

    def _gradient(self) -> Sequence[Tensor]:
        """``dL/dw`` with its graph, made once."""
        if self._first is None:
            if self._loss is None:
                raise ValueError("InnerDerivatives: exact products need the loss, got None")
            loss = self._loss()
            self._first = [torch.zeros_like(weight) for weight in self._weights]
            if loss.requires_grad:  # an empty share of a batch has no graph
                self._first = torch.autograd.grad(
                    loss,
                    self._weights,
                    create_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
        return self._first

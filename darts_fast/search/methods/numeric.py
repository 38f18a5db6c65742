# SPDX-License-Identifier: Apache-2.0
"""Derivatives that search methods build from gradients: no network in it, only callables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["FINITE_DIFFERENCE", "Gradients", "central_difference", "global_norm", "restored"]

Gradients = Callable[[Sequence[Tensor]], tuple[float, list[Tensor]]]
"""Leaves -> a loss at the present values of everything, and its gradient by each leaf."""

FINITE_DIFFERENCE = 0.01
"""Length of the step of DARTS's finite differences (Liu et al., section 2.3, after equation 8)."""


def global_norm(tensors: Sequence[Tensor]) -> float:
    """The L2 norm of all values together."""
    return float(torch.nn.utils.get_total_norm(list(tensors)))


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Afterwards the tensors hold, bit for bit, the values they had before; in their storage."""
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(tensors), kept)


def central_difference(
    gradients: Gradients,
    weights: Sequence[Tensor],
    direction: Sequence[Tensor],
    leaves: Sequence[Tensor],
    *,
    scale: float = FINITE_DIFFERENCE,
    norm: float | None = None,
) -> list[Tensor]:
    """``d2L / dleaves dweights . direction``, from the gradients at ``weights +- e direction``.

    ``e = scale / ||direction||``, over all weights together; it is exact where the gradient is at
    most quadratic in the weights. The weights are bitwise as they were afterwards.

    Args:
        gradients: of the loss L.
        weights, direction: of the same shapes.
        leaves: one result each; they may be the weights themselves (a Hessian-vector product).
        scale: of the step.
        norm: divides ``scale`` in place of the direction's own norm.

    Returns:
        Zeros where the direction is zero.
    """
    norm = global_norm(direction) if norm is None else norm
    if norm == 0.0:
        return [torch.zeros_like(leaf) for leaf in leaves]
    step = scale / norm
    targets = [weight.detach() for weight in weights]
    start = [target.clone() for target in targets]
    sides: list[list[Tensor]] = []
    with restored(targets):
        for signed in (step, -step):
            moved = torch._foreach_add(start, list(direction), alpha=signed)
            torch._foreach_copy_(targets, list(moved))
            sides.append(gradients(leaves)[1])
    return [(plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]

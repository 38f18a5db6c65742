# SPDX-License-Identifier: Apache-2.0
"""DARTS, first and second order (Liu, Simonyan and Yang, ICLR 2019, arXiv 1806.09055).

Read: the authors' repository. The step size of the finite difference, 0.01 / ||v||, momentum and
weight decay in the virtual step and the order (architecture before weights) are its. Two things are
not: running statistics stand still in architecture steps, and weights come back from a copy, where
it adds and subtracts, which leaves rounding errors in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darts_fast.search.loop import Loop
from darts_fast.search.methods.base import Method
from darts_fast.search.methods.numeric import (
    FINITE_DIFFERENCE,
    Gradients,
    central_difference,
    restored,
)
from darts_fast.search.methods.products import drawing
from darts_fast.seeding import draw_seed

__all__ = [
    "Blank",
    "Darts",
    "DartsOptions",
    "DartsSecondOrder",
    "unrolled_gradient",
    "unrolled_step",
]


@dataclass(frozen=True)
class DartsOptions:
    """Args: unrolled, second-order gradients as `unrolled_gradient`; default first order."""

    unrolled: bool = field(default=False, metadata={"help": "Second-order gradients."})


class Darts(Method):
    """Adam on ``dL_val/dalpha`` at the present weights (section 2.3, xi = 0), or with
    ``unrolled=True`` at weights one training step ahead.
    """

    name = "darts"
    Options = DartsOptions

    def gradient(self, loop: Loop) -> tuple[float, list[Tensor]] | None:
        alphas = self.net.arch_parameters()
        if not self.options.unrolled:
            return loop.gradients(loop.valid, alphas)
        return unrolled_step(loop, lambda leaves: loop.gradients(loop.train, leaves))


class DartsSecondOrder(Darts):
    """``darts`` with ``unrolled=True`` (section 2.3, equations 6 to 8)."""

    name = "darts-2nd"

    @dataclass(frozen=True)
    class Options:
        """None; the order is the method."""

        @property
        def unrolled(self) -> bool:
            return True


class Blank(Method):
    """The architecture parameters stay as they were drawn (the baseline of DARTS-PT's code)."""

    name = "blank"

    def gradient(self, loop: Loop) -> None:
        return None


def unrolled_step(loop: Loop, train: Gradients) -> tuple[float, list[Tensor]]:
    """`unrolled_gradient` of a search, one step of its optimizer ahead.

    Args:
        train: the training loss of this step's batch and its gradients. All its calls draw the same
            random numbers, such as those of noise operations.
    """
    states = [loop.optimizer.state.get(weight, {}) for weight in loop.weights]
    return unrolled_gradient(
        drawing(draw_seed(), train),
        lambda leaves: loop.gradients(loop.valid, leaves),
        loop.weights,
        loop.net.arch_parameters(),
        learning_rate=loop.learning_rate,
        momentum=loop.config.momentum,
        weight_decay=loop.config.weight_decay,
        buffers=[state.get("momentum_buffer") for state in states],
    )


def unrolled_gradient(
    train: Gradients,
    valid: Gradients,
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    scale: float = FINITE_DIFFERENCE,
) -> tuple[float, list[Tensor]]:
    """The gradient by alpha of the validation loss after one virtual training step.

    With xi the learning rate, ``w' = w - xi (momentum * buffer + dL_train/dw + weight_decay * w)``
    and ``v = dL_val/dw'`` it is ``dL_val(w', alpha)/dalpha - xi d2L_train/(dalpha dw) v``, whose
    second term is a central difference of the training gradient over ``w +- 0.01 v / ||v||``
    (section 2.3, equations 7 and 8). Buffers count as zeros where they are None.

    The weights are bitwise as they were afterwards. It costs one pass forward and backward for the
    virtual step, one for the validation gradient, and two for the difference.

    The difference is that of a smooth loss. Where a ReLU or a maximum changes sides within the step
    it is not, and its error is then as large as it happens to be; a smaller step meets fewer.

    Args:
        train, valid: losses and gradients at the present values of ``weights`` and ``alphas``.
        scale: of the difference's step, published as 0.01.

    Returns:
        The validation loss after the virtual step, and a gradient per alpha.
    """
    targets = [weight.detach() for weight in weights]
    with restored(targets):
        moves = torch._foreach_add(train(weights)[1], targets, alpha=weight_decay)
        for move, buffer in zip(moves, buffers or [], strict=False):
            if buffer is not None:
                move.add_(buffer, alpha=momentum)
        torch._foreach_add_(targets, moves, alpha=-learning_rate)
        loss, found = valid([*alphas, *weights])
    direct, ahead = found[: len(alphas)], found[len(alphas) :]
    implicit = central_difference(train, weights, ahead, alphas, scale=scale)
    return loss, [a - learning_rate * b for a, b in zip(direct, implicit, strict=True)]

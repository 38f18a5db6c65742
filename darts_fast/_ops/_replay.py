# SPDX-License-Identifier: Apache-2.0
"""The second derivative of a native op: its reference, differentiated twice (design 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def second_derivative(
    function: Callable[[list[Tensor | None]], Sequence[Tensor]],
    grad_outputs: Sequence[Tensor | None],
    arguments: Sequence[Tensor | None],
    wanted: Sequence[bool],
    incoming: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of ``sum_i <incoming_i, d<grad_outputs, function>/d arguments_i>``.

    Args:
        function: the reference, from `arguments` (None where an optional one is missing) to
            outputs, as many as `grad_outputs`.
        grad_outputs: what the first backward was given; None where no gradient arrived.
        arguments: of the first derivative.
        wanted: per argument, whether the first backward computed its gradient.
        incoming: per argument, the gradient that arrives at its gradient.

    Returns:
        The gradients of `grad_outputs` and of `arguments`.
    """
    with torch.enable_grad():
        factors = [None if g is None else g.detach().requires_grad_() for g in grad_outputs]
        leaves = [None if x is None else x.detach().requires_grad_() for x in arguments]
        outputs = function(leaves)
        arriving = [
            (y, g)
            for y, g in zip(outputs, factors, strict=True)
            if g is not None and y.requires_grad
        ]
        present = [leaf for leaf in leaves if leaf is not None]
        first: Iterator[Tensor] = iter(
            torch.autograd.grad(
                [y for y, _ in arriving],
                present,
                [g for _, g in arriving],
                create_graph=True,
                materialize_grads=True,
            )
        )
        pairs = []
        for leaf, want, factor in zip(leaves, wanted, incoming, strict=True):
            grad = None if leaf is None else next(first)
            if want and grad is not None and factor is not None:
                pairs.append((grad, factor))
        targets = [g for g in factors if g is not None] + present
        second: Iterator[Tensor | None] = iter(
            torch.autograd.grad(
                [grad for grad, _ in pairs],
                targets,
                [factor for _, factor in pairs],
                allow_unused=True,
            )
            if any(grad.requires_grad for grad, _ in pairs)
            else [None] * len(targets)
        )
    return (
        [None if g is None else next(second) for g in factors],
        [None if x is None else next(second) for x in leaves],
    )


def flags(needs: bool | Sequence[bool], length: int) -> list[bool]:
    """`needs_input_grad` of a list argument, one entry per tensor."""
    return [needs] * length if isinstance(needs, bool) else [bool(need) for need in needs]

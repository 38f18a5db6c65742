# SPDX-License-Identifier: Apache-2.0
"""Architecture parameters as the originals' scripts and architects expect them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet, frozen


class HiddenAlphas(Supernet):
    """A supernet whose alphas no list of parameters shows.

    The originals keep them as plain tensors. Their own code pairs `named_parameters()` with
    `parameters()`, so that neither may list an alpha; `.to()`, `.double()` and deepcopy still move
    and copy them.
    """

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        alphas = {id(alpha) for alpha in self.arch_parameters()}
        named = super().named_parameters(prefix, recurse, remove_duplicate)
        return ((name, p) for name, p in named if id(p) not in alphas)

    def set_arch_parameters(self, new_alphas: Iterable[Tensor]) -> None:
        """Copy values into the alphas, which stay the tensors they are."""
        with torch.no_grad():
            for alpha, values in zip(self.arch_parameters(), new_alphas, strict=True):
                alpha.copy_(values)


class Searched(Protocol):
    """What an architect needs of a network, one of this package or of an original."""

    def arch_parameters(self) -> Sequence[Tensor]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def buffers(self) -> Iterator[Tensor]: ...

    def _loss(self, input: Tensor, target: Tensor, /) -> Any: ...


def alpha_optimizer(alphas: Sequence[Tensor], args: Any) -> torch.optim.Adam:
    """Adam with betas (0.5, 0.999), `args.arch_learning_rate` and `args.arch_weight_decay` (DARTS,
    Liu et al., ICLR 2019, appendix A.1.1).
    """
    return torch.optim.Adam(
        alphas,
        lr=args.arch_learning_rate,
        betas=(0.5, 0.999),
        weight_decay=args.arch_weight_decay,
    )


def loss_gradients(
    model: Searched, batch: tuple[Tensor, Tensor], leaves: Sequence[Tensor]
) -> tuple[float, list[Tensor]]:
    """The loss of a batch and its gradient by each leaf, 0 for what it does not depend on.

    No gradient of any other weight is computed; running statistics move as in any forward.
    """
    wanted = {id(leaf) for leaf in leaves}
    with frozen([weight for weight in model.parameters() if id(weight) not in wanted]):
        loss: Tensor = model._loss(*batch)
        if not loss.requires_grad:
            return loss.item(), [torch.zeros_like(leaf) for leaf in leaves]
        found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.item(), list(found)


def accumulate(alphas: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
    """Add to `.grad`, as backward would."""
    for alpha, gradient in zip(alphas, gradients, strict=True):
        alpha.grad = gradient if alpha.grad is None else alpha.grad + gradient

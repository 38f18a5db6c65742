# SPDX-License-Identifier: Apache-2.0
"""Architecture parameters as the originals' scripts and architects expect them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from darts_fast.nn import Supernet, frozen
from darts_fast.nn.supernet import INITIAL_STD


class HiddenAlphas(Supernet):
    """A supernet whose alphas no list of parameters shows, not even one of a wrapper around it such
    as `nn.DataParallel`.

    They are attributes that are not registered, as in the originals, whose scripts give an
    optimizer the parameters of the wrapper. `.to()`, `.double()` and deepcopy move and copy them
    all the same, and a state_dict that has them is loaded.
    """

    def _register_architecture(self, name: str, shape: tuple[int, ...]) -> None:
        vars(self)[name] = nn.Parameter(INITIAL_STD * torch.randn(shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HiddenAlphas:
        super()._apply(fn, recurse)
        for alpha in self.arch_parameters():
            alpha.data = fn(alpha.data)
            if alpha.grad is not None:
                alpha.grad.data = fn(alpha.grad.data)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weights = dict(state_dict)
        for name in self._architecture_names():
            alpha, values = getattr(self, name), weights.pop(prefix + name, None)
            if values is not None and values.shape == alpha.shape:
                alpha.data.copy_(values)
            elif values is not None:
                error_msgs.append(
                    f"{prefix}{name} must be {list(alpha.shape)}, got {list(values.shape)}"
                )
        super()._load_from_state_dict(
            weights, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

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

# SPDX-License-Identifier: Apache-2.0
"""Calls of an op with lists of tensors, at the price of its tensors only.

What `torch.library.register_autograd` wraps around an op walks every argument as a tree, several
times in a call: for the three hundred tensors of a cell that took longer than small cells do. The
same two functions, setup and backward, serve here on a flat list. Under a compiler, a dispatch mode
or autocast the registered op is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Setup = Callable[[Any, tuple[Any, ...], tuple[Any, ...]], None]
Backward = Callable[..., tuple[Any, ...]]


def direct(op: Any, setup: Setup, backward: Backward) -> Callable[..., tuple[Tensor, ...]]:
    """A function that does what `op` does, whose outputs are all tensors.

    Args: setup and backward, as `register_autograd` takes them.
    """

    def call(*arguments: Any) -> tuple[Tensor, ...]:
        if not _is_plain():
            return _tuple(op(*arguments))
        flat = list(_tensors(arguments))
        if torch.is_grad_enabled() and any(x.requires_grad for x in flat):
            return _tuple(_Direct.apply(op, setup, backward, arguments, *flat))
        return _below_autograd(op, arguments)

    return call


def _is_plain() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
    )


def _below_autograd(op: Any, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return _tuple(op(*arguments))


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs)


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments and in those of them that are lists of tensors."""
    for value in arguments:
        if isinstance(value, Tensor):
            yield value
        elif _is_tensors(value):
            yield from value


def _is_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], Tensor)


class _Context:
    """The context of `_Direct` as a registered backward sees it: flags per argument."""

    def __init__(self, context: Any, needs_input_grad: list[Any]) -> None:
        self._context = context
        self.needs_input_grad = needs_input_grad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: Any,
        setup: Setup,
        backward: Backward,
        arguments: tuple[Any, ...],
        *flat: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs = _below_autograd(op, arguments)
        setup(ctx, arguments, outputs)
        ctx.registered = backward
        # Which arguments are tensors, without the tensors: those are saved by `setup`.
        ctx.shape = [
            True if isinstance(x, Tensor) else len(x) if _is_tensors(x) else None for x in arguments
        ]
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        flags = iter(ctx.needs_input_grad[4:])
        needs = [
            False
            if shape is None
            else next(flags)
            if shape is True
            else [next(flags) for _ in range(shape)]
            for shape in ctx.shape
        ]
        grads = ctx.registered(_Context(ctx, needs), *grad_outputs)
        flat: list[Tensor | None] = []
        for shape, grad in zip(ctx.shape, grads, strict=True):
            if shape is True:
                flat.append(grad)
            elif shape is not None:
                flat.extend(grad or [None] * shape)
        return None, None, None, None, *flat

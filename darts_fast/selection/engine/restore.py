# SPDX-License-Identifier: Apache-2.0
"""Scoring reads a network: training flags, buffers and random states are as before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from darts_fast.evaluation import kept_training
from darts_fast.nn.operations import Noise
from darts_fast.seeding import rng_state, set_rng_state


@contextmanager
def untouched(
    net: nn.Module,
    bn: str,
    *,
    keep_rng: bool,
    modules: Sequence[nn.Module] | None = None,
    moving: Sequence[nn.Module] | None = None,
) -> Iterator[None]:
    """Put the network in the mode for scoring, and back at the end, however that comes.

    Args: bn, see `MaskedEvaluation`: "batch_updating" leaves the buffers as they have become;
    keep_rng, whether the global random states are put back; modules, those of the network, where
    the caller has listed its thousands already; moving, those whose buffers may move, default all.
    """
    training = bn != "running"
    modules = modules or list(net.modules())
    kept = modules if moving is None else moving
    random = rng_state() if keep_rng else None
    try:
        with kept_training(modules):
            if not all(module.training == training for module in modules):
                net.train(training)
            with kept_buffers(kept if bn != "batch_updating" else ()):
                yield
    finally:
        if random is not None:
            set_rng_state(random)


@contextmanager
def kept_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts the buffers of these modules, not of those below them, back."""
    kept = (buffer for module in modules for buffer in module._buffers.values())
    buffers = [buffer for buffer in kept if buffer is not None]
    values = [torch.empty_like(buffer) for buffer in buffers]
    _copy(values, buffers)
    try:
        yield
    finally:
        _copy(buffers, values)


@torch.no_grad()
def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    """Thousands of small ones: on a CUDA device a few launches."""
    if to:
        torch._foreach_copy_(to, values)


@contextmanager
def keyed_draws(
    net: nn.Module, seed: int | None, batch: int, *, modules: Sequence[nn.Module] | None = None
) -> Iterator[None]:
    """Forwards whose random draws are the same under every table.

    Each noise operation is seeded on its own: a removed one is skipped, and must not shift the
    draws of the others. With seed None all draws come from the global states as they fall.

    Args: modules, see `untouched`.
    """
    if seed is None:
        yield
        return
    key = seed

    def reseed(operation: int) -> None:
        words = np.random.SeedSequence([key, batch, operation]).generate_state(2, np.uint32)
        number = (int(words[0]) << 31) ^ int(words[1])
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(number)

    def seeded(operation: int) -> Callable[[nn.Module, object], None]:
        return lambda module, arguments: reseed(operation)

    noises = [module for module in modules or net.modules() if isinstance(module, Noise)]
    hooks = [module.register_forward_pre_hook(seeded(i)) for i, module in enumerate(noises, 1)]
    reseed(0)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

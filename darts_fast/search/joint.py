# SPDX-License-Identifier: Apache-2.0
"""One step of several processes on a joint batch: each takes its share of the images.

The loss is a sum over images divided by the images of the joint batch, so that the gradients of all
processes add up to that of one process on that batch, but for the batch norms: each process
normalises with the statistics of its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.distributed import World
from darts_fast.finite import UNSEEN, first_non_finite
from darts_fast.nn import Supernet

__all__ = ["check_same", "first_place", "join_gradients", "share_loss"]


def share_loss(
    net: Supernet,
    images: Tensor,
    labels: Tensor,
    world: World,
    weights: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Part of the mean cross entropy of the joint batch that is this process's, and its logits.

    Random operations draw of their own in every process. An empty share has loss 0, without a
    gradient, and no rows of logits.

    Args:
        images: of this process's share, ``[n, 3, H, W]``.
        labels: of the joint batch, ``[N]``.
        weights: as for the network's forward.
    """
    if world.alone:
        logits = net(images, weights=weights)
        return functional.cross_entropy(logits, labels), logits
    own = world.share(len(labels))
    with world.own_draws():
        if len(images) == 0:
            return images.new_zeros(()), images.new_zeros(0, 1)
        logits = net(images, weights=weights)
    loss = functional.cross_entropy(logits, labels[own], reduction="sum")
    return loss / len(labels), logits


def first_place(
    net: Supernet, images: Tensor, world: World, weights: Mapping[str, Tensor] | None = None
) -> str:
    """In words, the first value that is not finite in a forward of any process's share (see
    `darts_fast.finite.first_non_finite`).
    """
    where = UNSEEN
    if len(images) > 0:
        where = first_non_finite(net, lambda: net(images, weights=weights))
    return next((place for place in world.gather(where) if place != UNSEEN), UNSEEN)


def join_gradients(net: nn.Module, images: int, world: World, sums: Tensor) -> None:
    """Sum the gradients of `net.parameters()` and `sums` over the processes, in one buffer.

    A parameter that has a gradient in no process still has none afterwards, so that optimizers
    leave it alone. Running statistics become their mean over the processes, weighted by images, and
    counters those of the first process, which has images in every step.

    Args:
        images: of the joint batch.
        sums: a vector of at least float32.
    """
    if world.alone:
        return
    own = world.share(images)
    weights = list(net.parameters())
    has = torch.tensor([weight.grad is not None for weight in weights], device=sums.device).float()
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    with torch.no_grad():
        for buffer in net.buffers():
            buffer.mul_(
                (own.stop - own.start) / images
                if buffer.is_floating_point()
                else int(world.rank == 0)
            )
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        world.sum([sums, has, *gradients, *net.buffers()])
    for weight, count in zip(weights, has.tolist(), strict=True):
        if count == 0:
            weight.grad = None


def check_same(net: Supernet, world: World, when: str) -> None:
    """Raise ValueError unless all processes hold the same weights, alphas and buffers."""
    if world.alone:
        return
    digest = hashlib.sha256()
    for tensor in (*net.parameters(), *net.arch_parameters(), *net.buffers()):
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    if len(set(world.gather(digest.hexdigest()))) > 1:
        raise ValueError(
            f"search: all {world.size} processes must hold the same weights {when}, got others; "
            "they must start alike and use one torch version and one DARTS_FAST_CPU_CAPABILITY"
        )

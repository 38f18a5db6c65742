# SPDX-License-Identifier: Apache-2.0
"""Hypergradients at samples of the architecture parameters, where the weights are as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from darts_fast.nn import Supernet, frozen
from darts_fast.search.loop import Loop
from darts_fast.search.methods.darts import unrolled_step
from darts_fast.search.methods.grouped import GroupedForward
from darts_fast.search.methods.implicit import ImplicitConfig
from darts_fast.search.methods.implicit_step import implicit_step
from darts_fast.search.methods.numeric import restored

__all__ = ["HYPERGRADIENTS", "AtSamples"]

HYPERGRADIENTS = ("first", "second", "implicit")


class AtSamples:
    """The loss and a gradient of every architecture parameter, at each sample.

    Several first-order ones are taken as groups of one pass, where the network and one process
    allow it; all others one after the other.

    Args:
        net: a supernet; its architecture parameters are moved and come back bitwise.
        hypergradient: one of `HYPERGRADIENTS`: of the weights as they are, after a virtual step
            taken at the architecture parameters as they stand (not at the sample), or implicit.
    """

    def __init__(self, net: Supernet, hypergradient: str = "first") -> None:
        self._net = net
        self._hypergradient = hypergradient
        self._forward = GroupedForward(net)

    def __call__(self, loop: Loop, samples: list[Tensor]) -> tuple[float, list[Tensor]]:
        """The mean loss, and gradients ``[S, *shape]``.

        Args:
            samples: of every architecture parameter, ``[S, *shape]``.
        """
        first, several = self._hypergradient == "first", len(samples[0]) > 1
        if first and several and loop.alone and _plain(self._net):
            return self.grouped(loop, samples)
        return self.one_by_one(loop, samples)

    def grouped(self, loop: Loop, samples: list[Tensor]) -> tuple[float, list[Tensor]]:
        """First-order gradients at all samples in one pass."""
        leaves = [sample.detach().requires_grad_() for sample in samples]
        with frozen([*loop.weights, *self._net.arch_parameters()]):
            logits = self._forward(loop.valid.images, _tables(self._net, leaves))
            labels = loop.valid.labels
            losses = torch.stack([functional.cross_entropy(rows, labels) for rows in logits])
            found = [torch.zeros_like(leaf) for leaf in leaves]
            if losses.requires_grad:  # not every edge is decided
                total = losses.sum()
                found = list(
                    torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
                )
        return float(losses.detach().mean()), found

    def one_by_one(self, loop: Loop, samples: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Any hypergradient, at one sample after the other."""
        alphas = self._net.arch_parameters()
        means = [alpha.detach().clone() for alpha in alphas]
        results = []
        for index in range(len(samples[0])):
            with restored(alphas):
                drawn = [sample[index] for sample in samples]
                _copy(alphas, drawn)
                results.append(self._at(loop, means, drawn))
        losses, rows = zip(*results, strict=True)
        gradients = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        return sum(losses) / len(losses), gradients

    def _at(
        self, loop: Loop, means: list[Tensor], drawn: list[Tensor]
    ) -> tuple[float, list[Tensor]]:
        """At the sample that the network's architecture parameters hold."""
        alphas = self._net.arch_parameters()
        if self._hypergradient == "first":
            return loop.gradients(loop.valid, alphas)
        if self._hypergradient == "implicit":
            damping = loop.config.weight_decay
            found = implicit_step(loop, ImplicitConfig(damping=damping, diverging="keep"))
            return found.loss, found.gradients
        weights = loop.weights

        def train(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
            """The virtual step is one at the means, whatever the sample."""
            if leaves[0] is not weights[0]:
                return loop.gradients(loop.train, leaves)
            _copy(alphas, means)
            found = loop.gradients(loop.train, leaves)
            _copy(alphas, drawn)
            return found

        return unrolled_step(loop, train)


@torch.no_grad()
def _copy(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """In place: a captured graph keeps the storage."""
    torch._foreach_copy_(list(parameters), list(values))


def _plain(net: Supernet) -> bool:
    """Whether the edge weights are the projected softmax of one table per cell type, and nothing
    else is learned beside them."""
    alone = len(net.arch_parameters()) == len(net.space.cell_types)
    return alone and type(net)._edge_weights is Supernet._edge_weights


def _tables(net: Supernet, samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Edge weights ``[S, edges, ops]`` by cell type, with what the network has decided."""
    return {
        name: torch.stack([net.projection.apply(name, row) for row in sample.softmax(-1)])
        for name, sample in zip(net.space.cell_types, samples, strict=True)
    }

# SPDX-License-Identifier: Apache-2.0
"""SmoothDARTS: SDARTS-RS and SDARTS-ADV (Chen and Hsieh, ICML 2020, arXiv 2002.05283).

Read: the authors' repository and its copy in DARTS-PT's; not copied, it has no licence. As there,
`clip` clamps and renormalises, which is no projection onto the simplex: a clipped weight may end
farther than epsilon from where it started. Known of the source and kept: in DARTS-PT's tuning
epsilon is constant. Different here: the attack computes no gradients of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darts_fast.search.loop import Loop
from darts_fast.search.methods.darts import Darts, DartsOptions
from darts_fast.search.methods.numeric import Gradients

__all__ = ["SDARTSADV", "SDARTSRS", "SDARTSOptions", "add_noise", "attack", "clip", "epsilon"]

EPSILON_BEGIN = 0.03
ATTACK_STEPS = 7


@dataclass(frozen=True)
class SDARTSOptions(DartsOptions):
    """Args: epsilon_alpha, the largest perturbation of an edge weight; ValueError below 0.03, where
    its schedule begins.
    """

    epsilon_alpha: float = field(
        default=0.3, metadata={"help": "Largest perturbation of an edge weight."}
    )

    def __post_init__(self) -> None:
        if not EPSILON_BEGIN <= self.epsilon_alpha <= 1:
            raise ValueError(
                f"sdarts: epsilon_alpha must be {EPSILON_BEGIN} to 1, got {self.epsilon_alpha}"
            )


class SDARTSRS(Darts):
    """Weights are trained under uniform noise on softmax(alpha) (section 3.2, SDARTS-RS)."""

    name = "sdarts-rs"
    Options = SDARTSOptions

    def edge_weights(self, loop: Loop) -> Mapping[str, Tensor]:
        size = self.options.epsilon_alpha
        if not loop.tuning:
            size = epsilon(loop.epoch, self.config.epochs, size)
        own = {name: table.detach() for name, table in self.net.edge_weights().items()}
        perturbed = self.perturb(loop, list(own.values()), size)
        return {
            name: self.net.projection.apply(name, table)  # decided edges stay as they are
            for name, table in zip(own, perturbed, strict=True)
        }

    def perturb(self, loop: Loop, own: Sequence[Tensor], size: float) -> list[Tensor]:
        """The tables that the weight step takes in place of `own`."""
        return [clip(add_noise(table, size)) for table in own]


class SDARTSADV(SDARTSRS):
    """Weights are trained under the worst perturbation that an attack on the training batch finds
    (section 3.2, SDARTS-ADV), with batch norms in evaluation mode.
    """

    name = "sdarts-adv"

    def perturb(self, loop: Loop, own: Sequence[Tensor], size: float) -> list[Tensor]:
        names = self.net.space.cell_types

        def gradients(tables: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
            leaves = [table.requires_grad_() for table in tables]
            return loop.gradients(loop.train, leaves, dict(zip(names, leaves, strict=True)))

        def loss(tables: Sequence[Tensor]) -> float:
            return loop.gradients(loop.train, (), dict(zip(names, tables, strict=True)))[0]

        self.net.eval()
        try:
            return attack(gradients, loss, own, size)
        finally:
            self.net.train()


def epsilon(epoch: int, epochs: int, largest: float) -> float:
    """The size of perturbations in an epoch: from 0.03 in equal steps towards `largest`, which the
    last epoch does not reach.
    """
    return EPSILON_BEGIN + (largest - EPSILON_BEGIN) * epoch / epochs


def add_noise(table: Tensor, size: float) -> Tensor:
    """The table with independent uniform noise of (-size, size) on every entry."""
    noise = torch.rand(table.shape, dtype=table.dtype).to(table.device)
    return table + size * (2 * noise - 1)


def clip(table: Tensor) -> Tensor:
    """Rows clamped to [0, 1] and divided by their sums; a row without a positive entry becomes
    one-hot in its largest.
    """
    clamped = table.clamp(0, 1)
    best = torch.zeros_like(table).scatter_(-1, table.argmax(-1, keepdim=True), 1.0)
    rows = torch.where(clamped.sum(-1, keepdim=True) > 0, clamped, best)
    return rows / rows.sum(-1, keepdim=True)


def attack(
    gradients: Gradients,
    loss: Callable[[Sequence[Tensor]], float],
    own: Sequence[Tensor],
    size: float,
    steps: int = ATTACK_STEPS,
) -> list[Tensor]:
    """Tables near `own` with a larger loss: ascent by the sign of the gradient (PGD).

    It starts from clipped noise. Each step is ``2 size / steps`` long, followed by a clamp of the
    change to ``[-size, size]`` and by `clip`. Where the loss ends below that of `own`, which is
    computed first, they are returned as they are.

    Args:
        gradients: of tables that it is given as leaves, and the loss of tables as they are.
    """
    clean = loss(own)
    tables = [clip(add_noise(table, size)) for table in own]
    for _ in range(steps):
        found = gradients(tables)[1]
        moved = []
        for table, gradient, start in zip(tables, found, own, strict=True):
            change = table.detach() + (2 * size / steps) * gradient.sign() - start
            moved.append(clip(start + change.clamp(-size, size)))
        tables = moved
    return list(own) if loss(tables) < clean else tables

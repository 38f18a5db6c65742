# SPDX-License-Identifier: Apache-2.0
"""How sure SGAS is of every edge of a cell type (Li et al., CVPR 2020, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Scores"]


class Scores:
    """The scores of all edges, ``[edges]`` each, in float64.

    Args:
        alpha: ``[edges, ops]``.
        primitives: names of the operations of every edge.
        history: earlier ``distribution``s, which stability compares with.

    Attributes:
        distribution: ``[edges, ops]``, softmax(alpha) of the operations other than ``none``,
            normalised among them; 0 for ``none``.
        importance: the weight of all of those together (equation 3).
        certainty: 1 minus the entropy of the distribution over its largest (equation 4); 1 where
            there is one operation only.
        stability: mean overlap of the distribution with those of the history (equation 5), 0
            without a history.
    """

    def __init__(
        self, alpha: Tensor, primitives: Sequence[Sequence[str]], history: Sequence[Tensor]
    ) -> None:
        weights = alpha.detach().double().cpu().softmax(-1)
        real = torch.tensor([[name != "none" for name in names] for names in primitives])
        kept = torch.where(real, weights, 0.0)
        self.importance = kept.sum(-1)
        self.distribution = kept / self.importance[:, None]
        most = torch.tensor([math.log(count) for count in real.sum(-1).tolist()])
        entropy = -torch.special.xlogy(self.distribution, self.distribution).sum(-1)
        self.certainty = torch.where(most > 0, 1 - entropy / most, 1.0)
        overlaps = [torch.minimum(past, self.distribution).sum(-1) for past in history]
        self.stability = torch.stack(overlaps).mean(0) if overlaps else torch.zeros(len(alpha))
        self._has_none = not bool(real.all())

    def criterion(self, *, use_history: bool) -> Tensor:
        """Criterion 1, importance times certainty, each over its range; criterion 2 is that times
        stability over its range (equations 6 and 7).

        Without ``none`` on any edge all are equally important, and importance is left out.
        """
        found = normalised(self.certainty)
        if self._has_none:
            found = found * normalised(self.importance)
        return found * normalised(self.stability) if use_history else found

    def best(self, edges: Sequence[int], *, use_history: bool) -> int:
        """Of these edges the one with the largest criterion; ties: the first."""
        values = self.criterion(use_history=use_history)[list(edges)].tolist()
        return edges[values.index(max(values))]

    def operation(self, edge: int) -> int:
        """The operation of an edge other than ``none`` with the largest weight; ties: the first."""
        return int(self.distribution[edge].argmax())


def normalised(values: Tensor) -> Tensor:
    """Values moved and scaled to the range 0 to 1; zeros where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)

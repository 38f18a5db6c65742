# SPDX-License-Identifier: Apache-2.0
"""The best of a group of architectures drawn from a posterior, by a score that needs no training
(BaLeNAS-TF, Zhang et al., CVPR 2022, arXiv 2111.13204; the abstract was read, not the code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.search.methods.numeric import restored
from darts_fast.search.methods.vadam import Vadam
from darts_fast.spaces import Genotype

__all__ = ["Drawn", "best_drawn"]

Architecture = Genotype | str
Scorer = Callable[[Architecture], float]


@dataclass(frozen=True)
class Drawn:
    """What `best_drawn` returns.

    Attributes:
        best: the architecture with the highest score, the first of equal ones.
        architectures: all different ones, in the order of their first draw.
        scores: of each.
    """

    best: Architecture
    architectures: list[Architecture]
    scores: list[float]


def best_drawn(
    net: Supernet, posterior: Vadam, score: Scorer | None = None, *, samples: int = 100
) -> Drawn:
    """Draw architecture parameters, discretise each draw, and return the best.

    The network is left as it is, and what it has decided holds for every draw.

    Args:
        net: a supernet whose architecture parameters the posterior has.
        posterior: such as `BaLeNAS.posterior`.
        score: of an architecture, higher is better; called once for each different one. None: the
            architecture of the means, without a draw.
        samples: draws.

    Raises:
        ValueError: no samples.
    """
    if samples < 1:
        raise ValueError(f"best_drawn: samples must be at least 1, got {samples}")
    if score is None:
        best = net.genotype()
        return Drawn(best, [best], [])
    alphas: list[Tensor] = [*net.arch_parameters()]
    scores: dict[str, tuple[Architecture, float]] = {}
    with restored(alphas):
        for rows in zip(*posterior.sample(samples), strict=True):
            with torch.no_grad():
                torch._foreach_copy_(alphas, list(rows))
            architecture = net.genotype()
            if str(architecture) not in scores:
                scores[str(architecture)] = (architecture, float(score(architecture)))
    found = list(scores.values())
    best = max(found, key=lambda pair: pair[1])[0]
    return Drawn(best, [one for one, _ in found], [value for _, value in found])

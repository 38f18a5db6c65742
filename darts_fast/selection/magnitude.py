# SPDX-License-Identifier: Apache-2.0
"""Selection by the size of the architecture weights (DARTS, section 2.4)."""

from __future__ import annotations

import torch

from darts_fast.nn import Supernet
from darts_fast.spaces import Genotype

__all__ = ["magnitude_genotype", "magnitude_weights"]


def magnitude_weights(net: Supernet) -> dict[str, torch.Tensor]:
    """``softmax(alpha)`` of every cell type, ``[edges, ops]``, whatever the projections say."""
    names = net.space.cell_types
    alphas = net.arch_parameters()
    return {name: alpha.detach().softmax(dim=-1) for name, alpha in zip(names, alphas, strict=True)}


def magnitude_genotype(net: Supernet) -> Genotype | str:
    """The genotype of the largest architecture weights; a projected network gives the same as
    before projection.
    """
    return net.space.genotype(magnitude_weights(net))

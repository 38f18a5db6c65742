# SPDX-License-Identifier: Apache-2.0
"""The supernet of SDARTS that perturbation-based selection projects."""

from darts_fast.compat.darts_pt._softmaxed import Softmaxed
from darts_fast.compat.darts_pt.model_search_darts_proj import DartsNetworkProj

__all__ = ["SDartsNetworkProj"]


class SDartsNetworkProj(Softmaxed, DartsNetworkProj):
    """A `DartsNetworkProj` whose weights are trained under perturbed edge weights; decided rows are
    not perturbed.
    """

# SPDX-License-Identifier: Apache-2.0
"""The supernet of SDARTS (Chen and Hsieh, ICML 2020)."""

from darts_fast.compat.darts_pt._softmaxed import Softmaxed

__all__ = ["SDartsNetwork"]


class SDartsNetwork(Softmaxed):
    """A `Network` whose weights are trained under perturbed edge weights."""

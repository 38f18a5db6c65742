# SPDX-License-Identifier: Apache-2.0
"""The supernet that DARTS searches."""

from darts_fast.compat.nasbench201.search_model import TinyNetwork

__all__ = ["TinyNetworkDarts"]


class TinyNetworkDarts(TinyNetwork):
    """`TinyNetwork`; its edge weights are a softmax of the alphas."""

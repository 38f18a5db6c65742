# SPDX-License-Identifier: Apache-2.0
"""The modules of PC-DARTS' code; operations, helpers and derived networks are those of
`darts_fast.compat.darts`.
"""

from darts_fast.compat.pc_darts import (
    architect,
    genotypes,
    model,
    model_search,
    model_search_imagenet,
    operations,
    utils,
)
from darts_fast.compat.pc_darts.architect import Architect
from darts_fast.compat.pc_darts.model import NetworkCIFAR, NetworkImageNet
from darts_fast.compat.pc_darts.model_search import Cell, MixedOp, Network

__all__ = [
    "Architect",
    "Cell",
    "MixedOp",
    "Network",
    "NetworkCIFAR",
    "NetworkImageNet",
    "architect",
    "genotypes",
    "model",
    "model_search",
    "model_search_imagenet",
    "operations",
    "utils",
]

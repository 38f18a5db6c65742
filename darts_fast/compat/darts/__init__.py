# SPDX-License-Identifier: Apache-2.0
"""The modules of quark0/darts ``cnn/``: change `import utils` to `from darts_fast.compat.darts
import utils`, and so on."""

from darts_fast.compat.darts import (
    architect,
    genotypes,
    model,
    model_search,
    operations,
    utils,
)
from darts_fast.compat.darts.architect import Architect
from darts_fast.compat.darts.model import NetworkCIFAR, NetworkImageNet
from darts_fast.compat.darts.model_search import Cell, MixedOp, Network

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
    "operations",
    "utils",
]

# SPDX-License-Identifier: Apache-2.0
"""The modules of ruocwang/darts-pt ``sota/cnn``, with its Architect, its helpers (``utils``) and
its perturbations (``perturb``) of other folders.
"""

from darts_fast.compat.darts_pt import (
    architect,
    genotypes,
    model,
    model_imagenet,
    model_search,
    model_search_darts_proj,
    model_search_sdarts,
    model_search_sdarts_proj,
    operations,
    perturb,
    projection,
    spaces,
    train_search,
    utils,
)
from darts_fast.compat.darts_pt.architect import Architect
from darts_fast.compat.darts_pt.model_search import Cell, MixedOp, Network
from darts_fast.compat.darts_pt.model_search_darts_proj import DartsNetworkProj
from darts_fast.compat.darts_pt.model_search_sdarts import SDartsNetwork
from darts_fast.compat.darts_pt.model_search_sdarts_proj import SDartsNetworkProj
from darts_fast.compat.darts_pt.spaces import spaces_dict

__all__ = [
    "Architect",
    "Cell",
    "DartsNetworkProj",
    "MixedOp",
    "Network",
    "SDartsNetwork",
    "SDartsNetworkProj",
    "architect",
    "genotypes",
    "model",
    "model_imagenet",
    "model_search",
    "model_search_darts_proj",
    "model_search_sdarts",
    "model_search_sdarts_proj",
    "operations",
    "perturb",
    "projection",
    "spaces",
    "spaces_dict",
    "train_search",
    "utils",
]

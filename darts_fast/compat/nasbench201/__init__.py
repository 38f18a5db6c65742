# SPDX-License-Identifier: Apache-2.0
"""The modules of ruocwang/darts-pt ``nasbench201``; its Architect and helpers are those of
`darts_fast.compat.darts_pt`.
"""

from darts_fast.compat.nasbench201 import (
    architect_ig,
    cell_operations,
    genotypes,
    projection,
    search_cells,
    search_model,
    search_model_darts,
    search_model_darts_proj,
    utils,
)
from darts_fast.compat.nasbench201.architect_ig import Architect
from darts_fast.compat.nasbench201.genotypes import Structure
from darts_fast.compat.nasbench201.search_cells import NAS201SearchCell
from darts_fast.compat.nasbench201.search_model import TinyNetwork
from darts_fast.compat.nasbench201.search_model_darts import TinyNetworkDarts
from darts_fast.compat.nasbench201.search_model_darts_proj import TinyNetworkDartsProj

__all__ = [
    "Architect",
    "NAS201SearchCell",
    "Structure",
    "TinyNetwork",
    "TinyNetworkDarts",
    "TinyNetworkDartsProj",
    "architect_ig",
    "cell_operations",
    "genotypes",
    "projection",
    "search_cells",
    "search_model",
    "search_model_darts",
    "search_model_darts_proj",
    "utils",
]

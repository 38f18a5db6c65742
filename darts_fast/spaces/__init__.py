# SPDX-License-Identifier: Apache-2.0
"""Search spaces, genotypes and NAS-Bench-201 architectures."""

from darts_fast.spaces.accuracy_tables import (
    AccuracyTable,
    NatsBenchTable,
    NpzTable,
    load_accuracy_table,
)
from darts_fast.spaces.genotype import Genotype, skip_connections, write_genotype
from darts_fast.spaces.isomorphism import canonical_form
from darts_fast.spaces.nasbench201 import (
    arch_from_index,
    arch_from_ops,
    index_from_arch,
    ops_from_arch,
    unique_string,
)
from darts_fast.spaces.reading import make_genotype, read_genotype
from darts_fast.spaces.sampling import random_genotype
from darts_fast.spaces.space import SPACES, Space, get_space
from darts_fast.spaces.tables import (
    DARTS_OPERATIONS,
    DARTS_PRIMITIVES,
    NASBENCH201_PRIMITIVES,
    S5_PRIMITIVES,
)
from darts_fast.spaces.well_known import DARTS_V1, DARTS_V2, WELL_KNOWN

__all__ = [
    "DARTS_OPERATIONS",
    "DARTS_PRIMITIVES",
    "DARTS_V1",
    "DARTS_V2",
    "NASBENCH201_PRIMITIVES",
    "S5_PRIMITIVES",
    "SPACES",
    "WELL_KNOWN",
    "AccuracyTable",
    "Genotype",
    "NatsBenchTable",
    "NpzTable",
    "Space",
    "arch_from_index",
    "arch_from_ops",
    "canonical_form",
    "get_space",
    "index_from_arch",
    "load_accuracy_table",
    "make_genotype",
    "ops_from_arch",
    "random_genotype",
    "read_genotype",
    "skip_connections",
    "unique_string",
    "write_genotype",
]

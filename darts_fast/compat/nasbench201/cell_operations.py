# SPDX-License-Identifier: Apache-2.0
"""The operations, ``OPS[name](C_in, C_out, stride, affine, track_running_stats)``."""

from darts_fast.nn.nasbench201 import ResNetBasicblock
from darts_fast.nn.nasbench201_operations import (
    OPS,
    AvgPool,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    Zero,
)
from darts_fast.spaces import NASBENCH201_PRIMITIVES

__all__ = [
    "NAS_BENCH_201",
    "OPS",
    "AvgPool",
    "FactorizedReduce",
    "Identity",
    "ReLUConvBN",
    "ResNetBasicblock",
    "SearchSpaceNames",
    "Zero",
]

NAS_BENCH_201 = list(NASBENCH201_PRIMITIVES)
SearchSpaceNames = {"nas-bench-201": NAS_BENCH_201}

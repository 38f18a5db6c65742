# SPDX-License-Identifier: Apache-2.0
"""The candidate operations, ``OPS[name](C, stride, affine)``."""

from darts_fast.nn.operations import (
    OPS,
    DilConv,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
)

__all__ = ["OPS", "DilConv", "FactorizedReduce", "Identity", "ReLUConvBN", "SepConv", "Zero"]

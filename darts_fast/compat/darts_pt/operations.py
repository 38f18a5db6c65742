# SPDX-License-Identifier: Apache-2.0
"""The candidate operations, ``OPS[name](C, stride, affine)``, with those of S4."""

from darts_fast.compat.darts.operations import (
    OPS,
    DilConv,
    FactorizedReduce,
    Identity,
    ReLUConvBN,
    SepConv,
    Zero,
)
from darts_fast.nn.operations import DilConvSkip, SepConvSkip
from darts_fast.nn.operations import Noise as NoiseOp

__all__ = [
    "OPS",
    "DilConv",
    "DilConvSkip",
    "FactorizedReduce",
    "Identity",
    "NoiseOp",
    "ReLUConvBN",
    "SepConv",
    "SepConvSkip",
    "Zero",
]

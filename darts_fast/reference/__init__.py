# SPDX-License-Identifier: Apache-2.0
"""The specification of every native op in plain PyTorch.

Oracle of the tests, rival of the benchmarks, fallback where a kernel does not cover a case, and the
second derivative of the ops. Written to be read: nothing here is tuned.
"""

from darts_fast.reference._conv_blocks import conv_blocks
from darts_fast.reference._layers import (
    NORM_BATCH,
    NORM_NONE,
    NORM_RUNNING,
    PRECISION_FULL,
    PRECISION_MAPS,
    PRECISION_PRODUCTS,
)
from darts_fast.reference._mixed_cell import (
    CELL_KINDS,
    CellOp,
    cell_ops,
    images_per_group,
    mixed_cell,
)
from darts_fast.reference._node_sum import node_sum
from darts_fast.reference._relu_conv_norm import relu_conv_norm

__all__ = [
    "CELL_KINDS",
    "NORM_BATCH",
    "NORM_NONE",
    "NORM_RUNNING",
    "PRECISION_FULL",
    "PRECISION_MAPS",
    "PRECISION_PRODUCTS",
    "CellOp",
    "cell_ops",
    "conv_blocks",
    "images_per_group",
    "mixed_cell",
    "node_sum",
    "relu_conv_norm",
]

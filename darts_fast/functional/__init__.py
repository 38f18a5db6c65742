# SPDX-License-Identifier: Apache-2.0
"""Tensors in, tensors out: the native ops with named arguments and checks."""

from darts_fast.functional._candidates import Candidate, Norm
from darts_fast.functional._conv_blocks import ConvBlocks, conv_blocks
from darts_fast.functional._mixed_cell import MixedCell, mixed_cell, mixed_op
from darts_fast.functional._node_sum import NodeSum, node_sum
from darts_fast.functional._norms import _NORMS as _NORMS
from darts_fast.functional._relu_conv_norm import ReluConvNorm, relu_conv_norm
from darts_fast.functional._statistics import update_running_statistics

__all__ = [
    "Candidate",
    "ConvBlocks",
    "MixedCell",
    "NodeSum",
    "Norm",
    "ReluConvNorm",
    "conv_blocks",
    "mixed_cell",
    "mixed_op",
    "node_sum",
    "relu_conv_norm",
    "update_running_statistics",
]

# SPDX-License-Identifier: Apache-2.0
"""What torch must know about each native op besides its kernels: fake, autograd, autocast.

Schemas and CPU kernels are registered by `darts_fast._C`; this package is private, the documented
functions with argument checks are in `darts_fast.functional`.
"""

from darts_fast._ops._conv_blocks import conv_blocks, conv_blocks_backward
from darts_fast._ops._mixed_cell import mixed_cell, mixed_cell_backward
from darts_fast._ops._node_sum import node_sum, node_sum_backward
from darts_fast._ops._relu_conv_norm import relu_conv_norm, relu_conv_norm_backward
from darts_fast._ops._running_statistics import move_running_statistics

__all__ = [
    "conv_blocks",
    "conv_blocks_backward",
    "mixed_cell",
    "mixed_cell_backward",
    "move_running_statistics",
    "node_sum",
    "node_sum_backward",
    "relu_conv_norm",
    "relu_conv_norm_backward",
]

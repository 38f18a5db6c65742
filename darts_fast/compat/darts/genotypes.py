# SPDX-License-Identifier: Apache-2.0
"""Genotypes of the DARTS paper and of the two searches that it compares itself with.

Sources: NASNet-A (Zoph et al., CVPR 2018), AmoebaNet-A (Real et al., AAAI 2019), both as DARTS
writes them; DARTS (Liu et al., ICLR 2019). Others are read from the text of a ``genotypes.py``, a
log or JSON by `read_genotype`.
"""

from darts_fast.spaces import DARTS_PRIMITIVES, DARTS_V1, DARTS_V2, Genotype, read_genotype

__all__ = [
    "DARTS",
    "DARTS_V1",
    "DARTS_V2",
    "PRIMITIVES",
    "AmoebaNet",
    "Genotype",
    "NASNet",
    "read_genotype",
]

PRIMITIVES = list(DARTS_PRIMITIVES)

NASNet = Genotype(
    normal=[
        *(("sep_conv_5x5", 1), ("sep_conv_3x3", 0)),
        *(("sep_conv_5x5", 0), ("sep_conv_3x3", 0)),
        *(("avg_pool_3x3", 1), ("skip_connect", 0)),
        *(("avg_pool_3x3", 0), ("avg_pool_3x3", 0)),
        *(("sep_conv_3x3", 1), ("skip_connect", 1)),
    ],
    normal_concat=[2, 3, 4, 5, 6],
    reduce=[
        *(("sep_conv_5x5", 1), ("sep_conv_7x7", 0)),
        *(("max_pool_3x3", 1), ("sep_conv_7x7", 0)),
        *(("avg_pool_3x3", 1), ("sep_conv_5x5", 0)),
        *(("skip_connect", 3), ("avg_pool_3x3", 2)),
        *(("sep_conv_3x3", 2), ("max_pool_3x3", 1)),
    ],
    reduce_concat=[4, 5, 6],
)

AmoebaNet = Genotype(
    normal=[
        *(("avg_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("sep_conv_3x3", 0), ("sep_conv_5x5", 2)),
        *(("sep_conv_3x3", 0), ("avg_pool_3x3", 3)),
        *(("sep_conv_3x3", 1), ("skip_connect", 1)),
        *(("skip_connect", 0), ("avg_pool_3x3", 1)),
    ],
    normal_concat=[4, 5, 6],
    reduce=[
        *(("avg_pool_3x3", 0), ("sep_conv_3x3", 1)),
        *(("max_pool_3x3", 0), ("sep_conv_7x7", 2)),
        *(("sep_conv_7x7", 0), ("avg_pool_3x3", 1)),
        *(("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        *(("conv_7x1_1x7", 0), ("sep_conv_3x3", 5)),
    ],
    reduce_concat=[3, 4, 6],
)

DARTS = DARTS_V2

# SPDX-License-Identifier: Apache-2.0
"""Candidate operations of the published search spaces, in index order.

Sources: DARTS (Liu et al., ICLR 2019) for the eight primitives; RobustDARTS (Zela et al., ICLR
2020, section 3) for S1 to S4; DARTS-PT (Wang et al., ICLR 2021) for s5, the DARTS space without
``none``; NAS-Bench-201 (Dong and Yang, ICLR 2020) for its five operations.
"""

from __future__ import annotations

# Every operation name that a genotype of the DARTS family may contain.
DARTS_OPERATIONS: tuple[str, ...] = (
    "none",
    "noise",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_7x1_1x7",
    "sep_conv_3x3_skip",
    "sep_conv_5x5_skip",
    "dil_conv_3x3_skip",
    "dil_conv_5x5_skip",
)

DARTS_PRIMITIVES: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

S5_PRIMITIVES: tuple[str, ...] = DARTS_PRIMITIVES[1:]

NASBENCH201_PRIMITIVES: tuple[str, ...] = (
    "none",
    "skip_connect",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "avg_pool_3x3",
)

# (from state j, to state i), node by node: states 0 and 1 are the cell's inputs, 2 to 5 its nodes.
DARTS_EDGES: tuple[tuple[int, int], ...] = tuple((j, i) for i in range(2, 6) for j in range(i))
NASBENCH201_EDGES: tuple[tuple[int, int], ...] = tuple(
    (j, i) for i in range(1, 4) for j in range(i)
)

_SKIP_DIL3 = ("skip_connect", "dil_conv_3x3")
_SKIP_DIL5 = ("skip_connect", "dil_conv_5x5")
_SKIP_SEP3 = ("skip_connect", "sep_conv_3x3")
_MAX_SKIP = ("max_pool_3x3", "skip_connect")
_MAX_AVG = ("max_pool_3x3", "avg_pool_3x3")
_MAX_DIL3 = ("max_pool_3x3", "dil_conv_3x3")
_MAX_SEP3 = ("max_pool_3x3", "sep_conv_3x3")
_DIL3_DIL5 = ("dil_conv_3x3", "dil_conv_5x5")

S1_NORMAL: tuple[tuple[str, ...], ...] = (
    *(_SKIP_DIL3, _SKIP_DIL5),
    *(_SKIP_DIL5, _SKIP_SEP3, _SKIP_DIL3),
    *(_MAX_SKIP, _SKIP_SEP3, _SKIP_SEP3, _SKIP_DIL3),
    *(_SKIP_SEP3, _MAX_SKIP, _SKIP_DIL3, _DIL3_DIL5, _DIL3_DIL5),
)

S1_REDUCE: tuple[tuple[str, ...], ...] = (
    *(_MAX_AVG, _MAX_DIL3),
    *(_MAX_AVG, _MAX_AVG, _SKIP_DIL5),
    *(_MAX_AVG, _MAX_SEP3, _SKIP_DIL3, _SKIP_DIL5),
    *(_MAX_AVG, _MAX_AVG, _SKIP_DIL5, _SKIP_DIL5, _SKIP_DIL5),
)

S2_PRIMITIVES: tuple[str, ...] = ("skip_connect", "sep_conv_3x3")
S3_PRIMITIVES: tuple[str, ...] = ("none", "skip_connect", "sep_conv_3x3")
S4_PRIMITIVES: tuple[str, ...] = ("noise", "sep_conv_3x3")

# SPDX-License-Identifier: Apache-2.0
"""Published cells under the names that the field gives them.

Sources: DARTS (Liu et al., ICLR 2019; first and second order on CIFAR-10), P-DARTS (Chen et al.,
ICCV 2019; CIFAR-10), PC-DARTS (Xu et al., ICLR 2020; CIFAR-10 and ImageNet), and the cells of
NASNet-A (Zoph et al., CVPR 2018) and AmoebaNet-A (Real et al., AAAI 2019) as the DARTS code has
them.
"""

from __future__ import annotations

from collections.abc import Sequence

from darts_fast.spaces.genotype import Genotype

__all__ = ["DARTS_V1", "DARTS_V2", "WELL_KNOWN", "well_known"]


def _published(
    normal: str, reduce: str, normal_concat: Sequence[int], reduce_concat: Sequence[int]
) -> Genotype:
    """Cells from words: an operation and its state for every entry."""

    def cell(text: str) -> list[tuple[str, int]]:
        words = text.split()
        return [(op, int(state)) for op, state in zip(words[::2], words[1::2], strict=True)]

    return Genotype(cell(normal), normal_concat, cell(reduce), reduce_concat)


DARTS_V1 = _published(
    "sep_conv_3x3 1 sep_conv_3x3 0  skip_connect 0 sep_conv_3x3 1 "
    "skip_connect 0 sep_conv_3x3 1  sep_conv_3x3 0 skip_connect 2",
    "max_pool_3x3 0 max_pool_3x3 1  skip_connect 2 max_pool_3x3 0 "
    "max_pool_3x3 0 skip_connect 2  skip_connect 2 avg_pool_3x3 0",
    [2, 3, 4, 5],
    [2, 3, 4, 5],
)
"""First-order DARTS on CIFAR-10, as its authors released it."""

DARTS_V2 = _published(
    "sep_conv_3x3 0 sep_conv_3x3 1  sep_conv_3x3 0 sep_conv_3x3 1 "
    "sep_conv_3x3 1 skip_connect 0  skip_connect 0 dil_conv_3x3 2",
    "max_pool_3x3 0 max_pool_3x3 1  skip_connect 2 max_pool_3x3 1 "
    "max_pool_3x3 0 skip_connect 2  skip_connect 2 max_pool_3x3 1",
    [2, 3, 4, 5],
    [2, 3, 4, 5],
)
"""Second-order DARTS on CIFAR-10, as its authors released it."""

_P_DARTS = _published(
    "skip_connect 0 dil_conv_3x3 1  skip_connect 0 sep_conv_3x3 1 "
    "sep_conv_3x3 1 sep_conv_3x3 3  sep_conv_3x3 0 dil_conv_5x5 4",
    "avg_pool_3x3 0 sep_conv_5x5 1  sep_conv_3x3 0 dil_conv_5x5 2 "
    "max_pool_3x3 0 dil_conv_3x3 1  dil_conv_3x3 1 dil_conv_5x5 3",
    range(2, 6),
    range(2, 6),
)

_PC_DARTS_CIFAR = _published(
    "sep_conv_3x3 1 skip_connect 0  sep_conv_3x3 0 dil_conv_3x3 1 "
    "sep_conv_5x5 0 sep_conv_3x3 1  avg_pool_3x3 0 dil_conv_3x3 1",
    "sep_conv_5x5 1 max_pool_3x3 0  sep_conv_5x5 1 sep_conv_5x5 2 "
    "sep_conv_3x3 0 sep_conv_3x3 3  sep_conv_3x3 1 sep_conv_3x3 2",
    range(2, 6),
    range(2, 6),
)

_PC_DARTS_IMAGE = _published(
    "skip_connect 1 sep_conv_3x3 0  sep_conv_3x3 0 skip_connect 1 "
    "sep_conv_3x3 1 sep_conv_3x3 3  sep_conv_3x3 1 dil_conv_5x5 4",
    "sep_conv_3x3 0 skip_connect 1  dil_conv_5x5 2 max_pool_3x3 1 "
    "sep_conv_3x3 2 sep_conv_3x3 1  sep_conv_5x5 0 sep_conv_3x3 3",
    range(2, 6),
    range(2, 6),
)

_NASNET = _published(
    "sep_conv_5x5 1 sep_conv_3x3 0  sep_conv_5x5 0 sep_conv_3x3 0  avg_pool_3x3 1 skip_connect 0 "
    "avg_pool_3x3 0 avg_pool_3x3 0  sep_conv_3x3 1 skip_connect 1",
    "sep_conv_5x5 1 sep_conv_7x7 0  max_pool_3x3 1 sep_conv_7x7 0  avg_pool_3x3 1 sep_conv_5x5 0 "
    "skip_connect 3 avg_pool_3x3 2  sep_conv_3x3 2 max_pool_3x3 1",
    [2, 3, 4, 5, 6],
    [4, 5, 6],
)

_AMOEBANET = _published(
    "avg_pool_3x3 0 max_pool_3x3 1  sep_conv_3x3 0 sep_conv_5x5 2  sep_conv_3x3 0 avg_pool_3x3 3 "
    "sep_conv_3x3 1 skip_connect 1  skip_connect 0 avg_pool_3x3 1",
    "avg_pool_3x3 0 sep_conv_3x3 1  max_pool_3x3 0 sep_conv_7x7 2  sep_conv_7x7 0 avg_pool_3x3 1 "
    "max_pool_3x3 0 max_pool_3x3 1  conv_7x1_1x7 0 sep_conv_3x3 5",
    [4, 5, 6],
    [3, 4, 6],
)

WELL_KNOWN: dict[str, Genotype] = {
    "DARTS_V1": DARTS_V1,
    "DARTS_V2": DARTS_V2,
    "DARTS": DARTS_V2,
    "P_DARTS": _P_DARTS,
    "PC_DARTS": _PC_DARTS_CIFAR,
    "PC_DARTS_CIFAR": _PC_DARTS_CIFAR,
    "PC_DARTS_IMAGE": _PC_DARTS_IMAGE,
    "NASNET": _NASNET,
    "AMOEBANET": _AMOEBANET,
}


def well_known(name: str) -> Genotype | None:
    """The cells of that name, None if there are none; case, ``-`` and ``_`` do not matter."""

    def plain(text: str) -> str:
        return text.upper().replace("-", "").replace("_", "")

    return {plain(known): cells for known, cells in WELL_KNOWN.items()}.get(plain(name))

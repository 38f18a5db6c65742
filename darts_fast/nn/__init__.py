# SPDX-License-Identifier: Apache-2.0
"""Supernets and their parts, with the module and state_dict names of the originals."""

from __future__ import annotations

from darts_fast.nn.cell import Cell
from darts_fast.nn.freezing import Statistics, frozen, frozen_statistics
from darts_fast.nn.mixed_op import MixedOp
from darts_fast.nn.nasbench201 import TinyNetwork
from darts_fast.nn.network import Network
from darts_fast.nn.operations import OPS
from darts_fast.nn.partial_channels import PartialNetwork
from darts_fast.nn.partial_nasbench201 import PartialTinyNetwork
from darts_fast.nn.projection import Projection
from darts_fast.nn.supernet import Supernet
from darts_fast.spaces import Space, get_space

__all__ = [
    "OPS",
    "Cell",
    "MixedOp",
    "Network",
    "PartialNetwork",
    "PartialTinyNetwork",
    "Projection",
    "Statistics",
    "Supernet",
    "TinyNetwork",
    "build_supernet",
    "frozen",
    "frozen_statistics",
]


def build_supernet(
    space: str | Space, *, channels: int, num_classes: int, layers: int, zero: str | None = None
) -> Network | TinyNetwork:
    """The supernet of a space, by name or as a `Space`.

    Args: channels of the first cells; layers, the number of cells, in spaces with the one cell
    type "cell" (NAS-Bench-201) per stage; zero, what an edge weight of exactly 0 means ("skip" or
    "multiply"), default the space's rule. Raises ValueError for an unknown name or a size below 1.
    """
    space = get_space(space)
    if space.cell_types == ("cell",):
        return TinyNetwork(channels, layers, num_classes, space=space, zero=zero)
    return Network(channels, num_classes, layers, space=space, zero=zero)

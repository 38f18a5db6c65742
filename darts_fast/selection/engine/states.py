# SPDX-License-Identifier: Apache-2.0
"""Maps and weights of many variants of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_T = TypeVar("_T")


@dataclass(frozen=True)
class State:
    """Maps [N, C, H, W] that all groups share, or [G * N, C, H, W] of all groups in order."""

    maps: Tensor
    grouped: bool

    def of(self, group: int, groups: int) -> Tensor:
        """The N images of one group."""
        if not self.grouped:
            return self.maps
        size = self.maps.shape[0] // groups
        return self.maps[group * size : (group + 1) * size]

    def stacked(self, groups: int) -> Tensor:
        """The maps of all groups."""
        if self.grouped:
            return self.maps
        n, *shape = self.maps.shape
        out = torch.empty(
            (groups * n, *shape),
            dtype=self.maps.dtype,
            device=self.maps.device,
            memory_format=torch.channels_last,
        )
        out.unflatten(0, (groups, n)).copy_(self.maps)
        return out


@dataclass(frozen=True)
class Variants:
    """G tables that change the same rows.

    Attributes:
        weights: by cell type [G, edges, ops].
        reference: by cell type the network's own [edges, ops].
        changed: by cell type the edges whose row is another one in some table.
        kept: what is shared by all tables that change these rows, also those of other chunks.
    """

    groups: int
    weights: Mapping[str, Tensor]
    reference: Mapping[str, Tensor]
    changed: Mapping[str, frozenset[int]]
    kept: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, compute: Callable[[], _T]) -> _T:
        """The value of a key, computed if it is not there yet."""
        if key not in self.kept:
            self.kept[key] = compute()
        return cast(_T, self.kept[key])

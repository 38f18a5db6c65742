# SPDX-License-Identifier: Apache-2.0
"""Maps and weights of many variants of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Weights:
    """Edge weights of a cell type under G tables.

    Attributes:
        values: [G, edges, ops], where the maps are; they may have a gradient.
        host: the same in host memory, where they are known there: nobody then waits for a device.
    """

    values: Tensor
    host: Tensor | None = None

    @classmethod
    def of(cls, host: Tensor, device: torch.device) -> Weights:
        """Weights in host memory, for maps on a device."""
        return cls(host.to(device, non_blocking=True), host)

    def __len__(self) -> int:
        return len(self.values)

    def nonzero(self) -> Tensor:
        """bool [G, edges * ops] on the CPU, whose weights are not 0."""
        known = self.values.detach() if self.host is None else self.host
        return (known.flatten(1) != 0).cpu()


@dataclass(frozen=True)
class Variants:
    """G tables that change the same rows.

    Attributes:
        weights: by cell type.
        reference: by cell type the network's own, as one table.
        changed: by cell type the edges whose row is another one in some table.
        used: by cell type [edges * ops], whether any table that shares maps with these, also those
            of other chunks, has a weight for the operation that is not 0.
        kept: what is shared by all tables that change these rows, also those of other chunks.
    """

    groups: int
    weights: Mapping[str, Weights]
    reference: Mapping[str, Weights]
    changed: Mapping[str, frozenset[int]]
    used: Mapping[str, Sequence[bool]]
    kept: dict[object, Any] = field(default_factory=dict)

    def once(self, key: object, compute: Callable[[], _T]) -> _T:
        """The value of a key, computed if it is not there yet."""
        if key not in self.kept:
            self.kept[key] = compute()
        return cast(_T, self.kept[key])

# SPDX-License-Identifier: Apache-2.0
"""Several architectures of one supernet on the same images, in one pass forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from darts_fast.nn import Network, Supernet
from darts_fast.nn.operations import Noise
from darts_fast.selection.engine.states import State, Variants, Weights
from darts_fast.selection.engine.walk import KnownWalk, Walk

__all__ = ["GroupedForward"]


class GroupedForward:
    """The network under G tables of edge weights, stacked as groups of the native ops.

    Every group has its own batch statistics, as if it were alone; the stem is run once. Supernets
    of `darts_fast.nn` on the CPU, without noise operations, hooks and drop-path and with the fused
    backend, run so; any other takes one forward per table.

    Running statistics move as the module's rules have it: call it inside
    `darts_fast.nn.frozen_statistics`.

    Args:
        net: a supernet.
    """

    def __init__(self, net: Supernet) -> None:
        self.net = net
        self._known = KnownWalk.of(net)
        self._draws = any(isinstance(module, Noise) for module in net.modules())

    def __call__(self, images: Tensor, tables: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits ``[N, classes]`` of every group.

        Args:
            images: ``[N, 3, H, W]``.
            tables: by cell type, all of them, ``[G, edges, ops]``.

        Raises:
            ValueError: a shape that does not fit.
        """
        space = self.net.space
        groups = len(next(iter(tables.values()), ()))
        for name in space.cell_types:
            shape = None if name not in tables else tuple(tables[name].shape)
            if shape != (groups, space.num_edges, space.num_ops) or groups == 0:
                raise ValueError(
                    f"GroupedForward: tables must have {name} of shape [groups, "
                    f"{space.num_edges}, {space.num_ops}] with one group or more, got {shape}"
                )
        walk = self._walk(images, tables)
        if walk is None:
            rows = [{name: table[g] for name, table in tables.items()} for g in range(groups)]
            return [cast(Tensor, self.net(images, weights=row)) for row in rows]
        self.net.check_image_size(images.shape[2], images.shape[3])
        edges = frozenset(range(space.num_edges))
        variants = Variants(
            groups=groups,
            weights={name: Weights(table) for name, table in tables.items()},
            reference={name: Weights(table[:1]) for name, table in tables.items()},
            changed=dict.fromkeys(tables, edges),
            used=dict.fromkeys(tables, [True] * space.num_edges * space.num_ops),
        )
        states = tuple(
            State(state.maps.repeat(groups, 1, 1, 1), True) for state in walk.stem(images)
        )
        for stage in range(len(walk.stages)):
            states = walk.advance(stage, states, variants)
        return walk.logits(states, groups)

    def _walk(self, images: Tensor, tables: Mapping[str, Tensor]) -> Walk | None:
        net = self.net
        dropping = isinstance(net, Network) and net.drop_path_prob > 0 and net.training
        if self._draws or dropping:
            return None
        return self._known.now(images, next(iter(tables.values())))

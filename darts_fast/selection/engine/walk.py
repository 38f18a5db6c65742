# SPDX-License-Identifier: Apache-2.0
"""A supernet of this package as stem, stages and head, and its states in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from darts_fast.nn import Cell, Network, Supernet, TinyNetwork
from darts_fast.nn.fused_cell import run_stem, runs_native
from darts_fast.nn.nasbench201 import NAS201SearchCell, ResNetBasicblock
from darts_fast.nn.supernet import is_base_forward
from darts_fast.nn.watch import Watch
from darts_fast.selection.engine.cells import (
    SearchCell,
    find_operations,
    per_group,
    run_search_cell,
)
from darts_fast.selection.engine.changes import Place
from darts_fast.selection.engine.states import State, Variants


class Walk:
    """The forward of a `Network` or `TinyNetwork`, stage by stage.

    The states between two stages are what the next ones read: the outputs of the last two cells of
    a `Network`, of the last stage of a `TinyNetwork`.
    """

    def __init__(self, net: Network | TinyNetwork) -> None:
        self.net = net
        self.stages: list[nn.Module] = list(net.cells)
        self.cell_types = [_cell_type(stage) for stage in self.stages]
        self.operations = [
            find_operations(stage) if isinstance(stage, (Cell, NAS201SearchCell)) else None
            for stage in self.stages
        ]
        self.moving = self._moving()

    def _moving(self) -> list[nn.Module]:
        """The modules whose running statistics a walk in training mode may move: all but the
        operations that run natively."""
        native = {
            part
            for stage, operations in zip(self.stages, self.operations, strict=True)
            if operations is not None
            for part in cast(
                nn.Module, getattr(stage, "_ops" if isinstance(stage, Cell) else "edges")
            ).modules()
        }
        return [part for part in self.net.modules() if part not in native]

    def idle(self) -> set[Place]:
        """Operations that add nothing in any cell, whatever their weight: `none`."""
        found: dict[str, set[Place]] = {}
        for cell_type, operations in zip(self.cell_types, self.operations, strict=True):
            if cell_type is None:
                continue
            places = set() if operations is None else operations.idle(self.net.space.num_ops)
            own = {(cell_type, *place) for place in places}
            found[cell_type] = found.get(cell_type, own) & own
        return set().union(*found.values())

    def stem(self, images: Tensor) -> tuple[State, ...]:
        """The states before the first stage."""
        state = State(run_stem(self.net.stem, images), False)
        return (state, state) if isinstance(self.net, Network) else (state,)

    def advance(
        self, index: int, states: tuple[State, ...], variants: Variants
    ) -> tuple[State, ...]:
        """The states behind stage `index`."""
        stage, cell_type = self.stages[index], self.cell_types[index]
        if cell_type is None:
            return (per_group(stage, states[0], variants.groups),)
        output = run_search_cell(
            cast(SearchCell, stage), self.operations[index], cell_type, states, variants
        )
        return (*states[1:], output)

    def logits(self, states: Sequence[State], groups: int) -> list[Tensor]:
        """[N, classes] of every group. Products of matrices depend on how many rows they have, so
        each group is classified on its own."""
        last = states[-1]
        found = [self._head(last.of(g, groups)) for g in range(groups if last.grouped else 1)]
        return found if last.grouped else found * groups

    def _head(self, maps: Tensor) -> Tensor:
        net = self.net
        if isinstance(net, TinyNetwork):
            maps = net.lastact(maps)
        logits: Tensor = net.classifier(net.global_pooling(maps).flatten(1))
        return logits


class _Kept:
    """Stays with a network: copies and pickles of it start with nothing."""

    def __init__(self) -> None:
        self.walk: KnownWalk | None = None

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


class KnownWalk:
    """The modules of a network and its `Walk`, found again where the modules are others.

    To list thousands of modules, and to plan all cells, takes longer than small batches to
    evaluate: `of` keeps it with the network.
    """

    @classmethod
    def of(cls, net: Supernet) -> KnownWalk:
        """What is known of a network, from one evaluation of it to the next."""
        kept = vars(net).setdefault("_known_walk", _Kept())
        if kept.walk is None or kept.walk._net is not net:
            kept.walk = cls(net)
        return cast(KnownWalk, kept.walk)

    def __init__(self, net: Supernet) -> None:
        self._net = net
        self._watch = Watch([net])
        self._walk: Walk | None = None

    def modules(self) -> list[nn.Module]:
        """All modules that the network has now, itself first."""
        if not self._watch.same([self._net]):
            self._watch, self._walk = Watch([self._net]), None
        return self._watch.modules

    def now(self, images: Tensor, table: Tensor) -> Walk | None:
        """None where only the network's own forward says what it computes for these images.

        Args: table, edge weights as the cells will get them.
        """
        if (
            not runs_native(images, table)
            # A cell in parts would round nodes between them.
            or torch.is_autocast_enabled(images.device.type)
            or images.ndim != 4
            or images.shape[1] != 3
            or len(images) == 0
        ):
            return None
        self.modules()
        if not self._watch.untouched():
            return None
        if self._walk is None and can_walk(self._net):
            self._walk = Walk(self._net)
        return self._walk


def can_walk(net: nn.Module) -> TypeGuard[Network | TinyNetwork]:
    """Whether calling `net` does what `Walk` does, if no module has hooks: its classes' own
    forwards."""
    known: Mapping[type[Supernet], object] = {
        Network: Network._features,
        TinyNetwork: TinyNetwork._features,
    }
    if not isinstance(net, (Network, TinyNetwork)):
        return False
    base = Network if isinstance(net, Network) else TinyNetwork
    own = (type(net)._features, type(net)._edge_weights)
    if own != (known[base], Supernet._edge_weights) or not is_base_forward(type(net).forward):
        return False
    forwards = (Cell.forward, NAS201SearchCell.forward, ResNetBasicblock.forward)
    if not all(type(stage).forward in forwards for stage in net.cells):
        return False
    return isinstance(net, TinyNetwork) or all(isinstance(stage, Cell) for stage in net.cells)


def _cell_type(stage: nn.Module) -> str | None:
    """What a search cell's table is called; None of a stage that has none."""
    if isinstance(stage, Cell):
        return "reduce" if stage.reduction else "normal"
    return "cell" if isinstance(stage, NAS201SearchCell) else None

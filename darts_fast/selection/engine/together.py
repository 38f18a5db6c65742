# SPDX-License-Identifier: Apache-2.0
"""One batch of images through a network under many tables, in chunks of stacked groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from darts_fast.selection.engine.changes import Changed, Tables, cut, first_stage, runs
from darts_fast.selection.engine.memory import groups_that_fit, stage_needs
from darts_fast.selection.engine.states import State, Variants, Weights
from darts_fast.selection.engine.walk import Walk


class Together:
    """Tables by the first stage that they change.

    Args: device, of the maps; budget, bytes for a chunk or None for the default; extra, bytes that
    are needed beside.
    """

    def __init__(
        self, walk: Walk, tables: Tables, device: torch.device, budget: int | None, extra: int
    ) -> None:
        self.walk = walk
        self.tables = tables
        self.device = device
        self.reference = {
            name: Weights.of(own.unsqueeze(0), device) for name, own in tables.reference.items()
        }
        self.budget = budget
        self.extra = extra
        self.changed = tables.changed(walk.idle())
        # What tables that change the same rows share, of the rows that came last.
        self.kept: tuple[Changed, dict[object, Any]] = ((), {})
        self.same: dict[Changed, list[int]] = {}

    def logits(self, images: Tensor, indices: Sequence[int]) -> Iterator[list[tuple[int, Tensor]]]:
        """Chunk by chunk, in an order of its own: the tables and what they give, [N, classes]."""
        walk = self.walk
        first = {index: first_stage(self.changed[index], walk.cell_types) for index in indices}
        order = sorted(indices, key=lambda index: (self.changed[index], index))
        self.same = {self.changed[run[0]]: list(run) for run in runs(order, self.changed)}
        most = {
            stage: self._most(images, stage, [index for index in order if first[index] == stage])
            for stage in sorted(set(first.values()))
        }
        own = self._variants([], [])
        states, reached = walk.stem(images), 0
        for stage in most:
            while reached < stage:
                states, reached = walk.advance(reached, states, own), reached + 1
            for chunk in cut([index for index in order if first[index] == stage], most[stage]):
                yield self._chunk(stage, states, chunk)

    def _chunk(
        self, stage: int, states: tuple[State, ...], chunk: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        """Of tables whose first changed stage is `stage`, from the states before it."""
        walk, stages = self.walk, len(self.walk.stages)
        # Tables that change the same rows go together until nothing is shared any more.
        stacks: dict[int, list[tuple[Sequence[int], tuple[State, ...]]]] = {}
        for run in runs(chunk, self.changed):
            rows = self.changed[run[0]]
            if self.kept[0] != rows:
                self.kept = (rows, {})
            variants = replace(self._variants(run, self.same[rows]), kept=self.kept[1])
            now, at = states, stage
            while at < stages and not all(state.grouped for state in now):
                now, at = walk.advance(at, now, variants), at + 1
            stacks.setdefault(at, []).append((run, now))
        found: list[tuple[int, Tensor]] = []
        for at, parts in stacks.items():
            if at == stages:
                for run, now in parts:
                    found += zip(run, walk.logits(now, len(run)), strict=True)
                continue
            members = [index for run, _ in parts for index in run]
            now = tuple(map(_concatenated, zip(*(now for _, now in parts), strict=True)))
            parts.clear()
            variants = self._variants(members, members)
            for index in range(at, stages):
                now = walk.advance(index, now, variants)
            found += zip(members, walk.logits(now, len(members)), strict=True)
        return found

    def _most(self, images: Tensor, stage: int, indices: Sequence[int]) -> int:
        """How many of these tables, whose first changed stage it is, fit into a chunk."""
        changed = {self.changed[index] for index in indices}
        edges = (count for rows in changed for count in Counter(name for name, _ in rows).values())
        needs = stage_needs(
            *(self.walk, images, self.extra, stage),
            run=max(len(self.same[rows]) for rows in changed),
            edges=max(edges, default=0),
        )
        return groups_that_fit(needs, self.budget, self.device)

    def _variants(self, indices: Sequence[int], peers: Sequence[int]) -> Variants:
        """Of tables that change the same rows, or of any where no state is shared; of none for
        the network as it is. Args: peers, the tables of this batch that share maps with them."""
        tables = self.tables
        changed = self.changed[indices[0]] if indices else ()
        return Variants(
            groups=len(indices),
            weights={
                name: Weights.of(rows[list(indices)], self.device)
                for name, rows in tables.weights.items()
            },
            reference=self.reference,
            changed={
                name: frozenset(edge for cell_type, edge in changed if cell_type == name)
                for name in tables.reference
            },
            used={
                name: (rows[list(peers)] != 0).any(dim=0).flatten().tolist()
                for name, rows in tables.weights.items()
            },
        )


def _concatenated(parts: Sequence[State]) -> State:
    if len(parts) == 1:
        return parts[0]
    return replace(parts[0], maps=torch.cat([part.maps for part in parts]))

# SPDX-License-Identifier: Apache-2.0
"""When perturbation-based selection decides what (DARTS-PT, phase B).

Projections happen at the start of tuning epochs 0, k, 2k, ... with k the interval: one for each
edge ("op"), then, where the space keeps two edges a node, one for each node that has a choice
("edge").
"""

from __future__ import annotations

from dataclasses import dataclass

from darts_fast.spaces import Space

__all__ = ["Schedule", "projection_schedule", "topology_nodes"]


@dataclass(frozen=True)
class Schedule:
    """Tuning epochs and the projections at their starts.

    Attributes:
        epochs: tuning epochs in all; the last projection is at the start of the last one.
        steps: ``(epoch, kind)`` in order, kind "op" or "edge"; several steps share an epoch only
            with interval 0.
    """

    epochs: int
    steps: tuple[tuple[int, str], ...]

    def at(self, epoch: int) -> tuple[str, ...]:
        """The kinds of the projections at the start of ``epoch``, in order."""
        return tuple(kind for when, kind in self.steps if when == epoch)


def topology_nodes(space: Space) -> tuple[int, ...]:
    """The nodes whose incoming edges must be thinned out to two; none where the space keeps all
    edges.
    """
    if not space.select_topology:
        return ()
    return tuple(node for node, edges in space.node_edges.items() if len(edges) > 2)


def projection_schedule(space: Space, proj_intv: int = 5) -> Schedule:
    """The published schedule for ``space`` with ``proj_intv`` tuning epochs from one projection to
    the next.

    The DARTS spaces have 14 op steps and 3 edge steps: 81 epochs with interval 5. A space without
    topology step ends its last interval one epoch early, as the original does: NAS-Bench-201
    projects at 0, 5, 10, 15, 20 and 24 of 25 epochs. (With interval 1 the original has only 5
    epochs for its 6 edges; here it gets a sixth.)
    Interval 0 means all projections at the start of a single epoch, with no tuning between them.

    Raises:
        ValueError: ``proj_intv`` is negative.
    """
    if proj_intv < 0:
        raise ValueError(f"projection schedule: proj_intv must be 0 or more, got {proj_intv}")
    nodes = len(topology_nodes(space))
    kinds = ["op"] * space.num_edges + ["edge"] * nodes
    if proj_intv == 0:
        return Schedule(1, tuple((0, kind) for kind in kinds))
    starts = [proj_intv * index for index in range(len(kinds))]
    if nodes == 0 and len(kinds) > 1:
        starts[-1] = max(starts[-1] - 1, starts[-2] + 1)
    return Schedule(starts[-1] + 1, tuple(zip(starts, kinds, strict=True)))

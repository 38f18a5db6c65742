# SPDX-License-Identifier: Apache-2.0
"""Accuracy at convergence after discretisation: what the strength of an operation is meant to
predict (DARTS-PT, figure 1).

For every candidate a copy of the network gets that one decision and is trained on to convergence;
the candidate whose copy is best wins. As a selection it continues with the winner's weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain, combinations

import torch

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.selection.config import Decision, DiscretizationConfig
from darts_fast.selection.progressive import KEPT_EDGES, ProgressiveSelection, fixed_pool
from darts_fast.selection.schedule import topology_nodes
from darts_fast.selection.tables import Batch, Score, score_tables

__all__ = ["Converge", "DiscretizationSelection", "discretized"]

Converge = Callable[[Supernet], object]  # trains a network in place


def discretized(
    net: Supernet,
    batches: Sequence[Batch],
    converge: Converge,
    *,
    cell_type: str,
    edge: int | None = None,
    node: int | None = None,
    seed: int = 0,
    between: Callable[[], None] | None = None,
    world: World = ALONE,
) -> list[tuple[list[int], Score, Supernet]]:
    """Every discretisation of one edge (each operation) or node (each pair of inputs).

    Args:
        net: a supernet; it is left as it was.
        batches: ``(images, labels)`` to score the trained copies on, with batch statistics.
        converge: trains the copy it is given.
        cell_type: where.
        edge, node: which; exactly one of them.
        seed: of the noise operations while scoring.
        between: called after every forward of the scoring.
        world: processes that share the scoring; `converge` must leave all with the same copy.

    Returns:
        For each candidate what it decides ([operation] or [edge, edge]), its score, and the copy.

    Raises:
        ValueError: not exactly one of edge and node, a place that is decided, or no batches.
    """
    if (edge is None) == (node is None):
        raise ValueError(f"discretized: give either edge or node, got edge={edge}, node={node}")
    if edge is not None:
        choices = [[op] for op in range(len(net.space.primitives[cell_type][edge]))]
    elif node is not None:
        choices = [list(pair) for pair in combinations(net.space.node_edges[node], KEPT_EDGES)]
    found = []
    for choice in choices:
        twin = copy.deepcopy(net)
        if edge is not None:
            twin.projection.project_op(cell_type, edge, choice[0])
        else:
            assert node is not None
            twin.projection.project_edges(cell_type, node, choice)
        converge(twin)
        scores = score_tables(twin, batches, [{}], seed=seed, between=between, world=world)
        found.append((choice, scores.score(0), twin))
    return found


class DiscretizationSelection(ProgressiveSelection):
    """Decide edge by edge and node by node by accuracy (or loss) after discretisation.

    Args:
        net: a trained supernet; its weights and projections are written.
        batches: as for `discretized`.
        converge: trains the copy it is given.
        config: see :class:`DiscretizationConfig`; `proj_intv` is for the maker of `converge`.
        log, between, checkpoint: as for `ProgressiveSelection`.

    Raises:
        ValueError: no batches.
    """

    def __init__(
        self,
        net: Supernet,
        batches: Sequence[Batch],
        converge: Converge,
        config: DiscretizationConfig | None = None,
        *,
        log: Callable[[str], None] | None = None,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        self.config = config or DiscretizationConfig()
        super().__init__(
            net,
            proj_intv=0,
            seed=self.config.seed,
            log=log,
            between=between,
            checkpoint=checkpoint,
        )
        self.batches = fixed_pool("discretization", batches)
        self.converge = converge

    @property
    def evaluations(self) -> int:
        """Passes over the scoring images, one for each candidate; each has its own training."""
        space = self.net.space
        inputs = [len(space.node_edges[node]) for node in topology_nodes(space)]
        pairs = sum(count * (count - 1) // 2 for count in inputs)
        return self._op_candidates + len(space.cell_types) * pairs

    @property
    def trainings(self) -> int:
        """One copy for each candidate."""
        return self.evaluations

    def decide_op(self, cell_type: str, edge: int) -> Decision:
        return self._decide("op", cell_type, edge)

    def decide_edges(self, cell_type: str, node: int) -> Decision:
        return self._decide("edge", cell_type, node)

    def _decide(self, kind: str, cell_type: str, place: int) -> Decision:
        found = discretized(
            self.net,
            self.batches,
            self.converge,
            cell_type=cell_type,
            **{"edge" if kind == "op" else "node": place},
            seed=self.config.seed,
            between=self.between,
            world=self.world,
        )
        scores = [score for _, score, _ in found]
        for score in scores:
            self.log(f"valid_acc  {score.accuracy:f}")
            self.log(f"valid_loss {score.loss:f}")
        by_loss = self.config.criterion == "loss"
        worth = [-score.loss if by_loss else score.accuracy for score in scores]
        best = worth.index(max(worth))  # ties: the first
        chosen, _, twin = found[best]
        self._adopt(twin)
        return Decision(
            self.epoch,
            kind,
            cell_type,
            place,
            list(chosen),
            candidates=[list(chain.from_iterable(choice for choice, _, _ in found))],
            loss=[[score.loss for score in scores]],
            accuracy=[[score.accuracy for score in scores]],
            loss_stderr=[[score.loss_stderr for score in scores]],
            accuracy_stderr=[[score.accuracy_stderr for score in scores]],
            images=sum(len(labels) for _, labels in self.batches),
        )

    def _adopt(self, twin: Supernet) -> None:
        """Weights and architecture weights of a copy; decisions stay this network's own."""
        self.net.load_state_dict(twin.state_dict())
        with torch.no_grad():
            pairs = zip(self.net.arch_parameters(), twin.arch_parameters(), strict=True)
            for own, trained in pairs:
                own.copy_(trained)

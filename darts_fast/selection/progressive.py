# SPDX-License-Identifier: Apache-2.0
"""A selection that decides edge by edge and node by node, and tunes the network in between
(DARTS-PT, Algorithm 1); by what it decides is the subclass's matter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch

from darts_fast.distributed import ALONE, World
from darts_fast.nn import Supernet
from darts_fast.seeding import generator
from darts_fast.selection.config import Decision
from darts_fast.selection.schedule import projection_schedule
from darts_fast.selection.tables import Batch

__all__ = ["KEPT_EDGES", "ProgressiveSelection", "fixed_pool", "strongest"]

KEPT_EDGES = 2


def _nothing(*_: object) -> None:
    return None


def strongest(edges: Sequence[int], worth: Sequence[float]) -> list[int]:
    """The edges that a node keeps, in order: those worth most, of equals the first."""
    ranked = sorted(range(len(edges)), key=lambda i: (-worth[i], i))
    return sorted(edges[i] for i in ranked[:KEPT_EDGES])


def fixed_pool(method: str, batches: object) -> Sequence[Batch]:
    """The batches of a method that sees the same ones at every decision.

    Raises ValueError, in the name of the method, for a function or for none.
    """
    if callable(batches):
        raise ValueError(f"{method}: batches must be a sequence, got a function")
    pool = cast(Sequence[Batch], batches)
    if len(pool) == 0:
        raise ValueError(f"{method}: batches must not be empty, got 0 batches")
    return pool


class ProgressiveSelection(ABC):
    """The selection phase as an object that can stop between decisions and go on.

    Args:
        net: a trained supernet; its projections are written.
        proj_intv: tuning epochs from one projection to the next.
        seed: of the order of decisions.
        tune: trains the network for one epoch, called with the tuning epoch's number; None skips
            tuning.
        log: takes the originals' log lines.
        between: called after every forward pass of the scoring; what it raises ends the selection.
        checkpoint: called when the state is whole: before each projection and after each tuning
            epoch.

    Attributes:
        world: processes that select together, each with the same arguments; set before `run`.
    """

    world: World = ALONE

    # Whether the tuning epoch after the last projection, which changes no decision, is spent.
    tunes_last = False

    def __init__(
        self,
        net: Supernet,
        *,
        proj_intv: int = 5,
        seed: int = 0,
        tune: Callable[[int], None] | None = None,
        log: Callable[[str], None] | None = None,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        self.net = net
        self.proj_intv = proj_intv
        self.tune = tune
        self.log = log or _nothing
        self.between = between
        self.checkpoint = checkpoint or _nothing
        self.schedule = projection_schedule(net.space, proj_intv)
        self.decisions: list[Decision] = []
        self.epoch = 0
        self._projected = 0  # projections done in this epoch, counting each cell type
        self._generator = generator(seed, "order")

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Passes over the scoring images that the whole selection takes, at most."""

    @abstractmethod
    def decide_op(self, cell_type: str, edge: int) -> Decision:
        """Choose an operation for an edge that has several."""

    @abstractmethod
    def decide_edges(self, cell_type: str, node: int) -> Decision:
        """Choose two inputs for a node that has more."""

    @property
    def _op_candidates(self) -> int:
        """Operations of all edges that have several."""
        space = self.net.space
        counts = [len(names) for kind in space.cell_types for names in space.primitives[kind]]
        return sum(count for count in counts if count > 1)

    @property
    def trainings(self) -> int:
        """Copies of the network that the whole selection trains."""
        return 0

    @property
    def finished(self) -> bool:
        """Whether everything is decided and tuned."""
        return self.epoch == self.schedule.epochs

    @property
    def tuning_epochs(self) -> int:
        """Epochs of tuning that the whole selection takes."""
        if self.tune is None or self.proj_intv == 0:
            return 0
        return self.schedule.epochs - (not self.tunes_last)

    def run(self) -> list[Decision]:
        """Decide what is undecided, following the schedule; returns all decisions in order.

        Where a search method has decided everything before, there is nothing to do or to tune.
        """
        if not self.decisions and not any(map(self._open, self.net.space.cell_types)):
            self.epoch = self.schedule.epochs
        while not self.finished:
            steps = [
                (kind, cell_type)
                for kind in self.schedule.at(self.epoch)
                for cell_type in self.net.space.cell_types
            ]
            for kind, cell_type in steps[self._projected :]:
                self.checkpoint()
                project = self._project_op if kind == "op" else self._project_edge
                project(cell_type)
                self._projected += 1
            if self.tune is not None and self.epoch < self.tuning_epochs:
                self.tune(self.epoch)
            self.epoch += 1
            self._projected = 0
            self.checkpoint()
        self.log("projection finished")
        return self.decisions

    def state_dict(self) -> dict[str, Any]:
        """Position, decisions and the order's random state; the network is not in it."""
        return {
            "epoch": self.epoch,
            "projected": self._projected,
            "generator": self._generator.get_state(),
            "decisions": [asdict(decision) for decision in self.decisions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.epoch = state["epoch"]
        self._projected = state["projected"]
        self._generator.set_state(state["generator"])
        self.decisions = [Decision(**decision) for decision in state["decisions"]]

    def _open(self, cell_type: str) -> list[int]:
        projection = self.net.projection
        return projection.undecided_edges(cell_type) + projection.undecided_nodes(cell_type)

    def _draw(self, places: Sequence[int]) -> int:
        return places[int(torch.randint(len(places), (), generator=self._generator))]

    def _project_op(self, cell_type: str) -> None:
        edges = self.net.projection.undecided_edges(cell_type)
        if not edges:  # the search method has decided some
            return
        edge = self._draw(edges)
        self.log("project op")
        self.log(f"selected edge: {edge} {cell_type}")
        if len(self.net.space.primitives[cell_type][edge]) > 1:
            decision = self.decide_op(cell_type, edge)
        else:
            decision = Decision(self.epoch, "op", cell_type, edge, [0])
        self.net.projection.project_op(cell_type, edge, decision.chosen[0])
        self.decisions.append(decision)
        self.log(f"best opid: {decision.chosen[0]}")

    def _project_edge(self, cell_type: str) -> None:
        nodes = self.net.projection.undecided_nodes(cell_type)
        if not nodes:
            return
        node = self._draw(nodes)
        self.log("project edge")
        self.log(f"selected node: {node} {cell_type}")
        decision = self.decide_edges(cell_type, node)
        self.net.projection.project_edges(cell_type, node, decision.chosen)
        self.decisions.append(decision)
        first, second = decision.chosen
        self.log(f"top2 edges: ({first}, {second})")

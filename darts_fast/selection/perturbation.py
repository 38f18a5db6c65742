# SPDX-License-Identifier: Apache-2.0
"""Perturbation-based selection: keep the operation whose removal hurts most (DARTS-PT, Wang et al.,
ICLR 2021).

Two modes. ``paired`` (default): all candidates of a decision see the same batches, running
statistics stay, and edges are removed one after the other. ``compat`` follows the published code:
each candidate sees freshly augmented and shuffled images, running statistics move during scoring,
and every edge removal is compared with the complete node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.seeding import generator
from darts_fast.selection.config import Decision, PerturbationConfig
from darts_fast.selection.schedule import projection_schedule, topology_nodes
from darts_fast.selection.tables import Batch, Table, TableScores, score_tables

__all__ = ["BatchSource", "PerturbationSelection"]

KEPT_EDGES = 2

BatchSource = Sequence[Batch] | Callable[[], Iterable[Batch]]


def _nothing(*_: object) -> None:
    return None


class PerturbationSelection:
    """The selection phase as an object that can stop between decisions and go on.

    Args:
        net: a trained supernet; its projections are written.
        batches: ``paired``: a sequence of ``(images, labels)`` used for every decision; ``compat``:
            a function that gives a fresh pass over the validation images each time it is called.
        config: see :class:`PerturbationConfig`.
        tune: trains the network for one epoch, called with the tuning epoch's number; None skips
            tuning.
        log: takes the originals' log lines.
        between: called after every forward pass of the scoring; what it raises ends the selection.
        checkpoint: called when the state is whole: before each projection and after each tuning
            epoch.

    Raises:
        ValueError: ``batches`` does not suit the mode or is empty.
    """

    def __init__(
        self,
        net: Supernet,
        batches: BatchSource,
        config: PerturbationConfig | None = None,
        *,
        tune: Callable[[int], None] | None = None,
        log: Callable[[str], None] = _nothing,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] = _nothing,
    ) -> None:
        self.net = net
        self.config = config or PerturbationConfig()
        self.batches = batches
        self.tune = tune
        self.log = log
        self.between = between
        self.checkpoint = checkpoint
        self.schedule = projection_schedule(net.space, self.config.proj_intv)
        self.decisions: list[Decision] = []
        self.epoch = 0
        self._projected = 0  # projections done in this epoch, counting each cell type
        self._generator = generator(self.config.seed, "order")
        if callable(batches) != (self.config.mode == "compat"):
            wanted = "a function" if self.config.mode == "compat" else "a sequence"
            raise ValueError(
                f"perturbation: mode {self.config.mode} needs {wanted} for batches, "
                f"got {type(batches).__name__}"
            )
        if not callable(batches) and len(batches) == 0:
            raise ValueError("perturbation: batches must not be empty, got 0 batches")

    @property
    def finished(self) -> bool:
        """Whether everything is decided and tuned."""
        return self.epoch == self.schedule.epochs

    @property
    def evaluations(self) -> int:
        """Passes over the scoring images that the whole selection takes."""
        space = self.net.space
        ops = [len(names) for name in space.cell_types for names in space.primitives[name]]
        inputs = [len(space.node_edges[node]) for node in topology_nodes(space)]
        rounds = [sum(range(KEPT_EDGES + 1, count + 1)) for count in inputs]
        return sum(n for n in ops if n > 1) + len(space.cell_types) * sum(rounds)

    @property
    def tuning_epochs(self) -> int:
        """Epochs of tuning that the whole selection takes."""
        if self.tune is None or self.config.proj_intv == 0:
            return 0
        # Tuning after the last projection changes no decision; only compat spends it, as published.
        return self.schedule.epochs - (self.config.mode == "paired")

    def run(self) -> list[Decision]:
        """Decide what is undecided, following the schedule; returns all decisions in order."""
        while not self.finished:
            steps = [
                (kind, cell_type)
                for kind in self.schedule.at(self.epoch)
                for cell_type in self.net.space.cell_types
            ]
            for kind, cell_type in steps[self._projected :]:
                self.checkpoint()
                decide = self._project_op if kind == "op" else self._project_edge
                decide(cell_type)
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

    def _draw(self, places: Sequence[int]) -> int:
        return places[int(torch.randint(len(places), (), generator=self._generator))]

    def _project_op(self, cell_type: str) -> None:
        net = self.net
        edge = self._draw(net.projection.undecided_edges(cell_type))
        self.log("project op")
        self.log(f"selected edge: {edge} {cell_type}")
        names = net.space.primitives[cell_type][edge]
        decision = Decision(self.epoch, "op", cell_type, edge, [0])
        if len(names) > 1:
            weights = net.edge_weights()[cell_type].detach()
            tables: list[Table] = []
            for op in range(len(names)):
                table = weights.clone()
                table[edge, op] = 0
                tables.append({cell_type: table})
            scores = self._score(tables)
            decision = self._with_scores(decision, list(range(len(names))), scores)
            harm = self._harm(cell_type, scores, f"{cell_type} edge {edge}")
            decision.chosen[0] = harm.index(max(harm))  # ties: the first operation
        net.projection.project_op(cell_type, edge, decision.chosen[0])
        self.decisions.append(decision)
        self.log(f"best opid: {decision.chosen[0]}")

    def _project_edge(self, cell_type: str) -> None:
        net = self.net
        node = self._draw(net.projection.undecided_nodes(cell_type))
        self.log("project edge")
        self.log(f"selected node: {node} {cell_type}")
        decision = Decision(self.epoch, "edge", cell_type, node, [])
        kept = list(net.space.node_edges[node])
        gone: list[int] = []
        while len(kept) > KEPT_EDGES:
            weights = net.edge_weights()[cell_type].detach().clone()
            if self.config.mode == "paired":
                weights[gone] = (
                    0  # the published code compares with the complete node in every round
                )
            tables: list[Table] = []
            for edge in kept:
                table = weights.clone()
                table[edge] = 0
                tables.append({cell_type: table})
            scores = self._score(tables)
            decision = self._with_scores(decision, kept, scores)
            harm = self._harm(cell_type, scores, f"{cell_type} node {node}")
            least = min(harm)
            gone.append(kept.pop(len(harm) - 1 - harm[::-1].index(least)))  # ties: the last edge
        decision.chosen.extend(kept)
        net.projection.project_edges(cell_type, node, kept)
        self.decisions.append(decision)
        self.log(f"top2 edges: ({kept[0]}, {kept[1]})")

    def _score(self, tables: Sequence[Table]) -> TableScores:
        if not callable(self.batches):
            scores = score_tables(
                self.net, self.batches, tables, seed=self.config.seed, between=self.between
            )
        else:
            passes = [
                score_tables(
                    self.net,
                    self.batches(),
                    [table],
                    bn="batch_updating",
                    seed=None,
                    between=self.between,
                )
                for table in tables
            ]
            scores = TableScores(
                batch_loss=torch.cat([one.batch_loss for one in passes]),
                batch_correct=torch.cat([one.batch_correct for one in passes]),
                batch_images=passes[0].batch_images,
            )
        for accuracy, loss in zip(scores.accuracy.tolist(), scores.loss.tolist(), strict=True):
            self.log(f"valid_acc  {accuracy:f}")
            self.log(f"valid_loss {loss:f}")
        return scores

    def _harm(self, cell_type: str, scores: TableScores, place: str) -> list[float]:
        """Per candidate, larger where its removal hurts more; a loss that is not finite counts as
        infinite.
        """
        if self.config.criterion(cell_type) == "acc":
            return [-accuracy for accuracy in scores.accuracy.tolist()]
        loss: Tensor = scores.loss
        if not loss.isfinite().any():
            raise FloatingPointError(
                f"perturbation: some removal must leave a finite loss, got {loss.tolist()} "
                f"for {place}"
            )
        return torch.where(loss.isfinite(), loss, float("inf")).tolist()

    @staticmethod
    def _with_scores(decision: Decision, candidates: list[int], scores: TableScores) -> Decision:
        decision.candidates.append(list(candidates))
        for name in ("loss", "accuracy", "loss_stderr", "accuracy_stderr"):
            getattr(decision, name).append(getattr(scores, name).tolist())
        return Decision(**{**vars(decision), "images": scores.images})

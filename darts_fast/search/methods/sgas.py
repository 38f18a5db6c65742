# SPDX-License-Identifier: Apache-2.0
"""SGAS, criteria 1 and 2 (Li et al., CVPR 2020, arXiv 1912.00195).

Read: the authors' repository. Criterion 2 (`use_history`), the min-max normalisation over all edges
of a cell type, decided ones included, the warm-up, the schedule and the growing batch are its.
Reconstructed: where no edge has a ``none`` to compare with, edge importance is left out of the
product, where the formula would give 0 everywhere; with ``op_choice="perturbation"`` the operation
of a chosen edge is found as in DARTS-PT (which reports this combination, of criterion 1), by its
removal, on validation images and without tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from darts_fast.nn import Supernet, build_supernet
from darts_fast.search.loop import Loop
from darts_fast.search.methods.darts import Darts, DartsOptions
from darts_fast.search.methods.most_missed import most_missed_operation
from darts_fast.search.methods.sgas_scores import Scores
from darts_fast.spaces import Space

__all__ = ["SGAS", "SGASOptions"]

KEPT_INPUTS = 2
OP_CHOICES = ("weight", "perturbation")


@dataclass(frozen=True)
class SGASOptions(DartsOptions):
    """Args: use_history, criterion 2; history_size, epochs that it looks back; warmup_dec_epoch,
    epoch of the first decision; decision_freq, epochs from one to the next; batch_increase, images
    a batch grows by with each; op_choice, how the operation of an edge is chosen. ValueError for
    values out of range.
    """

    use_history: bool = field(default=False, metadata={"help": "Criterion 2."})
    history_size: int = field(default=4, metadata={"help": "Epochs that criterion 2 looks back."})
    warmup_dec_epoch: int = field(default=9, metadata={"help": "Epoch of the first decision."})
    decision_freq: int = field(default=5, metadata={"help": "Epochs between decisions."})
    batch_increase: int = field(default=8, metadata={"help": "Images more after each decision."})
    op_choice: str = field(
        default="weight", metadata={"choices": OP_CHOICES, "help": "Operation of a decided edge."}
    )

    def __post_init__(self) -> None:
        least = {"history_size": 1, "warmup_dec_epoch": 0, "decision_freq": 1, "batch_increase": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"sgas: {name} must be {value} or more, got {getattr(self, name)}")
        if self.op_choice not in OP_CHOICES:
            raise ValueError(
                f"sgas: op_choice must be one of {', '.join(OP_CHOICES)}, got {self.op_choice!r}"
            )


class SGAS(Darts):
    """Every few epochs the surest edge of each cell type is decided for good (algorithm 1): its
    operation has weight 1, its alphas rest, and once two edges into a node are decided the others
    are gone.
    """

    name = "sgas"
    Options = SGASOptions

    def __init__(self, net: Supernet, config: Any, options: SGASOptions) -> None:
        super().__init__(net, config, options)
        if net.zero_rule != "skip":
            raise ValueError(
                "sgas: the supernet must not compute what has weight 0 (zero='skip'; "
                f"SearchConfig.build_supernet gives one), got zero={net.zero_rule!r}"
            )
        self.decisions = 0  # times that edges were decided
        self._history: dict[str, list[Tensor]] = {name: [] for name in net.space.cell_types}

    @classmethod
    def build_supernet(
        cls, space: str | Space, *, channels: int, num_classes: int, layers: int, options: Any
    ) -> Supernet:
        """The usual one, which skips operations of weight 0 whatever the space's own rule."""
        return build_supernet(
            space, channels=channels, num_classes=num_classes, layers=layers, zero="skip"
        )

    def update(self, loop: Loop, gradients: list[Tensor]) -> None:
        alphas = self.net.alpha_tables()
        before = {name: alpha.detach().clone() for name, alpha in alphas.items()}
        super().update(loop, gradients)
        for name, alpha in alphas.items():
            closed = {*range(len(alpha))} - {*self.net.projection.undecided_edges(name)}
            with torch.no_grad():
                alpha[[*closed]] = before[name][[*closed]]

    def end_epoch(self, loop: Loop) -> None:
        options = self.options
        since = loop.epoch - options.warmup_dec_epoch
        due = since >= 0 and since % options.decision_freq == 0
        decided = False
        for cell_type, alpha in self.net.alpha_tables().items():
            history = self._history[cell_type]
            scores = Scores(alpha.detach(), self.net.space.primitives[cell_type], history)
            if due and (edges := self.net.projection.undecided_edges(cell_type)):
                edge = scores.best(edges, use_history=options.use_history)
                self._decide(loop, cell_type, edge, scores.operation(edge))
                decided = True
            history.append(scores.distribution)
            del history[: -options.history_size]
        if decided:
            self.decisions += 1
            grown = self.config.batch_size + options.batch_increase * self.decisions
            loop.set_batch_size(grown)

    def _decide(self, loop: Loop, cell_type: str, edge: int, op: int) -> None:
        projection = self.net.projection
        if self.options.op_choice == "perturbation":
            op = most_missed_operation(loop, cell_type, edge)
        projection.project_op(cell_type, edge, op)
        name = self.net.space.primitives[cell_type][edge][op]
        loop.log(f"{cell_type} edge {edge} decided: {name}")
        for node in projection.undecided_nodes(cell_type):
            into = self.net.space.node_edges[node]
            kept = [other for other in into if projection.decided_op(cell_type, other) is not None]
            if len(kept) == KEPT_INPUTS:
                projection.project_edges(cell_type, node, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"decisions": self.decisions, "history": self._history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.decisions = state["decisions"]
        self._history = {name: list(tables) for name, tables in state["history"].items()}

# SPDX-License-Identifier: Apache-2.0
"""Perturbation-based selection: keep the operation whose removal hurts most (DARTS-PT, Wang et al.,
ICLR 2021).

Two modes. ``paired`` (default): all candidates of a decision see the same batches, running
statistics stay, edges are removed one after the other, and a race may end a decision early.
``compat`` follows the published code: each candidate sees freshly augmented and shuffled images,
running statistics move during scoring, and every edge removal is compared with the complete node.

``OneShotSelection`` scores every edge on the trained supernet as it is, with nothing projected and
nothing tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.nn.projection import Projection
from darts_fast.selection.config import Decision, PerturbationConfig
from darts_fast.selection.progressive import KEPT_EDGES, ProgressiveSelection
from darts_fast.selection.schedule import topology_nodes
from darts_fast.selection.scoring import BatchSource, Question, Verdict, full_pass, raced
from darts_fast.selection.strength import ranked_shares, removal_estimates
from darts_fast.selection.tables import Table

__all__ = ["BatchSource", "OneShotSelection", "PerturbationSelection"]

ESTIMATE_BATCHES = 2  # of the first-order estimate that orders a race


class PerturbationSelection(ProgressiveSelection):
    """Algorithm 1 of DARTS-PT; see `ProgressiveSelection` for stopping and going on.

    Args:
        net: a trained supernet; its projections are written.
        batches: ``paired``: a sequence of ``(images, labels)`` used for every decision; ``compat``:
            a function that gives a fresh pass over the validation images each time it is called.
        config: see :class:`PerturbationConfig`.
        tune, log, between, checkpoint: as for `ProgressiveSelection`.

    Raises:
        ValueError: ``batches`` does not suit the mode or is empty, or a race is asked for in mode
            ``compat``.
    """

    def __init__(
        self,
        net: Supernet,
        batches: BatchSource,
        config: PerturbationConfig | None = None,
        *,
        tune: Callable[[int], None] | None = None,
        log: Callable[[str], None] | None = None,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        self.config = config or PerturbationConfig()
        super().__init__(
            net,
            proj_intv=self.config.proj_intv,
            seed=self.config.seed,
            tune=tune,
            log=log,
            between=between,
            checkpoint=checkpoint,
        )
        self.batches = batches
        self.tunes_last = self.config.mode == "compat"  # as published
        if callable(batches) != (self.config.mode == "compat"):
            wanted = "a function" if self.config.mode == "compat" else "a sequence"
            raise ValueError(
                f"perturbation: mode {self.config.mode} needs {wanted} for batches, "
                f"got {type(batches).__name__}"
            )
        if not callable(batches) and len(batches) == 0:
            raise ValueError("perturbation: batches must not be empty, got 0 batches")

    @property
    def evaluations(self) -> int:
        """Passes over the scoring images that the whole selection takes; fewer where it races."""
        rounds = [sum(counts) for counts in self._rounds()]
        return self._op_candidates + len(self.net.space.cell_types) * sum(rounds)

    def decide_op(self, cell_type: str, edge: int) -> Decision:
        ops = self.permitted_ops(cell_type, edge)
        if len(ops) == 1:  # the limits leave no choice
            return Decision(self.epoch, "op", cell_type, edge, ops)
        weights = self._weights()
        tables: list[Table] = []
        for op in ops:
            table = weights[cell_type].clone()
            table[edge, op] = 0
            tables.append({**weights, cell_type: table})
        prices = self.prices(cell_type, [edge] * len(ops), ops)
        question = Question(
            self.config.criterion(cell_type), True, f"{cell_type} edge {edge}", prices
        )
        verdict = self._ask(tables, question, (cell_type, [[(edge, op)] for op in ops]))
        decision = Decision(self.epoch, "op", cell_type, edge, [ops[verdict.best]])
        return with_verdict(decision, ops, verdict)

    def decide_edges(self, cell_type: str, node: int) -> Decision:
        decision = Decision(self.epoch, "edge", cell_type, node, [])
        place = f"{cell_type} node {node}"
        kept = list(self.net.space.node_edges[node])
        gone: list[int] = []
        rounds = len(kept) - KEPT_EDGES
        while len(kept) > KEPT_EDGES:
            weights = self._weights()
            if self.config.mode == "paired":
                # The published code compares with the complete node in every round.
                weights[cell_type] = weights[cell_type].clone()
                weights[cell_type][gone] = 0
            removable = self.permitted_removals(cell_type, kept)
            if len(removable) == 1:  # the limits leave no choice
                gone.append(removable[0])
                kept.remove(removable[0])
                continue
            places = [[(edge, op) for op in range(self.net.space.num_ops)] for edge in removable]
            prices = self.edge_prices(cell_type, removable)
            verdict = self._ask(
                [_without(weights, cell_type, edge) for edge in removable],
                Question(self.config.criterion(cell_type), False, place, prices),
                (cell_type, places),
                rounds,
            )
            decision = with_verdict(decision, removable, verdict)
            gone.append(removable[verdict.best])
            kept.remove(removable[verdict.best])
        decision.chosen.extend(kept)
        return decision

    def _rounds(self) -> list[list[int]]:
        """For every node with a choice the candidates of each of its rounds."""
        inputs = [len(self.net.space.node_edges[node]) for node in topology_nodes(self.net.space)]
        return [list(range(count, KEPT_EDGES, -1)) for count in inputs]

    def _weights(self) -> dict[str, Tensor]:
        return {name: table.detach() for name, table in self.net.edge_weights().items()}

    def _ask(
        self,
        tables: Sequence[Table],
        question: Question,
        removed: tuple[str, Sequence[Sequence[tuple[int, int]]]],
        rounds: int = 1,
    ) -> Verdict:
        """Score the candidates; `removed` says which (edge, op) each table lacks, for the order of
        a race, `rounds` how many such questions share the error rate.
        """
        config, race = self.config, self.config.race
        if race is None or callable(self.batches):
            verdict = self._full(tables, question)
        else:
            verdict = raced(
                self.net,
                self.batches,
                tables,
                question,
                replace(race, error=race.error / rounds),
                seed=config.seed,
                stream=f"race {len(self.decisions)}",
                between=self.between,
                shares=self._shares(question, *removed) if race.ordered else None,
                world=self.world,
            )
        for accuracy, loss in zip(verdict.accuracy, verdict.loss, strict=True):
            self.log(f"valid_acc  {accuracy:f}")
            self.log(f"valid_loss {loss:f}")
        if verdict.outcome != "full":
            used = " ".join(str(count) for count in verdict.images)
            self.log(f"race {verdict.outcome}: images {used}")
        return verdict

    def _full(self, tables: Sequence[Table], question: Question) -> Verdict:
        return full_pass(
            self.net,
            self.batches,
            tables,
            question,
            seed=self.config.seed,
            between=self.between,
            world=self.world,
        )

    def _shares(
        self, question: Question, cell_type: str, removed: Sequence[Sequence[tuple[int, int]]]
    ) -> list[float]:
        """Of the error rate of a race, by the rank of the first-order estimate.

        The estimate always sees the same batches, so that it is independent of the race's order.
        """
        assert not callable(self.batches)
        first = self.batches[:ESTIMATE_BATCHES]
        table = removal_estimates(self.net, first, seed=self.config.seed)[cell_type]
        estimates = [sum(float(table[edge, op]) for edge, op in places) for places in removed]
        return ranked_shares(estimates, largest=question.most)


class OneShotSelection(PerturbationSelection):
    """Every edge and every node decided on the trained supernet, with nothing projected before it
    and nothing tuned.

    A node keeps the two edges whose removal, each alone, hurts most; a race is for operations only.
    `config.proj_intv` is not used, and mode ``compat`` is not known.
    """

    def __init__(
        self,
        net: Supernet,
        batches: BatchSource,
        config: PerturbationConfig | None = None,
        *,
        log: Callable[[str], None] | None = None,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        config = replace(config or PerturbationConfig(), proj_intv=0)
        if config.mode != "paired":
            raise ValueError(f"one_shot: mode must be paired, got {config.mode!r}")
        super().__init__(net, batches, config, log=log, between=between, checkpoint=checkpoint)

    def decide_op(self, cell_type: str, edge: int) -> Decision:
        with _nothing_projected(self.net):
            return super().decide_op(cell_type, edge)

    def _rounds(self) -> list[list[int]]:
        return [counts[:1] for counts in super()._rounds()]

    def decide_edges(self, cell_type: str, node: int) -> Decision:
        """The two edges whose removal, each alone, hurts most."""
        edges = list(self.net.space.node_edges[node])
        prices = self.edge_prices(cell_type, edges)
        question = Question(
            self.config.criterion(cell_type), False, f"{cell_type} node {node}", prices
        )
        with _nothing_projected(self.net):
            weights = self._weights()
            tables = [_without(weights, cell_type, edge) for edge in edges]
            verdict = self._full(tables, question)
        kept = self.best_edges(cell_type, edges, question.harm(verdict.loss, verdict.accuracy))
        return with_verdict(Decision(self.epoch, "edge", cell_type, node, kept), edges, verdict)


@contextmanager
def _nothing_projected(net: Supernet) -> Iterator[None]:
    """The network as it was before any decision."""
    decided = net.projection
    net.projection = Projection(net.space)
    try:
        yield
    finally:
        net.projection = decided


def _without(weights: Mapping[str, Tensor], cell_type: str, edge: int) -> Table:
    table = weights[cell_type].clone()
    table[edge] = 0
    return {**weights, cell_type: table}


def with_verdict(decision: Decision, candidates: Sequence[int], verdict: Verdict) -> Decision:
    """The decision with one more round of scores."""
    decision.candidates.append(list(candidates))
    for name in ("loss", "accuracy", "loss_stderr", "accuracy_stderr"):
        getattr(decision, name).append(list(getattr(verdict, name)))
    decision.images_used.append(list(verdict.images))
    decision.outcomes.append(verdict.outcome)
    return replace(decision, images=max(decision.images, *verdict.images))

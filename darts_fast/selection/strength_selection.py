# SPDX-License-Identifier: Apache-2.0
"""Selection by operation strength, at once or edge by edge (after OStr-DARTS, arXiv 2409.14433)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from darts_fast.nn import Supernet
from darts_fast.selection.config import Decision, StrengthConfig
from darts_fast.selection.magnitude import magnitude_weights
from darts_fast.selection.progressive import ProgressiveSelection, fixed_pool
from darts_fast.selection.schedule import topology_nodes
from darts_fast.selection.strength import strengths
from darts_fast.selection.tables import Batch

__all__ = ["StrengthSelection"]


class StrengthSelection(ProgressiveSelection):
    """Keep on every edge the strongest operation, and of every node the two strongest edges.

    Args:
        net: a trained supernet; its projections are written.
        batches: ``(images, labels)`` to estimate strengths on; images whose loss the architecture
            weights were not trained on keep the estimate off the stationary point of `strength`.
        config: see :class:`StrengthConfig`.
        tune, log, between, checkpoint: as for `ProgressiveSelection`; ``between`` is called after
            every batch.

    Raises:
        ValueError: no batches.
    """

    def __init__(
        self,
        net: Supernet,
        batches: Sequence[Batch],
        config: StrengthConfig | None = None,
        *,
        tune: Callable[[int], None] | None = None,
        log: Callable[[str], None] | None = None,
        between: Callable[[], None] | None = None,
        checkpoint: Callable[[], None] | None = None,
    ) -> None:
        config = config or StrengthConfig()
        if config.schedule == "one_shot":
            config, tune = replace(config, proj_intv=0), None
        super().__init__(
            net,
            proj_intv=config.proj_intv,
            seed=config.seed,
            tune=tune,
            log=log,
            between=between,
            checkpoint=checkpoint,
        )
        self.config = config
        self.batches = fixed_pool("strength", batches)
        self._tables: dict[str, Tensor] | None = None

    @property
    def evaluations(self) -> int:
        """Passes over the images; a pass with backward counts as one."""
        space = self.net.space
        if self.config.variant == "exact":
            return len(space.cell_types) * (1 + space.num_edges * space.num_ops)
        if self.config.schedule == "one_shot":
            return 1
        return len(space.cell_types) * (space.num_edges + len(topology_nodes(space)))

    def decide_op(self, cell_type: str, edge: int) -> Decision:
        found = self._strengths(cell_type)[edge].tolist()
        best = self.best_op(cell_type, edge, found)
        return self._decision("op", cell_type, edge, [best], list(range(len(found))), found)

    def decide_edges(self, cell_type: str, node: int) -> Decision:
        edges = list(self.net.space.node_edges[node])
        table = self._strengths(cell_type)[edges]
        found = (table.amax(1) if self.config.node_rule == "max" else table.sum(1)).tolist()
        prices = self.edge_prices(cell_type, edges)
        priced = [value - price for value, price in zip(found, prices, strict=True)]
        kept = self.best_edges(cell_type, edges, priced)
        return self._decision("edge", cell_type, node, kept, edges, found)

    def _decision(
        self,
        kind: str,
        cell_type: str,
        place: int,
        chosen: list[int],
        candidates: list[int],
        found: list[float],
    ) -> Decision:
        for value in found:
            self.log(f"strength   {value:e}")
        return Decision(
            self.epoch,
            kind,
            cell_type,
            place,
            chosen,
            candidates=[candidates],
            strengths=[found],
            images=sum(len(labels) for _, labels in self.batches),
        )

    def _strengths(self, cell_type: str) -> Tensor:
        """``[edges, ops]``; one-shot of the supernet with nothing projected, estimated once."""
        if self.config.schedule == "progressive":
            return self._estimate()[cell_type]
        if self._tables is None:
            self._tables = self._estimate()
        return self._tables[cell_type]

    def _estimate(self) -> dict[str, Tensor]:
        one_shot = self.config.schedule == "one_shot"
        found = self.world.same(
            lambda: strengths(
                self.net,
                self.batches,
                variant=self.config.variant,
                weights=magnitude_weights(self.net) if one_shot else None,
                seed=self.config.seed,
                between=self.between,
            )
        )
        for name, table in found.tables.items():
            if not table.isfinite().all():
                raise FloatingPointError(
                    f"strength: all strengths must be finite, got {name} {table}"
                )
        return found.tables

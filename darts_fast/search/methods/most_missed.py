# SPDX-License-Identifier: Apache-2.0
"""The operation of one edge by removals (DARTS-PT, Wang et al., ICLR 2021, section 3), without
tuning."""

from __future__ import annotations

from darts_fast.search.loop import Loop
from darts_fast.selection.scoring import Question, full_pass

__all__ = ["most_missed_operation"]


def most_missed_operation(loop: Loop, cell_type: str, edge: int) -> int:
    """The operation other than ``none`` whose removal costs most accuracy on the validation half;
    ties: the first.
    """
    net = loop.net
    names = net.space.primitives[cell_type][edge]
    weights = {name: table.detach() for name, table in net.edge_weights().items()}
    real = [op for op, name in enumerate(names) if name != "none"]
    tables = []
    for op in real:
        table = weights[cell_type].clone()
        table[edge, op] = 0
        tables.append({**weights, cell_type: table})
    verdict = full_pass(
        net,
        loop.valid_pool(),
        tables,
        Question("acc", True, f"{cell_type} edge {edge}"),
        seed=loop.config.seed,
        between=None,
        world=loop.world,
    )
    return real[verdict.best]

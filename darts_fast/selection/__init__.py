# SPDX-License-Identifier: Apache-2.0
"""From a trained supernet to an architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from darts_fast.nn import Supernet
from darts_fast.selection.config import CRITERIA, MODES, Decision, PerturbationConfig
from darts_fast.selection.magnitude import magnitude_genotype, magnitude_weights
from darts_fast.selection.perturbation import BatchSource, PerturbationSelection
from darts_fast.selection.schedule import Schedule, projection_schedule
from darts_fast.selection.scores import RemovalScores, removal_scores
from darts_fast.selection.tables import Score, TableScores, score_tables
from darts_fast.spaces import Genotype

__all__ = [
    "CRITERIA",
    "MODES",
    "SELECTIONS",
    "Decision",
    "PerturbationConfig",
    "PerturbationSelection",
    "RemovalScores",
    "Schedule",
    "Score",
    "Selection",
    "TableScores",
    "magnitude_genotype",
    "magnitude_weights",
    "projection_schedule",
    "removal_scores",
    "score_tables",
    "select",
]

SELECTIONS = ("perturbation", "magnitude")


@dataclass(frozen=True)
class Selection:
    """What was selected: the genotype (a string for NAS-Bench-201), and how."""

    method: str
    genotype: Genotype | str
    decisions: list[Decision] = field(default_factory=list)


def select(
    net: Supernet,
    batches: BatchSource | None = None,
    *,
    method: str = "magnitude",
    config: PerturbationConfig | None = None,
    tune: Callable[[int], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Selection:
    """Select an architecture from a trained supernet.

    Args:
        net: the supernet. ``"perturbation"`` writes its projections and, through ``tune``, its
            weights.
        batches: labelled images to score on, needed by ``"perturbation"``: a list of ``(images,
            labels)``, or in mode ``compat`` a function that gives a fresh pass.
        method: ``"magnitude"`` (DARTS) or ``"perturbation"`` (DARTS-PT).
        config: of ``"perturbation"``.
        tune: trains the network for one epoch; called between projections with the tuning epoch's
            number.
        log: takes log lines in the originals' form.

    Raises:
        ValueError: unknown method, or no batches where they are needed.
    """
    if method not in SELECTIONS:
        raise ValueError(f"select: method must be one of {', '.join(SELECTIONS)}, got {method!r}")
    if method == "magnitude":
        return Selection(method, magnitude_genotype(net))
    if batches is None:
        raise ValueError("select: method perturbation needs batches to score on, got None")
    phase = PerturbationSelection(net, batches, config, tune=tune, log=log or _silent)
    decisions = phase.run()
    return Selection(method, net.genotype(), decisions)


def _silent(line: str) -> None:
    """Drop a log line."""

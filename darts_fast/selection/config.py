# SPDX-License-Identifier: Apache-2.0
"""Settings of the selection methods, and the record of what they decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from darts_fast.selection.race import RaceConfig

__all__ = [
    "CRITERIA",
    "MODES",
    "NODE_RULES",
    "SCHEDULES",
    "VARIANTS",
    "Decision",
    "DiscretizationConfig",
    "PerturbationConfig",
    "StrengthConfig",
    "race_summary",
]

MODES = ("paired", "compat")
VARIANTS = ("taylor", "taylor2", "signed", "exact")
CRITERIA = ("acc", "loss")
SCHEDULES = ("one_shot", "progressive")
NODE_RULES = ("max", "sum")


@dataclass(frozen=True)
class PerturbationConfig:
    """How to select.

    Args:
        mode: ``"paired"`` or ``"compat"``, see the module.
        proj_intv: tuning epochs from one projection to the next (the published scripts: 5); 0 tunes
            nothing.
        proj_crit: ``"acc"`` or ``"loss"``, one for all cell types or a dict with one for each.
        seed: of the order of decisions, of the noise operations' draws and of the order of batches
            in a race.
        race: lets a decision stop once it is sure (mode ``paired`` only); None scores every
            candidate on all images.

    Raises:
        ValueError: a value out of its range, or a race in mode ``compat``.
    """

    mode: str = "paired"
    proj_intv: int = 5
    proj_crit: str | Mapping[str, str] = "acc"
    seed: int = 0
    race: RaceConfig | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(
                f"perturbation: mode must be one of {', '.join(MODES)}, got {self.mode!r}"
            )
        if self.proj_intv < 0:
            raise ValueError(f"perturbation: proj_intv must be 0 or more, got {self.proj_intv}")
        asked: list[object] = [self.proj_crit]
        if not isinstance(self.proj_crit, str):
            asked = list(self.proj_crit.values())
        for criterion in asked:
            if criterion not in CRITERIA:
                raise ValueError(
                    f"perturbation: proj_crit must be one of {', '.join(CRITERIA)}, "
                    f"got {criterion!r}"
                )
        if self.race is not None and self.mode != "paired":
            raise ValueError(f"perturbation: a race needs mode paired, got {self.mode!r}")
        if self.race is not None and self.race.bound == "bernstein" and "loss" in asked:
            raise ValueError("perturbation: bound bernstein needs proj_crit acc, got loss")

    def criterion(self, cell_type: str) -> str:
        """The criterion for one cell type; ``"acc"`` where the dict names none."""
        if isinstance(self.proj_crit, str):
            return self.proj_crit
        return self.proj_crit.get(cell_type, "acc")


@dataclass(frozen=True)
class StrengthConfig:
    """How to select by operation strength (`darts_fast.selection.strength`).

    Args:
        variant: ``"taylor"``, ``"taylor2"``, ``"signed"`` or ``"exact"``.
        schedule: ``"one_shot"``: all edges by the trained supernet; ``"progressive"``: edge by
            edge with tuning, as perturbation-based selection does.
        node_rule: a node keeps the two edges with the largest ``"max"`` or ``"sum"`` of strengths.
        proj_intv: of schedule ``"progressive"``.
        seed: of the order of decisions and of the noise operations' draws.

    Raises:
        ValueError: a value out of its range, or the exact variant on a progressive schedule, which
            is perturbation-based selection with the criterion loss.
    """

    variant: str = "taylor"
    schedule: str = "one_shot"
    node_rule: str = "max"
    proj_intv: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("variant", VARIANTS),
            ("schedule", SCHEDULES),
            ("node_rule", NODE_RULES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"strength: {name} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.proj_intv < 0:
            raise ValueError(f"strength: proj_intv must be 0 or more, got {self.proj_intv}")
        if self.variant == "exact" and self.schedule == "progressive":
            raise ValueError(
                "strength: variant exact needs schedule one_shot (progressive, it is method "
                "perturbation with proj_crit loss), got 'progressive'"
            )


@dataclass(frozen=True)
class DiscretizationConfig:
    """How to select by accuracy after discretisation.

    Args:
        criterion: ``"acc"`` or ``"loss"``.
        proj_intv: epochs that every candidate is trained for (Search), at least 1.
        seed: of the order of decisions and of the noise operations' draws.

    Raises:
        ValueError: a value out of its range.
    """

    criterion: str = "acc"
    proj_intv: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(
                f"discretization: criterion must be one of {', '.join(CRITERIA)}, "
                f"got {self.criterion!r}"
            )
        if self.proj_intv < 1:
            raise ValueError(f"discretization: proj_intv must be 1 or more, got {self.proj_intv}")


@dataclass(frozen=True)
class Decision:
    """One projection.

    Attributes:
        epoch: tuning epoch at whose start it was made.
        kind: ``"op"`` or ``"edge"``.
        cell_type: where.
        place: the edge (op) or the node (edge).
        chosen: the operation's index (op), or the edges kept (edge).
        candidates: operation indices (op) or edges (edge) scored, one list per round;
            discretization tries pairs of edges, listed one pair after the other.
        loss, accuracy, loss_stderr, accuracy_stderr: of the network without each candidate, same
            shape.
        images: most images any candidate was scored on; 0 where there was nothing to choose.
        images_used: images each candidate was scored on, same shape as the scores.
        outcomes: one per round: ``"full"`` for a full pass; of a race ``"decided"``,
            ``"exhausted"`` (it saw the whole pool) or ``"undecided"`` (it ran into its limit).
        strengths: of each candidate, same shape as the scores, where those decided.
    """

    epoch: int
    kind: str
    cell_type: str
    place: int
    chosen: list[int]
    candidates: list[list[int]] = field(default_factory=list)
    loss: list[list[float]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)
    loss_stderr: list[list[float]] = field(default_factory=list)
    accuracy_stderr: list[list[float]] = field(default_factory=list)
    images: int = 0
    images_used: list[list[int]] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    strengths: list[list[float]] = field(default_factory=list)


def race_summary(decisions: Sequence[Decision], pool_images: int) -> str | None:
    """One line on the races among the rounds of scores of a selection; None without any.

    Args:
        decisions: of the selection.
        pool_images: what a full pass sees.
    """
    rounds = [
        (outcome, images)
        for decision in decisions
        for outcome, images in zip(decision.outcomes, decision.images_used, strict=True)
        if outcome != "full"
    ]
    if not rounds:
        return None
    count = Counter(outcome for outcome, _ in rounds)
    used = sum(sum(images) for _, images in rounds)
    share = used / sum(len(images) * pool_images for _, images in rounds)
    return (
        f"{len(rounds)} races: {count['decided']} decided, {count['exhausted']} saw all images, "
        f"{count['undecided']} undecided; {100 * share:.1f} % of the images of full passes"
    )

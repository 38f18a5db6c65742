# SPDX-License-Identifier: Apache-2.0
"""Settings of perturbation-based selection, and the record of what it decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CRITERIA", "MODES", "Decision", "PerturbationConfig"]

MODES = ("paired", "compat")
CRITERIA = ("acc", "loss")


@dataclass(frozen=True)
class PerturbationConfig:
    """How to select.

    Args:
        mode: ``"paired"`` or ``"compat"``, see the module.
        proj_intv: tuning epochs from one projection to the next (the published scripts: 5); 0 tunes
            nothing.
        proj_crit: ``"acc"`` or ``"loss"``, one for all cell types or a dict with one for each.
        seed: of the order of decisions and of the noise operations' draws.

    Raises:
        ValueError: a value out of its range.
    """

    mode: str = "paired"
    proj_intv: int = 5
    proj_crit: str | Mapping[str, str] = "acc"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(
                f"perturbation: mode must be one of {', '.join(MODES)}, got {self.mode!r}"
            )
        if self.proj_intv < 0:
            raise ValueError(f"perturbation: proj_intv must be 0 or more, got {self.proj_intv}")
        asked = [self.proj_crit] if isinstance(self.proj_crit, str) else self.proj_crit.values()
        for criterion in asked:
            if criterion not in CRITERIA:
                raise ValueError(
                    f"perturbation: proj_crit must be one of {', '.join(CRITERIA)}, "
                    f"got {criterion!r}"
                )

    def criterion(self, cell_type: str) -> str:
        """The criterion for one cell type; ``"acc"`` where the dict names none."""
        if isinstance(self.proj_crit, str):
            return self.proj_crit
        return self.proj_crit.get(cell_type, "acc")


@dataclass(frozen=True)
class Decision:
    """One projection.

    Attributes:
        epoch: tuning epoch at whose start it was made.
        kind: ``"op"`` or ``"edge"``.
        cell_type: where.
        place: the edge (op) or the node (edge).
        chosen: the operation's index (op), or the edges kept (edge).
        candidates: operation indices (op) or edges (edge) scored, one list per round.
        loss, accuracy, loss_stderr, accuracy_stderr: of the network without each candidate, same
            shape.
        images: images each candidate was scored on; 0 where there was nothing to choose.
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

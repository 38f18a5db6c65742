# SPDX-License-Identifier: Apache-2.0
"""When a search should have stopped: rules on numbers and genotypes, which know no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darts_fast.spaces import Genotype, skip_connections

__all__ = ["EigenvalueRule", "SkipRule", "normal_skips"]


class EigenvalueRule:
    """Early stopping by the largest eigenvalue of the alpha-Hessian (RobustDARTS, section 5.1).

    Every ``every`` epochs an eigenvalue comes in. Means over the last ``window`` of them stand for
    the epoch in the window's middle. When the newest mean is more than ``ratio`` times the one
    ``delay`` checks before it, the search goes back to the epoch that this older mean stands for,
    if that is epoch ``first`` or later.

    Raises:
        ValueError: a value out of its range.
    """

    def __init__(
        self,
        *,
        window: int = 5,
        ratio: float = 1.3,
        delay: int = 4,
        every: int = 2,
        first: int = 10,
    ) -> None:
        for name, value, least in (
            ("window", window, 1),
            ("delay", delay, 1),
            ("every", every, 1),
            ("first", first, 0),
        ):
            if value < least:
                raise ValueError(f"early stopping: {name} must be at least {least}, got {value}")
        if not ratio > 0:
            raise ValueError(f"early stopping: ratio must be positive, got {ratio}")
        self.window = window
        self.ratio = ratio
        self.delay = delay
        self.every = every
        self.first = first
        self.values: dict[int, float] = {}

    @property
    def span(self) -> int:
        """How many epochs before the newest check the search may go back."""
        return (self.window // 2 + self.delay) * self.every

    def wants(self, epoch: int) -> bool:
        """Whether an eigenvalue is to come in after this epoch."""
        return epoch % self.every == 0

    def update(self, epoch: int, value: float) -> int | None:
        """Take the eigenvalue of an epoch; the epoch to go back to, or None to go on."""
        self.values[epoch] = value
        target = epoch - self.span
        newest, before = self._mean(epoch), self._mean(epoch - self.delay * self.every)
        if target < self.first or newest is None or before is None:
            return None
        return target if newest > self.ratio * before else None

    def forget_after(self, epoch: int) -> None:
        """The search has gone back to this epoch."""
        self.values = {when: value for when, value in self.values.items() if when <= epoch}

    def _mean(self, epoch: int) -> float | None:
        """Over the window that ends with an epoch; None where it is not full."""
        epochs = [epoch - self.every * back for back in range(self.window)]
        if any(when not in self.values for when in epochs):
            return None
        return sum(self.values[when] for when in epochs) / self.window

    def state_dict(self) -> dict[str, Any]:
        """The eigenvalues by epoch."""
        return {"values": dict(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.values = dict(state["values"])


class SkipRule:
    """Stop when the normal cell has more than ``most`` skip connections (after DARTS+, Liang et
    al., arXiv 1909.06035, which stops at two; P-DARTS, Chen et al., ICCV 2019, ends with two).

    Raises:
        ValueError: a negative ``most``.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"early stopping: skips must be at least 0, got {most}")
        self.most = most

    def update(self, epoch: int, genotype: Genotype | str) -> int | None:
        """Look at the genotype of an epoch; the last epoch before it if it has too many (the epoch
        itself if it is the first), or None to go on.
        """
        return max(epoch - 1, 0) if normal_skips(genotype) > self.most else None


def normal_skips(genotype: Genotype | str) -> int:
    """Skip connections of the normal cell, or of the one cell of NAS-Bench-201."""
    if isinstance(genotype, str):
        return skip_connections(genotype)
    return sum(op == "skip_connect" for op, _ in genotype.normal)

# SPDX-License-Identifier: Apache-2.0
"""Which candidate is best on a pool of batches, without looking at the whole pool for all of them.

Successive elimination (Maron and Moore 1994; Even-Dar, Mannor and Mansour 2006) on paired
differences: all candidates still in the race are scored on the same batch, and one leaves when
another is surely better. Batch statistics couple the images of a batch, so the batch is the unit;
batches come in random order without replacement, and at the pool's end the answer is exact.

Guarantee. Call a decision wrong if its candidate is worse, over the whole pool, than the best one
by more than the margin. The probability of a wrong decision is at most the error rate, at whatever
look the race stops; at the pool's end it is never wrong, and a race that runs into a limit of
batches before it is sure says so. Only comparisons with the pool's best candidate can go wrong and
there are K - 1 of them, so each gets the error rate divided by K - 1; the tests of
`darts_fast.selection.bounds` hold for all looks at once, and for the margin as well as for 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from darts_fast.selection.bounds import BOUNDS

__all__ = ["OUTCOMES", "RaceConfig", "RaceResult", "race"]

LOSS_MARGIN = 0.01  # nats
ACCURACY_MARGIN = 0.5  # percentage points
OUTCOMES = ("decided", "exhausted", "undecided")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RaceConfig:
    """When a race may stop.

    Args:
        error: probability that a decision is wrong by more than the margin, for the whole decision
            (a node's rounds of edge removal share it).
        margin: indifference: a candidate this little worse than the best is as good. In the unit of
            the criterion: nats for loss, percentage points for accuracy; default 0.01 nats or 0.5
            points. With 0 a race between equals goes through the whole pool.
        bound: ``"mixture"`` or ``"bernstein"``, see `darts_fast.selection.bounds`; the second needs
            the criterion acc.
        min_batches: nobody leaves before so many batches (at least 2).
        max_batches: the race ends after so many; default: the whole pool.
        ordered: estimate every removal to first order from one backward pass on a few batches
            first, and give the bulk of the error rate to the comparisons with the candidates that
            look best. The guarantee does not depend on the estimate; how early the race ends does.

    Raises:
        ValueError: a value out of its range.
    """

    error: float = 0.05
    margin: float | None = None
    bound: str = "mixture"
    min_batches: int = 4
    max_batches: int | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.error < 1:
            raise ValueError(f"race: error must be between 0 and 1, got {self.error}")
        if self.margin is not None and not 0 <= self.margin < float("inf"):
            raise ValueError(f"race: margin must be finite and >= 0, got {self.margin}")
        if self.bound not in BOUNDS:
            raise ValueError(f"race: bound must be one of {', '.join(BOUNDS)}, got {self.bound!r}")
        if self.min_batches < 2:
            raise ValueError(f"race: min_batches must be 2 or more, got {self.min_batches}")
        if self.max_batches is not None and self.max_batches < self.min_batches:
            raise ValueError(
                f"race: max_batches must be at least min_batches = {self.min_batches}, "
                f"got {self.max_batches}"
            )

    def margin_of(self, criterion: str) -> float:
        """The margin per image: of the loss, or as a share of the images."""
        if criterion == "loss":
            return LOSS_MARGIN if self.margin is None else self.margin
        return (ACCURACY_MARGIN if self.margin is None else self.margin) / 100


@dataclass(frozen=True)
class RaceResult:
    """How a race went.

    Attributes:
        winner: the candidate chosen.
        outcome: ``"decided"``: the test was sure, or only one candidate was left; ``"exhausted"``:
            the pool was used up, so the answer is that of the full pass; ``"undecided"``:
            `max_batches` came first, and the winner is the best so far.
        batches, images: seen by each candidate.
        pool_images: images of the pool.
        mean: score per image over what each candidate saw.
    """

    winner: int
    outcome: str
    batches: list[int]
    images: list[int]
    pool_images: int
    mean: list[float]

    @property
    def decided(self) -> bool:
        """Whether the guarantee holds: the race did not run out of batches it was allowed."""
        return self.outcome != "undecided"

    @property
    def share(self) -> float:
        """Images used, all candidates together, of what the full pass takes."""
        return sum(self.images) / (len(self.images) * self.pool_images)


def race(
    evaluate: Callable[[int, list[int]], Sequence[float]],
    sizes: Sequence[int],
    order: Sequence[int],
    candidates: int,
    config: RaceConfig,
    *,
    largest: bool = True,
    last: bool = False,
    margin: float = 0.0,
    counts: bool = False,
    shares: Sequence[float] | None = None,
) -> RaceResult:
    """Find the candidate with the largest (or smallest) score per image over a pool of batches.

    Args:
        evaluate: called as ``evaluate(batch, rows)``: the scores of candidates ``rows`` on the
            batch, summed over its images. A score that is not finite counts as plus infinity.
        sizes: images of every batch of the pool.
        order: the batches in random order, all of them; its randomness is what the guarantee is
            about.
        candidates: how many.
        config: when it may stop; its margin is not used.
        largest: whether the best candidate has the largest score.
        last: whether the last of equal candidates wins, else the first.
        margin: per image, in the unit of the scores (`RaceConfig.margin_of`).
        counts: scores are numbers of images.
        shares: of the error rate, for comparisons with each candidate, at most 1 together; default
            equal.

    Raises:
        ValueError: no candidates, an order that is no permutation of the batches, shares that do
            not fit, or a bound that the scores do not suit.
    """
    _check(sizes, order, candidates, config, counts, shares)
    pool, limit = len(sizes), min(config.max_batches or len(sizes), len(sizes))
    level = np.full(candidates, config.error / max(candidates - 1, 1))
    if shares is not None:
        level = config.error * np.asarray(shares, dtype=np.float64)
    images = np.asarray([sizes[batch] for batch in order], dtype=np.float64)
    reach = (2 + margin) * float(images.max())
    scores = np.full((candidates, limit), np.nan)
    seen = np.zeros(candidates, dtype=np.int64)
    active, n = np.arange(candidates), 0
    while len(active) > 1 and n < limit:
        row = np.asarray(evaluate(order[n], active.tolist()), dtype=np.float64)
        finite = np.isfinite(row)
        scores[active, n] = np.where(finite, row, np.inf)
        n += 1
        seen[active] = n
        if not finite.all():  # the mean of such a one is infinite, whatever comes
            active = active[~finite] if largest or not finite.any() else active[finite]
            if largest or not finite.any():
                break
        if config.min_batches <= n < pool:
            field = scores[active, :n] if largest else -scores[active, :n]
            ahead = field[:, None] - field  # [better, worse, n]
            levels = np.broadcast_to(level[active, None], ahead.shape[:2])
            active = active[
                _remaining(ahead, images[:n] * margin, levels, pool, config, reach, counts)
            ]
    outcome = "exhausted" if n == pool else "undecided"
    if len(active) == 1 or not np.isfinite(scores[active, :n]).all():
        outcome = "decided"
    means = [
        float(row[:m].sum() / images[:m].sum()) if m else np.nan
        for row, m in zip(scores, seen, strict=True)
    ]
    field = np.asarray(means)[active]
    tied = active[field == (field.max() if largest else field.min())] if n else active
    return RaceResult(
        winner=int(tied[-1 if last else 0]),
        outcome=outcome,
        batches=seen.tolist(),
        images=[int(images[:m].sum()) for m in seen],
        pool_images=int(images.sum()),
        mean=means,
    )


def _remaining(
    ahead: Array,
    margin: Array,
    levels: Array,
    pool: int,
    config: RaceConfig,
    reach: float,
    counts: bool,
) -> npt.NDArray[np.int64]:
    """Positions of the candidates that stay: one alone if it is surely within the margin of all.

    ahead: ``[better, worse, n]``, by how much one candidate leads another on each batch; margin:
    ``[n]``.
    """
    test = BOUNDS[config.bound]
    leader = int(ahead.sum(-1).sum(-1).argmax())
    enough = test(ahead[leader] + margin, pool, levels[leader], reach, counts)
    enough[leader] = True
    if enough.all():
        return np.asarray([leader])
    beaten = test(ahead, pool, levels, reach, counts)
    np.fill_diagonal(beaten, False)
    stay: npt.NDArray[np.int64] = np.flatnonzero(~beaten.any(0))
    return stay


def _check(
    sizes: Sequence[int],
    order: Sequence[int],
    candidates: int,
    config: RaceConfig,
    counts: bool,
    shares: Sequence[float] | None,
) -> None:
    if candidates < 1:
        raise ValueError(f"race: there must be a candidate, got {candidates}")
    if not sizes or sorted(order) != list(range(len(sizes))):
        raise ValueError(
            f"race: order must be a permutation of the {len(sizes)} batches, got {list(order)}"
        )
    if config.bound == "bernstein" and not counts:
        raise ValueError("race: bound bernstein needs scores that are counts, got losses")
    if shares is not None and (
        len(shares) != candidates or min(shares) <= 0 or sum(shares) > 1 + 1e-9
    ):
        raise ValueError(
            f"race: shares must be one positive number for each of {candidates} candidates, "
            f"at most 1 together, got {list(shares)}"
        )

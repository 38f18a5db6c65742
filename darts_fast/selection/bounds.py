# SPDX-License-Identifier: Apache-2.0
"""When is the mean of a finite pool surely positive, after some of its values are seen?

The values of a race are the paired differences of two candidates, one per batch, drawn from a pool
of `pool` batches in random order without replacement. Both tests hold at every stopping time: the
probability that they ever call a pool positive whose mean is not is at most `level`.

``mixture``: a one-sided t-test that may be looked at after every value. If the values are normal
about the pool's mean m, with unknown variance, then given m their running mean after n of B has
variance ``sigma^2 / N`` with ``N = n B / (B - n)`` and is independent of their spread. Mixing the
likelihood ratio of ``m / sigma = delta`` to ``delta = 0`` over a half-normal delta of scale `prior`
and integrating out sigma by ``d sigma / sigma`` gives a nonnegative martingale under m = 0 whatever
sigma is (Perez-Ortiz, Lardy, de Heide and Gruenwald 2024, Annals of Statistics 52; Wang and Ramdas
2025, Sequential Analysis 44), and a smaller one under m < 0; Ville's inequality does the rest. With
``q0 = SS + N d^2``, ``q1 = SS + N d^2 / (1 + N prior^2)``, d the running mean and SS the sum of
squares about it, the martingale is

    2 F_n(z) (1 + N prior^2)^(-1/2) (q0 / q1)^(n/2),
    z = N prior^2 d / (1 + N prior^2) / sqrt(q1 / n * prior^2 / (1 + N prior^2)),

F_n the distribution function of Student's t with n degrees of freedom. N grows to infinity as n
goes to B: the pool is finite, and at its end nothing is uncertain. The statement is exact for
normal values and asymptotic in the images of a batch for others; `tests/test_race.py` measures its
rate.

``bernstein``: the empirical Bernstein-Serfling inequality (Bardenet and Maillard 2015, Bernoulli
21, theorem 4.3) at a level shared out equally among the looks. It assumes only that the values are
bounded, so it serves for correctness, whose difference in a batch is at most the batch, and holds
at any sample size; it needs many more batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

__all__ = ["BOUNDS", "Bound", "bernstein", "log_mixture", "mixture"]

Array = npt.NDArray[np.float64]

PRIOR = 1.0  # scale of delta = mean / standard deviation of the differences of whole batches


def log_mixture(values: Array, pool: int, *, prior: float = PRIOR, floor: float = 0.0) -> Array:
    """The logarithm of the martingale of the module after each row's values.

    Args:
        values: ``[..., n]``, 2 <= n < pool.
        pool: values in the whole pool.
        prior: scale of the mixture.
        floor: added to every sum of squares; it makes the test more careful where the values are
            counts that may not have differed yet.
    """
    n = values.shape[-1]
    effective = n * pool / (pool - n)
    mean = values.mean(-1)
    squares = np.square(values - mean[..., None]).sum(-1) + floor
    # Rounding must not make equal candidates look different beyond doubt.
    squares = np.maximum(squares, 1e-20 * np.square(values).sum(-1))
    shrink = 1 + effective * prior**2
    q0 = squares + effective * mean**2
    q1 = squares + effective * mean**2 / shrink
    nothing = q0 == 0
    q0, q1 = np.where(nothing, 1.0, q0), np.where(nothing, 1.0, q1)
    z = effective * prior * mean / np.sqrt(shrink * q1 / n)
    with np.errstate(divide="ignore"):
        side = np.log(2 * special.stdtr(n, z))
    logs: Array = side - 0.5 * math.log(shrink) + n / 2 * (np.log(q0) - np.log(q1))
    return logs


def mixture(
    values: Array, pool: int, level: Array, reach: float, counts: bool
) -> npt.NDArray[np.bool_]:
    """See the module; `reach` is not needed.

    Counts that have not differed yet may do so: one differing image is taken as seen.
    """
    logs = log_mixture(values, pool, floor=1.0 if counts else 0.0)
    return logs >= -np.log(level)


def bernstein(
    values: Array, pool: int, level: Array, reach: float, counts: bool
) -> npt.NDArray[np.bool_]:
    """See the module; values differ by at most `reach`."""
    n = values.shape[-1]
    each = np.log(5 * pool / level)  # at most one look per batch
    serfling = 1 - (n - 1) / pool if n <= pool / 2 else (1 - n / pool) * (1 + 1 / n)
    kappa = 7 / 3 + 3 / math.sqrt(2)
    radius = values.std(-1) * np.sqrt(2 * serfling * each / n) + kappa * reach * each / n
    positive: npt.NDArray[np.bool_] = values.mean(-1) > radius
    return positive


# (values [..., n], pool, level, largest spread of a value, whether values are counts) -> mean > 0
Bound = Callable[[Array, int, Array, float, bool], npt.NDArray[np.bool_]]

BOUNDS: dict[str, Bound] = {"mixture": mixture, "bernstein": bernstein}

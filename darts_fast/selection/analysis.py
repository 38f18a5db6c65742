# SPDX-License-Identifier: Apache-2.0
"""Why the weight of an operation is not its worth (DARTS-PT, section 4.1)."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["skip_weight"]


def skip_weight(skip_error: Tensor, op_error: Tensor) -> float:
    """The weight of the skip connection that an optimal mixture of skip and one operation has.

    With ``theta`` the softmax weight of the skip connection, the mixture's error is
    ``theta * skip_error + (1 - theta) * op_error``; its mean square is least at
    ``theta = (v_op - c) / (v_op + v_skip - 2 c)``, where v are the mean squares of the errors and c
    is their mean product. The better the skip connection's input already is, the more weight it
    gets (DARTS-PT, Proposition 1, which states the case c = 0).

    Args:
        skip_error: deviation of the operation's input from the map all edges estimate, any shape.
        op_error: deviation of the operation's output, same shape.

    Raises:
        ValueError: the shapes differ, or the two errors are equal, so that every weight is optimal.
    """
    if skip_error.shape != op_error.shape:
        raise ValueError(
            "skip_weight: the errors must have the same shape, "
            f"got {list(skip_error.shape)} and {list(op_error.shape)}"
        )
    x, o = skip_error.double(), op_error.double()
    spread = float((o - x).square().mean())
    if not spread > 0 or not math.isfinite(spread):
        raise ValueError(f"skip_weight: the errors must differ and be finite, got {spread}")
    return float((o * (o - x)).mean()) / spread

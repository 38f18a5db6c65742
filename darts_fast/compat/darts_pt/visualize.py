# SPDX-License-Identifier: Apache-2.0
"""Pictures of cells."""

from __future__ import annotations

from collections.abc import Sequence

from darts_fast.compat.darts import visualize

__all__ = ["plot"]


def plot(genotype: Sequence[tuple[str, int]], filename: str, mode: str = "") -> None:
    """Draw one cell, such as ``genotype.normal``, into ``filename.pdf``.

    Args: mode, not used: the original's "cue" marks operations with weights, which have colours of
    their own here.
    """
    visualize.plot(genotype, filename)

# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a search found."""

from darts_fast.report.cells import draw_genotype
from darts_fast.report.selection import (
    draw_discretization,
    draw_proposition,
    draw_strength,
    draw_trajectory,
)

__all__ = [
    "draw_discretization",
    "draw_genotype",
    "draw_proposition",
    "draw_strength",
    "draw_trajectory",
]

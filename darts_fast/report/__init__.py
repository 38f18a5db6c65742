# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a search found, and pages on runs."""

from darts_fast.report.cells import draw_genotype
from darts_fast.report.page import write_report
from darts_fast.report.run import Run, open_runs
from darts_fast.report.selection import (
    draw_discretization,
    draw_proposition,
    draw_strength,
    draw_trajectory,
)

__all__ = [
    "Run",
    "draw_discretization",
    "draw_genotype",
    "draw_proposition",
    "draw_strength",
    "draw_trajectory",
    "open_runs",
    "write_report",
]

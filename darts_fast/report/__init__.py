# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a search found."""

from darts_fast.report.cells import draw_genotype

__all__ = ["draw_genotype"]

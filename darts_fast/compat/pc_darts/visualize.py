# SPDX-License-Identifier: Apache-2.0
"""Pictures of cells, as in DARTS."""

from darts_fast.compat.darts.visualize import plot

__all__ = ["plot"]

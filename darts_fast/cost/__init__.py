# SPDX-License-Identifier: Apache-2.0
"""What a network costs (parameters, multiply-adds, latency), and what each operation adds."""

from darts_fast.cost.count import Cost, count
from darts_fast.cost.latency import forward_ms, median_ms
from darts_fast.cost.table import RESOURCES, CostTable, DerivedSizes, cost_table, entries

__all__ = [
    "RESOURCES",
    "Cost",
    "CostTable",
    "DerivedSizes",
    "cost_table",
    "count",
    "entries",
    "forward_ms",
    "median_ms",
]

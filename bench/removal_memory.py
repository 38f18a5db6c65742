# SPDX-License-Identifier: Apache-2.0
"""Prints the MiB that scoring one edge adds to the process: removal_memory.py RIVAL BATCH THREADS.

Measured as in peak_memory.py, after the scores of a batch of two images.
"""

from __future__ import annotations

from collections.abc import Callable

from peak_memory import print_added
from removals import RemovalCase


def one_edge(rival: str, batch: int) -> Callable[[], object]:
    case = RemovalCase(rival, batch)
    return lambda: case.scores(case.of_edge("normal", 7))


if __name__ == "__main__":
    print_added(one_edge)

# SPDX-License-Identifier: Apache-2.0
"""Pictures of cells: ``python -m darts_fast.compat.darts.visualize ARCH`` writes normal.pdf and
reduction.pdf of a genotype that `read_genotype` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from darts_fast.compat.darts import genotypes
from darts_fast.compat.darts.genotypes import Genotype, read_genotype
from darts_fast.report.cells import darts_plan, plans_figure
from darts_fast.report.theme import save_figure

__all__ = ["plot"]


def plot(genotype: Sequence[tuple[str, int]], filename: str) -> None:
    """Draw one cell, such as ``genotype.normal``, into ``filename.pdf``; Graphviz is not needed."""
    states = range(2, 2 + len(genotype) // 2)
    figure = plans_figure([darts_plan(Path(filename).name, genotype, states, False)])
    save_figure(figure, Path(f"{filename}.pdf"))


def main(arguments: Sequence[str]) -> None:
    """Draw both cells of a genotype: a name of `genotypes`, a file, or the text of one.

    Raises ValueError for anything else.
    """
    if len(arguments) != 1:
        raise ValueError(f"visualize: expected one genotype, got {len(arguments)} arguments")
    named = getattr(genotypes, arguments[0], None) if arguments[0].isidentifier() else None
    found = named if isinstance(named, Genotype) else read_genotype(arguments[0])
    if not isinstance(found, Genotype):
        raise ValueError(f"visualize: expected a normal and a reduction cell, got {found!r}")
    plot(found.normal, "normal")
    plot(found.reduce, "reduction")


if __name__ == "__main__":
    main(sys.argv[1:])

# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/results.md, made of what methods.py has recorded.

    python bench/experiments/methods_page.py bench/results/methods-nasbench201.json docs/results.md

Replaces what stands between the two marks of the page; the words around them are written by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darts_fast.files import atomic_write

BEGIN = "<!-- made by bench/experiments/methods_page.py -->"
END = "<!-- end -->"
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "ImageNet16-120": "ImageNet16"}
BASELINE = "darts"

Row = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """All tables in markdown, with a line above each."""
    rows = result["rows"]
    parts = [
        "CIFAR-10 test accuracy in percent, mean and in brackets the least of the seeds:",
        overview(rows),
        f"The same mean, minus that of `{BASELINE}` with the same selection, and in brackets in "
        "how many of the seeds it is higher:",
        against_baseline(rows),
        "All cells of the benchmark, which a cell drawn at random comes from:",
        cells_table(result["every_cell"]),
        "Every run: CIFAR-10 by seed, and means over the seeds; skip connections of six edges; "
        "median wall seconds of the search (one process of one thread, "
        f"{result['settings']['jobs']} such processes at a time), median wall and CPU seconds of "
        "the selection:",
        all_rows(rows),
    ]
    return "\n\n".join(parts)


def names(rows: Sequence[Row], key: str) -> list[str]:
    """Values of a column in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def of(rows: Sequence[Row], method: str, selection: str) -> list[Row]:
    """The runs of a method and selection, by seed."""
    found = [row for row in rows if (row["method"], row["selection"]) == (method, selection)]
    return sorted(found, key=lambda row: row["seed"])


def values(rows: Sequence[Row], data: str = "cifar10") -> list[float]:
    return [row["accuracy"][data] for row in rows]


def overview(rows: Sequence[Row]) -> str:
    selections = names(rows, "selection")

    def cell(method: str, selection: str) -> str:
        found = values(of(rows, method, selection))
        return f"{statistics.fmean(found):.2f} ({min(found):.2f})"

    return grid(
        ["method", *selections],
        [[method, *(cell(method, s) for s in selections)] for method in names(rows, "method")],
    )


def against_baseline(rows: Sequence[Row]) -> str:
    selections = names(rows, "selection")

    def cell(method: str, selection: str) -> str:
        pairs = list(
            zip(
                values(of(rows, method, selection)),
                values(of(rows, BASELINE, selection)),
                strict=True,
            )
        )
        gap = statistics.fmean(mine - base for mine, base in pairs)
        return f"{gap:+.2f} ({sum(mine > base for mine, base in pairs)} of {len(pairs)})"

    others = [method for method in names(rows, "method") if method != BASELINE]
    if len(others) == len(names(rows, "method")):
        return f"(no run of {BASELINE})"
    return grid(["method", *selections], [[m, *(cell(m, s) for s in selections)] for m in others])


def cells_table(every: dict[str, dict[str, float]]) -> str:
    kinds = ("mean", "median", "best")
    return grid(
        ["data set", *kinds],
        [[title, *(f"{every[name][k]:.2f}" for k in kinds)] for name, title in DATASETS.items()],
    )


def all_rows(rows: Sequence[Row]) -> str:
    lines = []
    for method in names(rows, "method"):
        for selection in names(rows, "selection"):
            found = of(rows, method, selection)
            means = [f"{statistics.fmean(values(found, data)):.2f}" for data in DATASETS]
            lines.append(
                [
                    method,
                    selection,
                    " ".join(f"{value:.2f}" for value in values(found)),
                    *means,
                    f"{statistics.fmean(row['skip_connections'] for row in found):.1f}",
                    f"{statistics.median(row['seconds']['search'] for row in found):.0f}",
                    f"{statistics.median(row['seconds']['select'] for row in found):.1f}",
                    f"{statistics.median(row['select_cpu_seconds'] for row in found):.1f}",
                ]
            )
    titles = ["method", "selection", "by seed", *DATASETS.values()]
    return grid([*titles, "skips", "search s", "selection s", "CPU s"], lines)


def grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    head = [list(titles), ["---"] * len(titles)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


def page_with(page: str, result: dict[str, Any]) -> str:
    """The page with the tables of a result between its marks.

    Raises:
        ValueError: it does not have both marks once.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"page: must have {BEGIN} and {END} once each")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables(result)}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("page", type=Path)
    args = parser.parse_args()
    result = json.loads(args.json.read_text())
    atomic_write(args.page, page_with(args.page.read_text(), result))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of README.md and bench/README.md from a recorded run: tables.py [RESULT].

A table stands between `<!-- bench/tables.py: NAME -->` and `<!-- end -->`; a test compares the
documents with `filled`.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from darts_fast.cli.bench import BenchRow, ratio_rows
from darts_fast.runs import read_json

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "benchmarks.json"
DOCUMENTS = (ROOT / "README.md", ROOT / "bench" / "README.md")

_PLACE = re.compile(r"(<!-- bench/tables\.py: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def filled(document: str, recorded: dict[str, Any]) -> str:
    """The document with every table made from a pytest-benchmark result.

    Raises:
        ValueError: no such result, or a place names a table that there is not.
    """
    rows = ratio_rows(recorded, "the recorded run")

    def fill(place: re.Match[str]) -> str:
        start, name, end = place.groups()
        if name not in _TABLES:
            raise ValueError(f"tables: a table must be one of {', '.join(_TABLES)}, got {name}")
        return f"{start}{_TABLES[name](rows, recorded)}\n{end}"

    return _PLACE.sub(fill, document)


def _headlines(rows: Sequence[BenchRow], recorded: dict[str, Any]) -> str:
    return _ratios([row for row in rows if row.extra.get("headline", True)], recorded)


def _ratios(rows: Sequence[BenchRow], _: dict[str, Any]) -> str:
    heading = ("case", "fused", "x eager", "x eager channels_last", "GFLOP/s", "of GEMM", "also")
    lines = []
    for row in rows:
        ratios = (row.ratio(rival) for rival in ("eager", "eager-channels_last"))
        facts = (f"{number:.2f} {name}" for name, number in row.extra.get("facts", {}).items())
        lines.append(
            (
                row.group,
                f"{row.values['fused']:,.1f} {row.unit}" if "fused" in row.values else "-",
                *(_number(ratio, 1) for ratio in ratios),
                _number(row.extra.get("gflops"), 1),
                _number(row.extra.get("share_of_gemm"), 2),
                ", ".join(facts),
            )
        )
    return _markdown(heading, lines)


def _roofline(rows: Sequence[BenchRow], _: dict[str, Any]) -> str:
    """Of every case whose operations and bytes are recorded."""
    heading = (
        *("case", "useful GFLOP", "done GFLOP", "GB", "arithmetic, ms", "memory, ms"),
        *("fused, ms", "of the floor"),
    )
    lines = []
    for row in rows:
        extra = row.extra
        if not {"flop", "done", "nbytes"} <= {*extra}:
            continue
        arithmetic = 1e-6 * extra["done"] / extra["gemm_gflops"]
        memory = 1e-6 * extra["nbytes"] / extra["copy_gbytes_per_s"]
        measured = row.values["fused"]
        lines.append(
            (
                row.group,
                f"{extra['flop'] / 1e9:.2f}",
                f"{extra['done'] / 1e9:.2f}",
                f"{extra['nbytes'] / 1e9:.3f}",
                f"{arithmetic:.1f}",
                f"{memory:.1f}",
                f"{measured:.1f}",
                f"{max(arithmetic, memory) / measured:.2f}",
            )
        )
    return _markdown(heading, lines)


def _machine(rows: Sequence[BenchRow], recorded: dict[str, Any]) -> str:
    """What the run was made on."""
    extras = [row.extra for row in rows if row.extra]
    threads = statistics.mode(extra["threads"] for extra in extras)
    usual = [extra for extra in extras if extra["threads"] == threads]
    capability = statistics.mode(extra["cpu_capability"] for extra in usual)
    rates = [extra["gemm_gflops"] for extra in usual]
    gemm = f"{min(rates):.0f}" + (f" to {max(rates):.0f}" if max(rates) > min(rates) else "")
    return (
        f"{recorded['machine_info']['cpu']}, {recorded['machine_info']['processors']} processors, "
        f"{capability}, {threads} {'thread' if threads == 1 else 'threads'}, "
        f"torch {usual[0]['torch']};\n"
        f"matrix product (GEMM, float32, 1024 x 1024) {gemm} GFLOP/s, "
        f"copy {usual[0]['copy_gbytes_per_s']:.0f} GB/s; "
        f"commit {recorded['commit_info']['id'][:12]}."
    )


_TABLES: dict[str, Callable[[Sequence[BenchRow], dict[str, Any]], str]] = {
    "headlines": _headlines,
    "machine": _machine,
    "ratios": _ratios,
    "roofline": _roofline,
}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _markdown(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)


if __name__ == "__main__":
    result = read_json(sys.argv[1] if len(sys.argv) > 1 else RESULT)
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(), result))

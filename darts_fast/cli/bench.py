# SPDX-License-Identifier: Apache-2.0
"""``darts-fast bench``: run the benchmarks of the checkout, or show a recorded run, as a table of
ratios.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

import darts_fast
from darts_fast.cli.options import CONTEXT, debug_option
from darts_fast.runs import read_json

__all__ = ["BenchRow", "bench", "ratio_rows"]

RIVALS = ("eager", "eager-channels_last", "fused")


@dataclass(frozen=True)
class BenchRow:
    """One group of rivals.

    Attributes:
        values: by rival the median time in milliseconds, or what is compared in its place.
        unit: of the values.
        extra: everything recorded beside the fused rival's time (empty where it was not measured),
            among it gflops and share_of_gemm, and facts, name -> number.
    """

    group: str
    values: Mapping[str, float]
    unit: str
    extra: Mapping[str, Any]

    def ratio(self, rival: str) -> float | None:
        """How many times faster, or smaller, than ``rival`` the fused one is."""
        if rival in self.values and "fused" in self.values:
            return self.values[rival] / self.values["fused"]
        return None


def ratio_rows(recorded: Any, source: str) -> list[BenchRow]:
    """The rows of a pytest-benchmark result, in the order the groups were run.

    Raises:
        ValueError: ``recorded`` is not such a result, or no benchmark in it names its group and
        rival.
    """
    if not isinstance(recorded, dict) or not isinstance(recorded.get("benchmarks"), list):
        raise ValueError(f"bench: {source} is not a result of pytest-benchmark")
    groups: dict[str, dict[str, Any]] = {}
    for benchmark in recorded["benchmarks"]:
        extra = benchmark.get("extra_info", {})
        if "group" in extra and extra.get("rival") in RIVALS:
            groups.setdefault(extra["group"], {})[extra["rival"]] = benchmark
    if not groups:
        raise ValueError(
            f"bench: no benchmark in {source} has a group and a rival out of {', '.join(RIVALS)}"
        )
    rows = []
    for group, rivals in groups.items():
        infos = {rival: benchmark["extra_info"] for rival, benchmark in rivals.items()}
        values = {
            rival: infos[rival].get("value", 1e3 * benchmark["stats"]["median"])
            for rival, benchmark in rivals.items()
        }
        unit = next(iter(infos.values())).get("unit", "ms")
        rows.append(BenchRow(group, values, unit, infos.get("fused", {})))
    return rows


def _show(rows: list[BenchRow], source: str) -> None:
    table = Table(title=f"medians of {source}, in ms or the unit of the row")
    table.add_column("group", overflow="fold")
    for name in (
        "eager",
        "channels\nlast",
        "fused",
        "times\neager",
        "times ch.\nlast",
        "GFLOP/s",
        "of\nGEMM",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        values = [row.values.get(rival) for rival in RIVALS]
        ratios = [row.ratio(rival) for rival in RIVALS[:2]]
        facts = [f"{number:.2f} {name}" for name, number in row.extra.get("facts", {}).items()]
        unit = [] if row.unit == "ms" else [row.unit]
        gflops, share = row.extra.get("gflops"), row.extra.get("share_of_gemm")
        table.add_row(
            "; ".join([row.group, *unit, *facts]),
            *("-" if value is None else f"{value:.3g}" for value in values),
            *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            "-" if gflops is None else f"{gflops:.1f}",
            "-" if share is None else f"{share:.2f}",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file has no width to fit into
    console.print(table)


@click.command(context_settings=CONTEXT)
@click.option("--show", metavar="FILE", help="Show this result instead of running anything.")
@click.option("--json", "output", metavar="FILE", help="Where to keep the result.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: all processors]")
@click.option("--select", metavar="EXPRESSION", help="Only the benchmarks that pytest -k selects.")
@debug_option
def bench(show: str | None, output: str | None, threads: int | None, select: str | None) -> int:
    """Time the kernels beside their rivals and print the ratios.

    Needs a checkout of the project with pytest and pytest-benchmark installed; --show does not.
    """
    if show is not None:
        _show(ratio_rows(read_json(show), show), show)
        return 0
    folder = Path(darts_fast.__file__).resolve().parents[1] / "bench"
    if not folder.is_dir():
        raise ValueError(
            "bench: the benchmarks are part of a checkout of the project, not of an installed "
            f"package; no directory {folder}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(output) if output is not None else Path(temporary) / "result.json"
        command = [sys.executable, "-m", "pytest", str(folder), f"--benchmark-json={path}"]
        if threads is not None:
            command.append(f"--threads={threads}")
        if select is not None:
            command += ["-k", select]
        status = subprocess.run(command, cwd=folder.parent, check=False).returncode
        if status != 0:
            return status
        _show(ratio_rows(read_json(path), str(path)), "this run" if output is None else str(path))
    return 0

# SPDX-License-Identifier: Apache-2.0
"""Launches and bytes of the CUDA ops, counted by the emulation, against what they must move.

    python bench/cuda/traffic.py [--json FILE]      # needs g++ and objcopy, no GPU

Every case names, per sweep, its kernels and the maps that the sweep must read and write (design of
the op: each map once). `distinct` bytes are those that memory must move, counted once per launch;
`sectors` are 32 bytes for each sector that a block touches: what the second-level cache must give
where blocks share nothing. Times are not measured: the emulation has none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cell_traffic import cell_cases
from toolkit import ROOT
from traffic_case import TARGET, Case, Sweep

sys.path.insert(0, str(ROOT / "tests"))

from simt_build import Build
from simulator import LaunchCounts, Simulated, Simulator


def node_sum_cases(batch: int, dtype: torch.dtype = torch.float32) -> list[Case]:
    """The last node of a DARTS cell, C = 16 at 32x32: five edges of seven operations.

    Args: dtype, of the maps; all else is float32.
    """
    terms, channels, size = 35, 16, 32
    stored = "" if dtype == torch.float32 else ", maps of 16 bits"
    norms, eps = [1] * terms, [1e-5] * terms
    shape = (batch, channels, size, size)

    def make_map() -> torch.Tensor:
        return torch.randn(shape).to(dtype, memory_format=torch.channels_last)

    maps, grad, weights = [make_map() for _ in range(terms)], make_map(), torch.rand(1, terms)
    statistics = torch.zeros(1, terms, channels), torch.ones(1, terms, channels)
    nbytes = grad.nbytes

    def forward(simulated: Simulated) -> object:
        assert isinstance(simulated, Simulator)
        return simulated.forward(maps, weights, *(None,) * 4, norms, eps, 1, None)

    def backward(simulated: Simulated) -> object:
        assert isinstance(simulated, Simulator)
        arguments = (grad, maps, weights, None, None, *statistics, norms, eps, 1, None)
        return simulated.backward(*arguments, [True] * (terms + 3))

    def make(folder: Path) -> Simulated:
        return Simulator(folder, build=Build.COUNT)

    small = ("node_sum_merge", "node_sum_finish")  # sums over tiles: no map
    return [
        Case(
            f"node_sum forward, batch {batch}{stored}",
            *("node_sum", make, forward),
            (
                Sweep("statistics", ("node_sum_statistics", *small), terms * nbytes),
                Sweep("sum", ("node_sum_combine",), (terms + 1) * nbytes),
            ),
        ),
        Case(
            f"node_sum backward, batch {batch}{stored}",
            *("node_sum", make, backward),
            (
                Sweep("reductions", ("node_sum_reduce", *small), (terms + 1) * nbytes),
                Sweep("gradients", ("node_sum_grad_maps",), (2 * terms + 1) * nbytes),
            ),
        ),
    ]


def add(counts: Sequence[LaunchCounts]) -> dict[str, int]:
    """Bytes read and written together, and launches."""
    return {
        "launches": len(counts),
        "requested": sum(c.read.requested + c.written.requested for c in counts),
        "sectors": sum(c.read.sectors + c.written.sectors for c in counts),
        "distinct": sum(c.read.distinct + c.written.distinct for c in counts),
    }


def measure(case: Case, simulated: Simulated) -> dict[str, Any]:
    """The counts of a case, by sweep.

    Raises:
        ValueError: a kernel belongs to no sweep, or to two.
    """
    simulated.reset_counts()
    case.call(simulated)
    rows: dict[str, list[LaunchCounts]] = {sweep.name: [] for sweep in case.sweeps}
    seen: Counter[str] = Counter()
    for launch in simulated.counts():
        base = launch.kernel.partition("<")[0]
        names = (base, f"{base}/{seen[base] % 2}")
        seen[base] += 1
        sweeps = [
            sweep.name
            for sweep in case.sweeps
            if any(name == kernel for kernel in sweep.kernels for name in names)
        ]
        if len(sweeps) != 1:
            raise ValueError(f"{case.name}: kernel {base} must be in one sweep, got {sweeps}")
        rows[sweeps[0]].append(launch)
    found = []
    for sweep in case.sweeps:
        row = {
            "sweep": sweep.name,
            "minimum": sweep.minimum,
            **add(rows[sweep.name]),
        }
        row["of_minimum"] = round(row["distinct"] / sweep.minimum, 3)
        row["sectors_of_minimum"] = round(row["sectors"] / sweep.minimum, 3)
        found.append(row)
    return {"case": case.name, "launches": sum(row["launches"] for row in found), "sweeps": found}


def run(cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """Counts all cases; a family is built once."""
    built: dict[str, Simulated] = {}
    results = []
    for case in cases:
        if case.family not in built:
            place = folder / case.family
            place.mkdir()
            built[case.family] = case.make(place)
        results.append(measure(case, built[case.family]))
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results for readers."""
    lines = [
        "| case | launches | sweep | minimum, MiB | memory, x minimum | blocks, x minimum |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result["sweeps"]:
            lines.append(
                f"| {result['case']} | {row['launches']} | {row['sweep']} "
                f"| {row['minimum'] / 2**20:.2f} | {row['of_minimum']:.3f} "
                f"| {row['sectors_of_minimum']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cell_batches", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/cuda-traffic.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases = node_sum_cases(given.batch) + node_sum_cases(given.batch, torch.bfloat16)
        for batch in given.cell_batches:
            cases += cell_cases(batch)
        results = run(cases, Path(folder))
    given.json.write_text(json.dumps({"target": TARGET, "results": results}, indent=1) + "\n")
    given.json.with_suffix(".md").write_text("# Bytes moved\n\n" + table(results))
    print(table(results), end="")
    over = [row for r in results for row in r["sweeps"] if row["of_minimum"] > TARGET]
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

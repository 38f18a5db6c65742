# SPDX-License-Identifier: Apache-2.0
"""Search methods by selections on NAS-Bench-201, judged by its table: a grid of `darts-fast
compare`, looked up on all three data sets.

    python bench/experiments/methods.py --data CIFAR10 --table nb201.npz --out grid --json m.json

Trains a supernet per method, selection and seed, each in a process of its own; the same command
goes on where an earlier one has stopped. Writes a JSON file and prints markdown tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from darts_fast.cli import main as darts_fast
from darts_fast.environment import environment
from darts_fast.files import atomic_write
from darts_fast.report.run import Run
from darts_fast.search import METHODS
from darts_fast.selection import SELECTIONS
from darts_fast.spaces import AccuracyTable, load_accuracy_table, skip_connections

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what darts-fast search takes")
    parser.add_argument("--table", required=True, help="see darts_fast.spaces.NpzTable")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--json", required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--selections",
        nargs="+",
        default=["magnitude", "strength", "one_shot"],
        choices=list(SELECTIONS),
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=5, help="per stage")
    parser.add_argument("--limit", type=int, default=10_000, help="images, half for the weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=1000, help="to select on")
    return parser.parse_args(given)


def command_of(args: argparse.Namespace) -> list[str]:
    """The grid, as `darts-fast` takes it."""
    found = ["compare", "--out", args.out, "--jobs", args.jobs, "--table", args.table]
    for name in ("methods", "selections", "seeds"):
        found += [f"--{name}", ",".join(map(str, getattr(args, name)))]
    found += ["--data", args.data, "--space", "nasbench201", "--threads", 1, "--proj_intv", 0]
    found += ["--init_channels", args.channels, "--layers", args.cells, "--limit", args.limit]
    found += ["--epochs", args.epochs, "--batch_size", args.batch_size, "--sampling", "epoch"]
    found += ["--proj_images", args.images]
    return [str(word) for word in found]


def row_of(run: Run, table: AccuracyTable) -> dict[str, Any]:
    """What one run found, in percent and seconds."""
    architecture = run.genotypes[run.label]
    assert isinstance(architecture, str)
    return {
        "method": run.settings["method"],
        "selection": run.settings["select"],
        "seed": run.settings["seed"],
        "architecture": architecture,
        "skip_connections": skip_connections(architecture),
        "accuracy": {name: round(table.accuracy(architecture, name), 2) for name in DATASETS},
        "seconds": run.seconds,
    }


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """A markdown table: a line for each method and selection."""
    lines = [
        "| method | selection | CIFAR-10 by seed | mean | CIFAR-100 | ImageNet16 | skips "
        "| search, s | selection, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, selection in dict.fromkeys((row["method"], row["selection"]) for row in rows):
        found = [row for row in rows if (row["method"], row["selection"]) == (method, selection)]
        means = {
            name: statistics.fmean(row["accuracy"][name] for row in found) for name in DATASETS
        }
        values = " ".join(f"{row['accuracy']['cifar10']:.2f}" for row in found)
        skips = statistics.fmean(row["skip_connections"] for row in found)
        seconds = [
            statistics.median(row["seconds"].get(phase, 0.0) for row in found)
            for phase in ("search", "select")
        ]
        lines.append(
            f"| {method} | {selection} | {values} | "
            + " | ".join(f"{means[name]:.2f}" for name in DATASETS)
            + f" | {skips:.1f} | {seconds[0]:.0f} | {seconds[1]:.0f} |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(given)
    table = load_accuracy_table(args.table)
    command = command_of(args)
    status = darts_fast(command)
    if status:
        raise SystemExit(status)
    names = product(args.methods, args.selections, args.seeds)
    folders = [Path(args.out) / f"{m}-{selection}-seed{seed}" for m, selection, seed in names]
    result = {
        "command": f"darts-fast {shlex.join(command)}",
        "environment": environment(),
        "rows": [row_of(Run.read(folder), table) for folder in folders],
    }
    atomic_write(Path(args.json), json.dumps(result, indent=1) + "\n")
    print(f"\n{table_of(result['rows'])}")
    return result


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Search methods by selections on NAS-Bench-201: supernets trained by `darts-fast compare`, every
selection from each of them, looked up on all three data sets.

    python bench/experiments/methods.py --data CIFAR10 --table nb201.npz --out grid --json m.json

One supernet per method and seed; none of the selections tunes it. Supernets and selections are
spread over processes of one thread each. The same command goes on where an earlier one has stopped.
Writes a JSON file, which methods_page.py turns into tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from methods_page import tables
from nasbench201 import shrunk

from darts_fast.cli import main as darts_fast
from darts_fast.cli.analysed_run import open_analysed
from darts_fast.data import load_data
from darts_fast.environment import environment
from darts_fast.files import atomic_write
from darts_fast.report.run import Run
from darts_fast.search import METHODS
from darts_fast.selection import PerturbationConfig, StrengthConfig, select
from darts_fast.spaces import (
    AccuracyTable,
    arch_from_index,
    load_accuracy_table,
    skip_connections,
)

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
# None of them trains; removals are scored by the loss, which tells more on few images.
SELECTIONS: dict[str, Any] = {
    "magnitude": None,
    "strength": StrengthConfig(),
    "one_shot": PerturbationConfig(proj_crit="loss"),
    "perturbation": PerturbationConfig(proj_crit="loss", proj_intv=0),
}
SELECTED = "selections.json"  # of a run, beside its supernet
CELLS = 15_625


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what load_data takes")
    parser.add_argument("--table", required=True, help="see darts_fast.spaces.NpzTable")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--json", required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--selections", nargs="+", default=list(SELECTIONS), choices=list(SELECTIONS)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=2, help="per stage")
    parser.add_argument("--size", type=int, default=16, help="images are averaged down to it")
    parser.add_argument("--limit", type=int, default=7680, help="images, half for the weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--images", type=int, default=512, help="to select on")
    return parser.parse_args(given)


def small_images(args: argparse.Namespace) -> Path:
    """The folder of the images averaged down to --size, written once."""
    folder = Path(args.out) / f"images-{args.size}"
    if not (folder / "test.npz").is_file():  # it is written last
        data = load_data(args.data, limit=args.limit)
        folder.mkdir(parents=True, exist_ok=True)
        for name, whole in (("train", data.train), ("test", data.test)):
            half = shrunk(whole, args.size)
            pixels = half.images.permute(0, 2, 3, 1).numpy()
            np.savez(folder / f"{name}.npz", x=pixels, y=half.labels.numpy())
    return folder


def command_of(args: argparse.Namespace, images: Path) -> list[str]:
    """The supernets, as `darts-fast` takes them.

    Options of single methods: the schedules of PC-DARTS and SGAS are for 50 epochs, and BaLeNAS
    counts the images of the half that it sees.
    """
    found = ["compare", "--out", args.out, "--jobs", args.jobs, "--table", args.table]
    found += ["--methods", ",".join(args.methods), "--seeds", ",".join(map(str, args.seeds))]
    found += ["--selections", "magnitude", "--space", "nasbench201", "--threads", 1]
    found += ["--data", images, "--init_channels", args.channels, "--layers", args.cells]
    found += ["--epochs", args.epochs, "--batch_size", args.batch_size, "--sampling", "epoch"]
    found += ["--valid_freq", 0, "--begin", 1, "--warmup_dec_epoch", 0, "--decision_freq", 1]
    found += ["--data_size", args.limit // 2]
    return [str(word) for word in found]


def select_all(folder: Path, selections: Sequence[str], images: int) -> dict[str, Any]:
    """By selection what it finds in the supernet of a run, and its wall and CPU seconds; what an
    earlier call has found is read.
    """
    file = folder / SELECTED
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for name in selections:
        if name in known and known[name]["images"] == images:
            continue
        run = open_analysed(str(folder), images, 1)
        net = run.supernet(run.epochs[-1])
        wall, cpu = time.perf_counter(), time.process_time()
        config, batches = SELECTIONS[name], run.batches
        if config is not None:
            config = replace(config, seed=run.settings["seed"])
        found = select(net, batches, method=name, config=config)
        known[name] = {
            "architecture": found.genotype,
            "images": images,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }
        atomic_write(file, json.dumps(known, indent=1) + "\n")
    return known


def rows_of(
    folder: Path, found: dict[str, Any], selections: Sequence[str], table: AccuracyTable
) -> list[dict[str, Any]]:
    """What was selected from one supernet; accuracies in percent, times in seconds."""
    run = Run.read(folder)
    return [
        {
            "method": run.settings["method"],
            "selection": name,
            "seed": run.settings["seed"],
            "architecture": found[name]["architecture"],
            "skip_connections": skip_connections(found[name]["architecture"]),
            "accuracy": {
                data: round(table.accuracy(found[name]["architecture"], data), 2)
                for data in DATASETS
            },
            "seconds": {"search": run.seconds["search"], "select": found[name]["seconds"]},
            "select_cpu_seconds": found[name]["cpu_seconds"],
        }
        for name in selections
    ]


def every_cell(table: AccuracyTable) -> dict[str, dict[str, float]]:
    """Mean and largest accuracy of all cells of the benchmark, which a random cell has."""
    found = {}
    for data in DATASETS:
        values = [table.accuracy(arch_from_index(index), data) for index in range(CELLS)]
        found[data] = {
            "mean": round(statistics.fmean(values), 2),
            "median": round(statistics.median(values), 2),
            "best": round(max(values), 2),
        }
    return found


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(given)
    table = load_accuracy_table(args.table)
    images = small_images(args)
    status = darts_fast(command_of(args, images))
    if status:
        raise SystemExit(status)
    names = product(args.methods, args.seeds)
    folders = [Path(args.out) / f"{method}-magnitude-seed{seed}" for method, seed in names]
    choose = partial(select_all, selections=args.selections, images=args.images)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(choose, folders))
    given_rows = zip(folders, found, strict=True)
    rows = [row for pair in given_rows for row in rows_of(*pair, args.selections, table)]
    order = {name: place for place, name in enumerate(args.selections)}
    rows.sort(key=lambda row: (args.methods.index(row["method"]), order[row["selection"]]))
    # The record has the names of files, not where they are.
    kept = {name: value for name, value in vars(args).items() if name != "json"}
    kept |= {"data": Path(args.data).name, "table": Path(args.table).name, "out": "grid"}
    command = command_of(argparse.Namespace(**kept), Path("grid") / images.name)
    result = {
        "settings": kept,
        "command": f"darts-fast {shlex.join(command)}",
        "environment": environment(),
        "every_cell": every_cell(table),
        "rows": rows,
    }
    atomic_write(Path(args.json), json.dumps(result, indent=1) + "\n")
    print(f"\n{tables(result)}")
    return result


if __name__ == "__main__":
    main()

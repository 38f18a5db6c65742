# SPDX-License-Identifier: Apache-2.0
"""Selections from NAS-Bench-201 supernets, judged by the accuracies of a tabular benchmark.

Trains a supernet per seed on a part of CIFAR-10, with learned and with fixed alphas, selects
architectures from copies of it, and looks their accuracies up. Writes a JSON file, seed by seed:
seeds that it holds already are not run again. Prints a markdown table.

    python bench/experiments/nasbench201.py --data CIFAR10_FOLDER --table nb201.npz --json nb.json
    python bench/experiments/nasbench201.py ... --size 32 --limit 20000 --trajectory 2 4 6

Selections: magnitude; tuned-*, perturbation-based with --tune_steps steps between projections;
sequential-*, the same without tuning; one-shot-*, all edges scored on the untouched supernet;
*-acc and *-loss say by what.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from darts_fast import __version__
from darts_fast.data import Dataset, Images, fixed_batches, load_data
from darts_fast.files import atomic_write
from darts_fast.nn import Supernet, build_supernet
from darts_fast.reporter import Interrupted, Reporter
from darts_fast.search import Search, SearchConfig
from darts_fast.search.trainer import Trainer
from darts_fast.seeding import seed_everything
from darts_fast.selection import PerturbationConfig, RaceConfig, magnitude_genotype, select
from darts_fast.spaces import load_accuracy_table

DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
SELECTIONS = (
    "magnitude",
    *("tuned-acc", "tuned-loss"),
    *("sequential-acc", "sequential-loss"),
    *("one-shot-acc", "one-shot-loss"),
)
TRAJECTORY = "sequential-loss"  # what is compared with magnitude along the training

# Of the command line: how it is run and shown, not what is measured.
NOT_MEASURED = ("data", "table", "json", "seeds", "jobs")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10's folder, or what load_data takes")
    parser.add_argument("--table", required=True, help="see darts_fast.spaces.NpzTable")
    parser.add_argument("--json", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--cells", type=int, default=5, help="per stage")
    parser.add_argument("--size", type=int, default=16, help="images are averaged down to it")
    parser.add_argument("--limit", type=int, default=10_000, help="images, half for the weights")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--arch_learning_rate", type=float, default=3e-4)
    parser.add_argument("--images", type=int, default=1000, help="to score on")
    parser.add_argument("--score_batch", type=int, default=100)
    parser.add_argument("--tune_steps", type=int, default=40)
    parser.add_argument("--race", action="store_true", help="race where candidates are scored")
    parser.add_argument("--darts", nargs="*", default=list(SELECTIONS), choices=SELECTIONS)
    parser.add_argument(
        "--blank",
        nargs="*",
        default=["tuned-acc", "tuned-loss", "sequential-loss", "one-shot-loss"],
        choices=SELECTIONS[1:],
        help="selections with fixed alphas",
    )
    parser.add_argument(
        "--trajectory", type=int, nargs="*", default=[], help=f"{TRAJECTORY} after these epochs"
    )
    return parser.parse_args(given)


def shrunk(images: Images, size: int) -> Images:
    """Averages over squares of pixels."""
    side = images.images.shape[-1]
    if side % size:
        raise ValueError(f"--size must divide the images' {side} pixels, got {size}")
    means = functional.avg_pool2d(images.images.float(), side // size).round()
    return Images(means.to(torch.uint8), images.labels)


def load(args: argparse.Namespace) -> Dataset:
    data = load_data(args.data, limit=args.limit)
    side = data.image_size[0]
    return replace(
        data,
        train=shrunk(data.train, args.size),
        test=shrunk(data.test, args.size),
        augmentation=replace(data.augmentation, pad=data.augmentation.pad * args.size // side),
    )


def tuning(net: Supernet, data: Dataset, config: SearchConfig, steps: int) -> Callable[[int], None]:
    """Trains `net` for so many steps at each call, on one sequence of batches."""
    trainer = Trainer(net, data, config)
    trainer.start_tuning()

    def tune(_: int) -> None:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if done == steps:
                raise Interrupted

        while True:
            try:
                trainer.run_epoch(Reporter(), count)
            except Interrupted:
                return

    return tune


def chosen(net: Supernet, name: str, search: Search, args: argparse.Namespace) -> dict[str, Any]:
    """The architecture that a selection finds in a copy of `net`."""
    start = time.perf_counter()
    net = copy.deepcopy(net)
    images = 0
    if name == "magnitude":
        architecture = magnitude_genotype(net)
    else:
        kind, criterion = name.rsplit("-", 1)
        pool = search.trainer.valid.take(args.images)
        tuned = kind == "tuned"
        found = select(
            net,
            fixed_batches(pool, search.data.plain, args.score_batch),
            method="one_shot" if kind == "one-shot" else "perturbation",
            config=PerturbationConfig(
                proj_crit=criterion,
                proj_intv=1 if tuned else 0,
                seed=search.config.seed,
                race=RaceConfig() if args.race else None,
            ),
            tune=tuning(net, search.data, search.config, args.tune_steps) if tuned else None,
        )
        architecture = found.genotype
        images = sum(sum(used) for d in found.decisions for used in d.images_used)
    return {
        "architecture": architecture,
        "seconds": time.perf_counter() - start,
        "image_forwards": images,
    }


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The search and its selections, with learned and with fixed alphas."""
    torch.set_num_threads(1)
    data = load(args)
    wanted = {"darts": args.darts, "blank": args.blank}
    return {
        method: run_method(args, data, method, names, seed)
        for method, names in wanted.items()
        if names
    }


def run_method(
    args: argparse.Namespace, data: Dataset, method: str, names: Sequence[str], seed: int
) -> dict[str, Any]:
    start = time.perf_counter()
    seed_everything(seed)
    net = build_supernet(
        "nasbench201", channels=args.channels, num_classes=data.num_classes, layers=args.cells
    )
    config = SearchConfig(
        method=method,
        epochs=args.epochs,
        batch_size=args.batch_size,
        arch_learning_rate=args.arch_learning_rate,
        sampling="epoch",
        seed=seed,
    )
    search = Search(net, data, config, select="magnitude")
    trajectory: list[dict[str, Any]] = []

    def snapshot(epoch: int) -> None:
        if method == "darts" and epoch + 1 in args.trajectory:
            trajectory.append({"epoch": epoch + 1, **chosen(net, TRAJECTORY, search, args)})

    search.snapshot = snapshot
    history = search.run().history
    aside = sum(point["seconds"] for point in trajectory)
    return {
        "search_seconds": time.perf_counter() - start - aside,
        "valid_acc": [epoch["valid_acc"] for epoch in history],
        "magnitude": [epoch["genotype"] for epoch in history],
        "trajectory": trajectory,
        "selections": {name: chosen(net, name, search, args) for name in names},
    }


def look_up(seeds: dict[str, Any], table: Any) -> None:
    """Write beside every architecture its accuracies, in percent."""

    @functools.cache
    def accuracies(architecture: str) -> dict[str, float]:
        return {name: round(table.accuracy(architecture, name), 2) for name in DATASETS}

    for methods in seeds.values():
        for found in methods.values():
            for choice in [*found["selections"].values(), *found["trajectory"]]:
                choice["accuracy"] = accuracies(choice["architecture"])
            found["magnitude_accuracy"] = [accuracies(name) for name in found["magnitude"]]


def table_of(seeds: dict[str, Any]) -> str:
    """A markdown table: CIFAR-10's accuracies by seed, and means on all three data sets."""
    order = sorted(seeds, key=int)
    lines = [
        "| alphas | selection | CIFAR-10 by seed | least | mean | CIFAR-100 | ImageNet16 "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in seeds[order[0]]:
        for name in seeds[order[0]][method]["selections"]:
            rows = [seeds[seed][method]["selections"][name] for seed in order]
            values = {key: [row["accuracy"][key] for row in rows] for key in DATASETS}
            means = {key: statistics.fmean(values[key]) for key in DATASETS}
            seconds = statistics.median(row["seconds"] for row in rows)
            lines.append(
                f"| {'learned' if method == 'darts' else 'fixed'} | {name} | "
                f"{' '.join(f'{value:.2f}' for value in values['cifar10'])} | "
                f"{min(values['cifar10']):.2f} | "
                + " | ".join(f"{means[key]:.2f}" for key in DATASETS)
                + f" | {seconds:.0f} |"
            )
    return "\n".join(lines)


def trajectory_of(seeds: dict[str, Any]) -> str:
    """A markdown table: CIFAR-10's accuracies of both selections along the training."""
    order = sorted(seeds, key=int)
    lines = ["| after epoch | magnitude | " + TRAJECTORY + " |", "|---|---|---|"]
    for number, point in enumerate(seeds[order[0]]["darts"]["trajectory"]):
        epoch = point["epoch"]
        both = [
            [seeds[s]["darts"]["magnitude_accuracy"][epoch - 1]["cifar10"] for s in order],
            [seeds[s]["darts"]["trajectory"][number]["accuracy"]["cifar10"] for s in order],
        ]
        cells = [
            f"{' '.join(f'{value:.2f}' for value in values)}, mean {statistics.fmean(values):.2f}"
            for values in both
        ]
        lines.append(f"| {epoch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    args = arguments(given)
    table = load_accuracy_table(args.table)
    path = Path(args.json)
    measured = {key: value for key, value in vars(args).items() if key not in NOT_MEASURED}
    result: dict[str, Any] = {
        "arguments": measured,
        "darts_fast": __version__,
        "torch": torch.__version__,
        "jobs": args.jobs,
        "seconds": 0.0,
        "seeds": {},
    }
    if path.exists():
        held = json.loads(path.read_text())
        if held["arguments"] != measured:
            raise SystemExit(f"{path}: holds another experiment, {held['arguments']}")
        result = held
    start, before = time.perf_counter(), result["seconds"]
    missing = [seed for seed in args.seeds if str(seed) not in result["seeds"]]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_seed, args, seed): seed for seed in missing}
        for future in as_completed(running):
            result["seeds"][str(running[future])] = future.result()
            result["seconds"] = before + time.perf_counter() - start
            look_up(result["seeds"], table)
            atomic_write(path, json.dumps(result, indent=1) + "\n")
            print(f"seed {running[future]}, {result['seconds']:.0f} s in all", flush=True)
    print(f"\n{table_of(result['seeds'])}")
    if args.trajectory:
        print(f"\n{trajectory_of(result['seeds'])}")
    return result


if __name__ == "__main__":
    main()

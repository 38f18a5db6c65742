# SPDX-License-Identifier: Apache-2.0
"""What further processes save: a search step and the removals of an edge, alone and shared.

    torchrun --nproc_per_node 2 bench/experiments/scaling.py --json scaling.json

In every round the first process does the work alone while the others wait, then all do it together,
so that both see the same load of the machine. Prints medians over the rounds: wall seconds, and CPU
seconds of the first process. A step is an architecture step and a weight step on random images; the
removals are those of one edge and the network as it is. The scores of both are compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from darts_fast.data import Augmentation, Dataset, Images
from darts_fast.distributed import ALONE, World, join, leave
from darts_fast.environment import environment
from darts_fast.nn import Supernet, build_supernet
from darts_fast.reporter import Reporter
from darts_fast.search import SearchConfig
from darts_fast.search.trainer import Trainer
from darts_fast.seeding import seed_everything
from darts_fast.selection import removal_scores

EDGE = 7
SIZE = 32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="s5")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=2, help="that removals are scored on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Work:
    """A network of its own for every world, so that steps do not disturb each other."""

    def __init__(self, options: argparse.Namespace, world: World) -> None:
        seed_everything(0)
        self.world = world
        self.net: Supernet = build_supernet(
            options.space, channels=options.channels, num_classes=10, layers=options.layers
        )
        count = 2 * options.batch_size
        pixels = torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8)
        images = Images(pixels, torch.arange(count) % 10)
        names = tuple(str(label) for label in range(10))
        half = (0.5, 0.5, 0.5)
        data = Dataset("random", images, images, names, Augmentation(mean=half, std=half))
        config = SearchConfig(batch_size=options.batch_size, report_freq=10**9)
        self.trainer = Trainer(self.net, data, config, world=world)
        self.batches = [
            (torch.randn(options.batch_size, 3, SIZE, SIZE), torch.arange(options.batch_size) % 10)
            for _ in range(options.batches)
        ]

    def step(self) -> None:
        self.trainer.run_epoch(Reporter(), lambda: None)  # of one step

    def removals(self) -> torch.Tensor:
        cell_type = self.net.space.cell_types[0]
        edges = [EDGE % self.net.space.num_edges]
        return removal_scores(
            self.net, self.batches, cell_type=cell_type, edges=edges, world=self.world
        ).scores.batch_loss


def timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measured(alone: Work, shared: Work, rounds: int, name: str) -> dict[str, Any]:
    """Medians of one kind of work; only those of the first process are of use."""
    world = shared.world
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "shared": []}
    for round_ in range(rounds + 1):
        world.gather(None)
        one = timed(getattr(alone, name)) if world.rank == 0 else (0.0, 0.0)
        world.gather(None)
        all_ = timed(getattr(shared, name))
        if round_ > 0:  # the first makes plans
            times["alone"].append(one)
            times["shared"].append(all_)
    found: dict[str, Any] = {"rounds": rounds}
    for kind, pairs in times.items():
        found[f"{kind} seconds"] = statistics.median(wall for wall, _ in pairs)
        found[f"{kind} CPU seconds"] = statistics.median(cpu for _, cpu in pairs)
        found[f"{kind} all"] = [round(wall, 4) for wall, _ in pairs]
    return found


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    world = join()
    alone, shared = Work(options, ALONE), Work(options, world)
    if world.rank == 0:
        same = torch.equal(alone.removals(), shared.removals())
    else:
        same = shared.removals() is not None
    net = shared.net
    flat = torch.zeros(
        sum(weight.numel() for weight in net.parameters())
        + sum(buffer.numel() for buffer in net.buffers())
        + len(list(net.parameters()))
        + 5
    )
    result = {
        "environment": environment(),
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
        "load average": os.getloadavg(),
        "same removals": same,
        "bytes of a weight step": 4 * flat.numel(),
        "sum seconds": statistics.median(timed(lambda: world.sum([flat]))[0] for _ in range(20)),
        "step": measured(alone, shared, options.rounds, "step"),
        "removals": measured(alone, shared, options.rounds, "removals"),
    }
    if world.rank == 0:
        print(json.dumps(result, indent=2))
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    leave()


if __name__ == "__main__":
    main()

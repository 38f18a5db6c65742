# SPDX-License-Identifier: Apache-2.0
"""How much faster a raced decision is than the loop of forwards that DARTS-PT ships.

Trains a supernet, then decides every edge of every cell type by a race on the loss, at several
epochs. Beside each decision, with both in turns, one candidate is evaluated on one batch by eager
modules in NCHW, as shipped; the loop would do so for every candidate on every batch. Writes a JSON
file after every decision and prints the medians.

    python bench/experiments/race_speed.py --data CIFAR10_FOLDER --limit 10000 --epochs 3 \\
        --at 2 3 --threads 2 --json race-speed.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from race import Pool, supernet_arguments, train

from darts_fast import __version__
from darts_fast.backend import use_backend
from darts_fast.files import atomic_write
from darts_fast.nn import Supernet
from darts_fast.search import Search
from darts_fast.selection import PerturbationConfig, PerturbationSelection, RaceConfig


def arguments() -> argparse.Namespace:
    parser = supernet_arguments(__doc__)
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--margin", type=float, help="in nats [that of RaceConfig]")
    return parser.parse_args()


def eager_forward(net: Supernet, batches: Pool, cell_type: str, edge: int, number: int) -> float:
    """Seconds of one removal on one batch; which ones depends on the number."""
    images, _ = batches[number % len(batches)]
    images = images.contiguous()
    table = net.edge_weights()[cell_type].detach().clone()
    table[edge, number % net.space.num_ops] = 0
    start = time.perf_counter()
    with torch.no_grad(), use_backend("reference"):
        net(images, weights={cell_type: table})
    return time.perf_counter() - start


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    race = RaceConfig(error=args.error, margin=args.margin)
    decisions: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "arguments": {k: v for k, v in vars(args).items() if k not in ("data", "json")},
        "darts_fast": __version__,
        "torch": torch.__version__,
        "margin": race.margin_of("loss"),
        "decisions": decisions,
    }
    start = time.perf_counter()

    def decide(search: Search, batches: Pool, epoch: int) -> None:
        net, images = search.net, sum(len(labels) for _, labels in batches)
        shipped = copy.deepcopy(net).to(memory_format=torch.contiguous_format).train()
        eager_forward(shipped, batches, net.space.cell_types[0], 0, 0)  # warms up
        config = PerturbationConfig(proj_crit="loss", seed=args.seed, race=race)
        selection = PerturbationSelection(net, batches, config)
        for cell_type in net.space.cell_types:
            for edge in range(net.space.num_edges):
                eager = eager_forward(shipped, batches, cell_type, edge, len(decisions))
                before = time.perf_counter()
                decision = selection.decide_op(cell_type, edge)
                raced = time.perf_counter() - before
                candidates = len(decision.candidates[0])
                loop = eager * candidates * images / args.batch_size
                decisions.append(
                    {
                        "epoch": epoch,
                        "cell_type": cell_type,
                        "edge": edge,
                        "outcome": decision.outcomes[0],
                        "images": sum(decision.images_used[0]) / (candidates * images),
                        "eager_forward_seconds": eager,
                        "loop_seconds": loop,
                        "race_seconds": raced,
                        "x": loop / raced,
                    }
                )
                result.update(pool_images=images, medians=medians(decisions))
                write()
                print(f"{len(decisions)}: {decisions[-1]}", flush=True)

    def write() -> None:
        result["seconds"] = time.perf_counter() - start
        atomic_write(Path(args.json), json.dumps(result, indent=1) + "\n")

    result["valid_acc"] = train(args, decide)
    write()
    print(f"{len(decisions)} decisions, medians: {result['medians']}")


def medians(decisions: list[dict[str, Any]]) -> dict[str, float]:
    names = ("images", "loop_seconds", "race_seconds", "x")
    return {name: statistics.median(one[name] for one in decisions) for name in names}


if __name__ == "__main__":
    main()

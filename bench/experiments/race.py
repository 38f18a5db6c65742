# SPDX-License-Identifier: Apache-2.0
"""How races decide on a real supernet: agreement with the full pass, undecided, images saved.

Trains a supernet, scores every removal of every edge on the whole pool at several epochs, and
replays races on those scores in many random orders: a race sees scores and nothing else, so a
replay is the race. Writes a JSON file and prints a markdown table.

    python bench/experiments/race.py --data CIFAR10_FOLDER --json race.json
    python bench/experiments/race.py --data digits --channels 4 --epochs 4 --json race.json

One decision is one edge (of one cell type, after one of the epochs). Columns: wrong, the share of
races whose winner is worse than the full pass's by more than the margin; same, the share with the
same winner; exhausted and undecided, those that needed the whole pool or ran into --max_batches;
images, the share of the full pass's images that was used; x, its inverse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_fast import __version__
from darts_fast.data import fixed_batches, load_data
from darts_fast.nn import build_supernet
from darts_fast.search import Search, SearchConfig
from darts_fast.seeding import seed_everything
from darts_fast.selection import RaceConfig, race, removal_scores

Pool = list[tuple[Tensor, Tensor]]

# (criterion, bound, margin in nats or percentage points)
CASES = (
    ("loss", "mixture", 0.0),
    ("loss", "mixture", 0.005),
    ("loss", "mixture", 0.01),
    ("loss", "mixture", 0.02),
    ("acc", "mixture", 0.0),
    ("acc", "mixture", 0.5),
    ("acc", "mixture", 1.0),
    ("acc", "bernstein", 1.0),
)


def supernet_arguments(description: str) -> argparse.ArgumentParser:
    """A parser for what `train` needs, and for how the experiment runs."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data", required=True, help="digits, digits16 or a path")
    parser.add_argument("--space", default="s5")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--at", type=int, nargs="+", help="epochs to score after [last two fifths]")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=0.025)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--images", type=int, help="of the pool [all of the validation half]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", required=True)
    return parser


def arguments() -> argparse.Namespace:
    parser = supernet_arguments(__doc__)
    parser.add_argument("--draws", type=int, default=20, help="random orders per decision")
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--max_batches", type=int)
    return parser.parse_args()


def train(args: argparse.Namespace, score: Callable[[Search, Pool, int], None]) -> list[float]:
    """Trains a supernet; calls `score` with its search, the fixed pool and the epoch after each of
    those in `args.at`. Returns the validation accuracies of all epochs.
    """
    wanted = args.at or [max(1, round(0.6 * args.epochs)), args.epochs]
    data = load_data(args.data, limit=args.limit)
    seed_everything(args.seed)
    net = build_supernet(
        args.space, channels=args.channels, num_classes=data.num_classes, layers=args.layers
    )
    config = SearchConfig(
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    search = Search(net, data, config, select="magnitude")
    pool = search.trainer.valid
    pool = pool.take(min(args.images or len(pool), len(pool)))
    batches = fixed_batches(pool, data.plain, args.batch_size)

    def snapshot(epoch: int) -> None:
        if epoch + 1 in wanted:
            score(search, batches, epoch + 1)

    search.snapshot = snapshot
    search.run()
    return [epoch["valid_acc"] for epoch in search.history]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score; returns decisions, each with its per-batch scores."""
    decisions: list[dict[str, Any]] = []
    sizes: list[int] = []

    def score(search: Search, batches: Pool, epoch: int) -> None:
        sizes[:] = [len(labels) for _, labels in batches]
        for cell_type in search.net.space.cell_types:
            start = time.perf_counter()
            scores = removal_scores(search.net, batches, cell_type=cell_type, seed=args.seed)
            print(
                f"epoch {epoch} {cell_type}: {scores.images} images, accuracy "
                f"{scores.base.accuracy:.2f} %, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            decisions.extend(
                {
                    "loss": scores.batch_loss[edge].numpy(),
                    "correct": scores.batch_correct[edge].numpy(),
                }
                for edge in range(search.net.space.num_edges)
            )

    accuracy = train(args, score)
    return {"decisions": decisions, "sizes": sizes, "accuracy": accuracy}


def replay(measured: dict[str, Any], case: tuple[str, str, float], args: Any) -> dict[str, Any]:
    """Races of one kind on all decisions in `args.draws` orders each."""
    criterion, bound, margin = case
    config = RaceConfig(error=args.error, bound=bound, margin=margin, max_batches=args.max_batches)
    sizes = measured["sizes"]
    wrong = same = exhausted = undecided = 0
    shares = []
    for number, decision in enumerate(measured["decisions"]):
        scores = decision["loss"] if criterion == "loss" else -decision["correct"]
        means = scores.sum(1) / sum(sizes)
        best = int(means.argmax())
        for draw in range(args.draws):
            order = np.random.default_rng([args.seed, number, draw]).permutation(len(sizes))
            result = race(
                lambda batch, rows, scores=scores: scores[rows, batch],
                sizes,
                order.tolist(),
                len(scores),
                config,
                margin=config.margin_of(criterion),
                counts=criterion == "acc",
            )
            gap = means[best] - means[result.winner]
            wrong += gap > config.margin_of(criterion) + 1e-12
            same += gap <= 1e-12
            exhausted += result.outcome == "exhausted"
            undecided += result.outcome == "undecided"
            shares.append(result.share)
    count = len(shares)
    return {
        "criterion": criterion,
        "bound": bound,
        "margin": margin,
        "races": count,
        "wrong": wrong / count,
        "same": same / count,
        "exhausted": exhausted / count,
        "undecided": undecided / count,
        "images": float(np.mean(shares)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| criterion | bound | margin | wrong | same | exhausted | undecided | images | x |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = "nats" if row["criterion"] == "loss" else "%"
        shares = [row[name] for name in ("wrong", "same", "exhausted", "undecided", "images")]
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(
            f"| {row['criterion']} | {row['bound']} | {row['margin']:g} {unit} | {cells} | "
            f"{1 / row['images']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    measured = measure(args)
    rows = [replay(measured, case, args) for case in CASES]
    result = {
        "arguments": vars(args),
        "darts_fast": __version__,
        "torch": torch.__version__,
        "decisions": len(measured["decisions"]),
        "pool": {"images": sum(measured["sizes"]), "batches": len(measured["sizes"])},
        "valid_acc": measured["accuracy"],
        "seconds": time.perf_counter() - start,
        "default": asdict(RaceConfig()),
        "rows": rows,
    }
    Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    pool = result["pool"]
    print(
        f"\n{result['decisions']} decisions, {args.draws} orders each, pool of {pool['images']} "
        f"images in {pool['batches']} batches, error rate {args.error:g}\n\n{table(rows)}\n"
    )


if __name__ == "__main__":
    main()

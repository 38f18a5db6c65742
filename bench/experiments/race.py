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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from darts_fast import __version__
from darts_fast.data import fixed_batches, load_data
from darts_fast.nn import build_supernet
from darts_fast.search import Search, SearchConfig
from darts_fast.seeding import seed_everything
from darts_fast.selection import RaceConfig, race, removal_scores
from darts_fast.selection.scoring import Question, full_pass, raced

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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    parser.add_argument("--draws", type=int, default=20, help="random orders per decision")
    parser.add_argument("--error", type=float, default=0.05)
    parser.add_argument("--max_batches", type=int)
    parser.add_argument("--timed", type=int, default=2, help="decisions also run both ways, timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", required=True)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and score; returns decisions, each with its per-batch scores, and timings."""
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
    wanted = args.at or [max(1, round(0.6 * args.epochs)), args.epochs]
    decisions: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []

    def score(epoch: int) -> None:
        if epoch + 1 not in wanted:
            return
        for cell_type in net.space.cell_types:
            start = time.perf_counter()
            scores = removal_scores(net, batches, cell_type=cell_type, seed=args.seed)
            print(
                f"epoch {epoch + 1} {cell_type}: {scores.images} images, accuracy "
                f"{scores.base.accuracy:.2f} %, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            for edge in range(net.space.num_edges):
                decisions.append(
                    {
                        "epoch": epoch + 1,
                        "cell_type": cell_type,
                        "edge": edge,
                        "loss": scores.batch_loss[edge].numpy(),
                        "correct": scores.batch_correct[edge].numpy(),
                    }
                )
        if epoch + 1 == wanted[-1]:
            timings.extend(timed(net, batches, edge, args) for edge in range(args.timed))

    search.snapshot = score
    search.run()
    return {
        "decisions": decisions,
        "sizes": [len(labels) for _, labels in batches],
        "timings": timings,
        "accuracy": [epoch["valid_acc"] for epoch in search.history],
    }


def timed(net: Any, batches: Any, edge: int, args: argparse.Namespace) -> dict[str, Any]:
    """One decision by loss, in full and raced, with the evaluator that selections use."""
    cell_type = net.space.cell_types[0]
    weights = net.edge_weights()[cell_type].detach()
    tables = []
    for op in range(net.space.num_ops):
        table = weights.clone()
        table[edge, op] = 0
        tables.append({cell_type: table})
    question = Question("loss", True, f"{cell_type} edge {edge}")
    start = time.perf_counter()
    full = full_pass(net, batches, tables, question, seed=args.seed, between=None)
    middle = time.perf_counter()
    quick = raced(
        net,
        batches,
        tables,
        question,
        RaceConfig(error=args.error),
        seed=args.seed,
        stream=f"edge {edge}",
        between=None,
    )
    end = time.perf_counter()
    return {
        "edge": edge,
        "full_seconds": middle - start,
        "raced_seconds": end - middle,
        "same": full.best == quick.best,
        "images": quick.images,
        "outcome": quick.outcome,
    }


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
        "timings": measured["timings"],
        "default": asdict(RaceConfig()),
        "rows": rows,
    }
    Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    pool = result["pool"]
    print(
        f"\n{result['decisions']} decisions, {args.draws} orders each, pool of {pool['images']} "
        f"images in {pool['batches']} batches, error rate {args.error:g}\n\n{table(rows)}\n"
    )
    for timing in measured["timings"]:
        ratio = timing["full_seconds"] / timing["raced_seconds"]
        print(
            f"edge {timing['edge']}: full pass {timing['full_seconds']:.1f} s, race "
            f"{timing['raced_seconds']:.1f} s, x {ratio:.1f}, same winner: {timing['same']}"
        )


if __name__ == "__main__":
    main()

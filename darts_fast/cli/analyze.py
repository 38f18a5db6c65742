# SPDX-License-Identifier: Apache-2.0
"""``darts-fast analyze``: the analyses of DARTS-PT on the supernets of a finished search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from darts_fast.cli.analysed_run import (
    analysis_options,
    chosen_epoch,
    epoch_option,
    open_analysed,
    results_directory,
)
from darts_fast.cli.options import CONTEXT, with_options
from darts_fast.cli.selecting import race_config, race_options
from darts_fast.cli.steps import results_of, resume_options
from darts_fast.nn import Supernet
from darts_fast.report import (
    draw_discretization,
    draw_proposition,
    draw_strength,
    draw_trajectory,
)
from darts_fast.runs import RunDirectory
from darts_fast.search import Reporter, SearchConfig, Trainer, genotype_text
from darts_fast.seeding import generator
from darts_fast.selection import (
    CRITERIA,
    MagnitudeSelection,
    OneShotSelection,
    PerturbationConfig,
    PerturbationSelection,
    ProgressiveSelection,
    StrengthSelection,
    discretized,
    score_tables,
)
from darts_fast.selection.analysis import (
    EdgeStrengths,
    agreement,
    compare_strength,
    select_copies,
    skip_gap,
    skip_points,
)
from darts_fast.spaces import skip_connections

__all__ = ["analyze"]

METHODS = ("magnitude", "perturbation", "one_shot", "strength")


@click.group(context_settings=CONTEXT)
def analyze() -> None:
    """Analyse the supernets of a search (DARTS-PT, figures 1 to 4).

    A search keeps its trained supernet, and with --ckpt_interval those on the way to it.
    """


@analyze.command(context_settings=CONTEXT)
@analysis_options
@epoch_option
def strength(
    run_dir: str, images: int | None, out: str | None, threads: int | None, **rest: Any
) -> None:
    """Rank operations by weight and by what their removal costs (figure 2)."""
    run = open_analysed(run_dir, images, threads)
    epoch = chosen_epoch(run, rest["epoch"])
    net = run.supernet(epoch)
    rows = compare_strength(net, run.batches, seed=run.settings["seed"])
    console, directory = Console(), results_directory(run, out)
    table = Table(title=f"operation strength, supernet after epoch {epoch}")
    for name in ("cell", "compared with the rise of the loss", "Spearman", "Kendall", "same best"):
        table.add_column(name, justify="left" if len(table.columns) < 2 else "right")
    summary: dict[str, Any] = {}
    for cell_type in net.space.cell_types:
        here = [row for row in rows if row.cell_type == cell_type]
        summary[cell_type] = {}
        for column, label in (
            ("weights", "softmax(alpha)"),
            ("taylor", "first-order strength"),
            ("accuracy", "loss of accuracy"),
        ):
            found = agreement(here, column, "loss")
            summary[cell_type][column] = {k: _number(v) for k, v in found.items()}
            table.add_row(
                cell_type,
                label,
                *(f"{found[key]:.2f}" for key in ("spearman", "kendall")),
                f"{100 * found['top']:.0f} %",
            )
    console.print(table)
    for cell_type in net.space.cell_types:
        for column, label in (("weights", "weight"), ("loss", "strength")):
            best = Counter(
                row.ops[getattr(row, column).index(max(getattr(row, column)))]
                for row in rows
                if row.cell_type == cell_type
            )
            words = ", ".join(f"{name} {count}" for name, count in best.most_common())
            console.print(f"{cell_type}, best by {label}: {words}", soft_wrap=True)
            summary[cell_type][f"best by {label}"] = dict(best)
    directory.write_json(
        "strength.json",
        {"epoch": epoch, "summary": summary, "edges": [asdict(row) for row in rows]},
    )
    picture = directory.path / "strength.png"
    draw_strength(rows, net.space, picture, title=f"{run.title}, epoch {epoch}")
    console.print(f"picture: {picture}", soft_wrap=True)


@analyze.command(context_settings=CONTEXT)
@analysis_options
@epoch_option
@click.option(
    "--op",
    help="Compare the skip connection with this operation.  [default: the strongest convolution]",
)
def proposition(
    run_dir: str, images: int | None, out: str | None, threads: int | None, **rest: Any
) -> None:
    """Measure why skip connections gain weight (proposition 1 and figure 3)."""
    run = open_analysed(run_dir, images, threads)
    epoch = chosen_epoch(run, rest["epoch"])
    points = skip_points(run.supernet(epoch), run.batches[0][0], op=rest["op"])
    if not points:
        raise ValueError("proposition: some edge must have a skip connection and the operation")
    gaps = []
    for kept in run.epochs:
        net = run.supernet(kept)
        score = score_tables(net, run.batches, [{}], seed=run.settings["seed"]).score(0)
        gaps.append((kept, score.accuracy, skip_gap(net)))
    console, directory = Console(), results_directory(run, out)
    smaller = sum(point.skip_error < point.op_error for point in points)
    ahead = sum(point.predicted > 0.5 for point in points)
    console.print(
        f"skip connection nearer to the shared map than the operation: {smaller} of {len(points)} "
        f"edges; optimal share above one half: {ahead}; mean optimal share "
        f"{sum(p.predicted for p in points) / len(points):.3f}, actual "
        f"{sum(p.actual for p in points) / len(points):.3f}",
        soft_wrap=True,
    )
    for kept, accuracy, gap in gaps:
        console.print(f"epoch {kept}: accuracy {accuracy:.2f} %, lead of the skip {gap:+.4f}")
    directory.write_json(
        "proposition.json",
        {
            "epoch": epoch,
            "points": [asdict(point) for point in points],
            "gaps": [{"epoch": e, "accuracy": a, "skip_gap": _number(g)} for e, a, g in gaps],
        },
    )
    picture = directory.path / "proposition.png"
    draw_proposition(points, gaps, picture, title=f"{run.title}, epoch {epoch}")
    console.print(f"picture: {picture}", soft_wrap=True)


@analyze.command(context_settings=CONTEXT)
@analysis_options
@epoch_option
@click.option("--edges", type=click.IntRange(min=1), default=3, help="How many, drawn at random.")
@click.option("--tune_epochs", type=click.IntRange(min=1), default=5, help="Of every operation.")
@resume_options
def discretization(
    run_dir: str, images: int | None, out: str | None, threads: int | None, **rest: Any
) -> None:
    """Discretise random edges to each operation, tune, and compare with weights (figure 1)."""
    run = open_analysed(run_dir, images, threads)
    epoch = chosen_epoch(run, rest["epoch"])
    net, seed = run.supernet(epoch), run.settings["seed"]
    cell_type = net.space.cell_types[0]
    drawn = torch.randperm(net.space.num_edges, generator=generator(seed, "edges to discretise"))
    edges = sorted(drawn[: rest["edges"]].tolist())
    every = compare_strength(net, run.batches, seed=seed)
    rows = [row for row in every if row.cell_type == cell_type and row.edge in edges]
    console, directory = Console(), results_directory(run, out)

    def discretize(row: EdgeStrengths, pause: Callable[[], None]) -> list[float]:
        def converge(twin: Supernet) -> None:
            trainer = Trainer(twin, run.data, SearchConfig.from_mapping(run.settings))
            trainer.start_tuning()
            for _ in range(rest["tune_epochs"]):
                trainer.run_epoch(Reporter(), pause)

        found = discretized(
            net, run.batches, converge, cell_type=cell_type, edge=row.edge, seed=seed, between=pause
        )
        accuracies = [score.accuracy for _, score, _ in found]
        words = ", ".join(
            f"{op} {accuracy:.2f} % (weight {weight:.2f}, strength {loss:+.3f})"
            for op, accuracy, weight, loss in zip(
                row.ops, accuracies, row.weights, row.loss, strict=True
            )
        )
        console.print(f"{cell_type} edge {row.edge}: {words}", soft_wrap=True, highlight=False)
        return accuracies

    settings = {
        "epoch": epoch,
        "images": images,
        "edges": rest["edges"],
        "tune_epochs": rest["tune_epochs"],
    }
    accuracies = results_of("discretization", directory, rows, discretize, settings)
    directory.write_json(
        "discretization.json",
        {
            "epoch": epoch,
            "tune_epochs": rest["tune_epochs"],
            "edges": [
                {**asdict(row), "discretized_accuracy": values}
                for row, values in zip(rows, accuracies, strict=True)
            ],
        },
    )
    picture = directory.path / "discretization.png"
    draw_discretization(rows, accuracies, net.space, picture, title=f"{run.title}, epoch {epoch}")
    console.print(f"picture: {picture}", soft_wrap=True)


@analyze.command(context_settings=CONTEXT)
@analysis_options
@with_options(*race_options)
@resume_options
@click.option(
    "--select",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    default=("magnitude", "perturbation"),
    help="May be given several times.",
)
@click.option("--proj_crit", type=click.Choice(CRITERIA), default="loss")
@click.option(
    "--table",
    metavar="FILE",
    help="JSON object from architecture to accuracy, for nasbench201: accuracies when trained.",
)
def trajectory(
    run_dir: str, images: int | None, out: str | None, threads: int | None, **rest: Any
) -> None:
    """Select from every supernet kept along the search (figure 4); nothing is tuned."""
    run = open_analysed(run_dir, images, threads)
    known = (
        None
        if rest["table"] is None
        else RunDirectory(run.path).read_json(str(Path(rest["table"]).absolute()))
    )
    config = PerturbationConfig(
        proj_intv=0,
        proj_crit=rest["proj_crit"],
        seed=run.settings["seed"],
        race=race_config(rest),
    )
    console, directory = Console(), results_directory(run, out)

    def select_at(epoch: int, pause: Callable[[], None]) -> list[dict[str, Any]]:
        makers: dict[str, Callable[[Supernet], ProgressiveSelection]] = {
            "magnitude": partial(MagnitudeSelection, proj_intv=0, seed=config.seed),
            "perturbation": lambda net: PerturbationSelection(
                net, run.batches, config, between=pause
            ),
            "one_shot": lambda net: OneShotSelection(net, run.batches, config, between=pause),
            "strength": lambda net: StrengthSelection(net, run.batches, between=pause),
        }
        methods = {name: makers[name] for name in rest["methods"]}
        found = select_copies(run.supernet(epoch), run.batches, methods, seed=config.seed)
        points = []
        for name, (genotype, score) in found.items():
            text = genotype_text(genotype)
            if known is not None and text not in known:
                raise ValueError(f"--table: must have every architecture, got none for {text}")
            point = {
                "epoch": epoch,
                "method": name,
                "genotype": text,
                "accuracy": score.accuracy if known is None else float(known[text]),
                "skips": skip_connections(genotype),
            }
            points.append(point)
            console.print(
                f"epoch {epoch} {name}: accuracy {point['accuracy']:.2f} %, "
                f"{point['skips']} skip connections, {text}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        return points

    settings = {
        "epochs": run.epochs,
        "images": images,
        "methods": rest["methods"],
        "selection": asdict(config),
        "table": rest["table"],
    }
    found = results_of("trajectory", directory, run.epochs, select_at, settings)
    points = [point for step in found for point in step]
    directory.write_json("trajectory.json", {"points": points})
    picture = directory.path / "trajectory.png"
    label = "accuracy of the discretised supernet, %" if known is None else "accuracy, %"
    draw_trajectory(points, picture, accuracy=label, title=run.title)
    console.print(f"picture: {picture}", soft_wrap=True)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

# SPDX-License-Identifier: Apache-2.0
"""``darts-fast train``: train the network of one genotype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from darts_fast.cli.architecture import arch_option, read_architecture
from darts_fast.cli.checkpoints import Checkpoints
from darts_fast.cli.console import RunReporter
from darts_fast.cli.derive import check_derived, train_derived
from darts_fast.cli.options import (
    CONTEXT,
    common_options,
    fill_in_config,
    open_run,
    read_data,
    set_threads,
    with_cutout,
)
from darts_fast.cli.scalars import check_scalars
from darts_fast.derive.train import TrainConfig
from darts_fast.environment import environment
from darts_fast.report import draw_genotype
from darts_fast.runs import GENOTYPE, RESULTS
from darts_fast.search import genotype_text

__all__ = ["train"]

POSITIVE = click.IntRange(min=1)


@click.command(context_settings=CONTEXT)
@common_options
@arch_option
@click.option("--epochs", type=POSITIVE, default=600)
@click.option("--batch_size", type=click.IntRange(min=2), default=96)
@click.option("--init_channels", type=POSITIVE, default=36)
@click.option("--layers", type=POSITIVE, default=20, help="Cells; nasbench201: cells a stage.")
@click.option("--learning_rate", type=float, default=0.025)
@click.option("--momentum", type=float, default=0.9)
@click.option("--weight_decay", type=float, default=3e-4)
@click.option("--grad_clip", type=float, default=5.0)
@click.option("--auxiliary/--no_auxiliary", default=False, help="Auxiliary head.")
@click.option("--auxiliary_weight", type=float, default=0.4)
@click.option("--drop_path_prob", type=float, default=0.2)
@click.option("--cutout/--no_cutout", default=False)
@click.option("--cutout_length", type=click.IntRange(min=2), default=16)
@click.pass_context
def train(ctx: click.Context, **_: Any) -> None:
    """Train the network of one genotype with the DARTS recipe."""
    settings = fill_in_config(ctx)
    check_scalars(settings)
    set_threads(settings["threads"])
    if settings["arch"] is None:
        arch = next(option for option in ctx.command.params if option.name == "arch")
        raise click.MissingParameter(ctx=ctx, param=arch)
    genotype = read_architecture(settings["arch"])
    data = read_data(settings)
    cutout = settings["cutout_length"] if settings["cutout"] else 0
    data = replace(data, augmentation=with_cutout(data.augmentation, cutout, 1.0))
    config = TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        grad_clip=settings["grad_clip"],
        auxiliary_weight=settings["auxiliary_weight"],
        drop_path_prob=settings["drop_path_prob"],
        seed=settings["seed"],
    )
    sizes = {
        "channels": settings["init_channels"],
        "layers": settings["layers"],
        "auxiliary": settings["auxiliary"],
    }
    check_derived(genotype, data, **sizes)
    run = open_run(ctx, {**settings, "arch": genotype_text(genotype)})
    reporter = RunReporter(run, save_every=settings["save_every"])
    checkpoints = Checkpoints.of_command("train", run, reporter)
    with checkpoints.guarded():
        loaded: list[dict[str, Any]] = []
        if ctx.params["resume"]:
            checkpoints.load(loaded.append, previous=ctx.params["previous"])
        run.write_text(GENOTYPE, genotype_text(genotype) + "\n")
        reporter.begin(settings, resumed=bool(loaded))
        row = train_derived(
            "given",
            genotype,
            data,
            config,
            reporter,
            run,
            **sizes,
            checkpoint=checkpoints.save,
            state=loaded[0] if loaded else None,
        )
        picture = run.path / "cells.png"
        draw_genotype(genotype, picture)
        run.write_json(
            RESULTS, {"environment": environment(), "derived": [row], **reporter.spent()}
        )
    reporter.say(
        f"test accuracy {row['test_accuracy']:.2f} % "
        f"(best epoch {row['best_test_accuracy']:.2f} %), {row['parameters']:,} parameters, "
        f"{row['seconds']:.0f} s"
    )
    reporter.say(f"network: {run.path / row['network']}")
    reporter.say(f"picture: {picture}")

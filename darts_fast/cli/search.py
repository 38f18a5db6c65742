# SPDX-License-Identifier: Apache-2.0
"""``darts-fast search``: supernet, selection and, on request, training of what was found."""

from __future__ import annotations

from typing import Any

import click

from darts_fast.cli.checkpoints import Checkpoints, following, go_on_command
from darts_fast.cli.console import RunReporter, SignalReporter
from darts_fast.cli.limiting import limit_options, limits_of
from darts_fast.cli.method_flags import method_flags
from darts_fast.cli.options import (
    CONTEXT,
    common_options,
    fill_in_config,
    open_run,
    read_search_data,
    set_threads,
    with_options,
)
from darts_fast.cli.pipeline import Pipeline
from darts_fast.cli.scalars import check_scalars
from darts_fast.cli.selecting import selection_options
from darts_fast.distributed import World, join, leave
from darts_fast.runs import RunDirectory
from darts_fast.search import METHODS, SAMPLINGS
from darts_fast.spaces import SPACES

__all__ = ["search"]

POSITIVE = click.IntRange(min=1)


supernet_options = with_options(
    click.option(
        "--space", "--search_space", "space", type=click.Choice(list(SPACES)), default="s5"
    ),
    click.option("--method", type=click.Choice(list(METHODS)), default="darts"),
    click.option("--init_channels", type=POSITIVE, default=16),
    click.option("--layers", type=POSITIVE, default=8, help="Cells; nasbench201: cells a stage."),
    click.option("--epochs", type=click.IntRange(min=0), default=50),
    click.option("--batch_size", type=click.IntRange(min=2), default=64),
    click.option("--learning_rate", type=float, default=0.025),
    click.option("--learning_rate_min", type=float, default=0.001),
    click.option("--momentum", type=float, default=0.9),
    click.option("--weight_decay", type=float, default=3e-4),
    click.option("--grad_clip", type=float, default=5.0),
    click.option("--arch_learning_rate", type=float, default=3e-4),
    click.option("--arch_weight_decay", type=float, default=1e-3),
    click.option(
        "--train_portion", type=float, default=0.5, help="Share of the images for the weights."
    ),
    click.option(
        "--stratified/--no_stratified",
        default=False,
        help="Cut that share from each class, not from the whole in index order.",
    ),
    click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        default="replacement",
        help="replacement: a fresh draw every step, as published; epoch: a pass over the images.",
    ),
    click.option("--cutout/--no_cutout", default=False, help="In the search."),
    click.option("--cutout_length", type=click.IntRange(min=2), default=16),
    click.option("--cutout_prob", type=click.FloatRange(0, 1), default=1.0),
    click.option(
        "--valid_freq",
        type=click.IntRange(min=0),
        default=1,
        help="Epochs between evaluations on the validation half; 0: never.",
    ),
    click.option("--report_freq", type=POSITIVE, default=50, help="Steps between log lines."),
    click.option(
        "--ckpt_interval",
        type=click.IntRange(min=0),
        default=0,
        help="Keep the supernet of every so many epochs, for analyze; 0: the trained one only.",
    ),
)

derive_options = with_options(
    click.option(
        "--derive",
        is_flag=True,
        help="Train the found network, the magnitude-selected and a random one alike, and compare.",
    ),
    click.option("--derive_epochs", type=POSITIVE, default=600),
    click.option("--derive_channels", type=POSITIVE, default=36),
    click.option("--derive_layers", type=POSITIVE, default=20),
    click.option("--derive_batch_size", type=click.IntRange(min=2), default=96),
    click.option("--derive_learning_rate", type=float, default=0.025),
    click.option("--derive_weight_decay", type=float, default=3e-4),
    click.option("--derive_cutout/--no_derive_cutout", default=False, help="Of --cutout_length."),
    click.option("--drop_path_prob", type=float, default=0.2, help="Of the derived network."),
    click.option("--auxiliary/--no_auxiliary", default=False, help="Auxiliary head."),
    click.option("--auxiliary_weight", type=float, default=0.4),
)


@click.command(context_settings=CONTEXT)
@common_options
@supernet_options
@with_options(*selection_options, *limit_options)
@derive_options
@method_flags
@click.pass_context
def search(ctx: click.Context, **_: Any) -> None:
    """Train a supernet and select an architecture from it.

    The defaults are those of the DARTS and DARTS-PT code. The run's directory gets log.txt,
    config.json, genotype.txt, results.json, the last two checkpoints and pictures of the cells.
    Under torchrun, as python -m darts_fast search, several processes share search and selection.
    """
    world = join()
    ctx.call_on_close(leave)
    settings = world.first(lambda: fill_in_config(ctx))
    with world.together():  # checks everything before a directory is made
        check_scalars(settings)
        set_threads(settings["threads"])
        data = read_search_data(settings)
    limits = world.first(lambda: limits_of(settings, data))  # one process measures for all
    with world.together():
        pipeline = Pipeline(settings, data, world, limits)
    run: RunDirectory | None = None

    def opened() -> str:
        nonlocal run
        run = open_run(ctx, settings)
        return str(run.path)

    path = world.first(opened)
    if run is None:
        _follow(pipeline, world, go_on_command("search", path))
    else:
        _lead(ctx, pipeline, world, RunReporter(run, save_every=settings["save_every"]))


def _lead(ctx: click.Context, pipeline: Pipeline, world: World, reporter: RunReporter) -> None:
    """The run, in the process that has its directory."""
    checkpoints = Checkpoints.of_command("search", reporter.run, reporter)
    loaded: Any = None

    def restore(state: Any) -> None:
        nonlocal loaded
        pipeline.load_state_dict(state)
        loaded = state

    def begin() -> Any:
        if not ctx.params["resume"] or not checkpoints.load(
            restore, previous=ctx.params["previous"]
        ):
            pipeline.begin(checkpoints)
        return loaded

    with checkpoints.guarded():
        world.first(begin)
        pipeline.run(checkpoints)


def _follow(pipeline: Pipeline, world: World, go_on: str) -> None:
    """Search and selection in each other process."""
    reporter = SignalReporter()
    with following(reporter, go_on):
        loaded = world.first(lambda: None)
        if loaded is not None:
            pipeline.load_state_dict(loaded)
        pipeline.follow(reporter)

# SPDX-License-Identifier: Apache-2.0
"""``darts-fast select``: another selection from the supernet of a search, finished or stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from darts_fast.cli.checkpoints import Checkpoints, of_this_run
from darts_fast.cli.console import RunReporter
from darts_fast.cli.limiting import cost_options, limits_of
from darts_fast.cli.options import (
    CONTEXT,
    META,
    NOT_SAVED,
    fill_in_config,
    open_run,
    read_search_data,
    run_options,
    set_threads,
    with_options,
)
from darts_fast.cli.pipeline import SEARCHED, SUPERNET, Pipeline
from darts_fast.cli.scalars import check_scalars
from darts_fast.cli.search import search
from darts_fast.cli.selecting import method_options
from darts_fast.runs import CHECKPOINT, CONFIG, RunDirectory, RunDirectoryError
from darts_fast.selection import SELECTIONS

__all__ = ["select"]

# Settings of the search that a selection has instead of its own.
_NOT_TAKEN: Mapping[str, Any] = {
    "derive": False,
    "early_stop": "none",
    "max_skips": None,
    "ckpt_interval": 0,
}


@click.command(context_settings=CONTEXT)
@click.argument("run", metavar="RUN", required=False)
@click.option(
    "--method", "--select", "select", type=click.Choice(list(SELECTIONS)), default="perturbation"
)
@with_options(*method_options, *cost_options)
@click.option(
    "--derive_channels", type=click.IntRange(min=1), help="Of the limits.  [default: of RUN]"
)
@click.option(
    "--derive_layers", type=click.IntRange(min=1), help="Of the limits.  [default: of RUN]"
)
@click.option("--data", metavar="PATH", help="Where the images of RUN are now.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the selection.  [default: of RUN]")
@run_options
@click.pass_context
def select(ctx: click.Context, **_: Any) -> None:
    """Select an architecture from the supernet of a search.

    RUN is the directory of a search that has ended or was stopped, or one file of a supernet in it:
    searched.pt, checkpoint.pt or supernet-NNN.pt. It is only read. The result goes to a directory
    of its own, with the files that a search leaves there: darts-fast train --arch reads its
    genotype.txt, darts-fast report the whole. Of a stopped search the supernet is taken as it is.
    """
    settings = fill_in_config(ctx)
    check_scalars(settings)
    if ctx.params["resume"]:
        searched = RunDirectory.open(ctx.params["save"]).read_json(CONFIG)["search"]
        state = None
    else:
        if settings["run"] is None:
            raise click.MissingParameter(ctx=ctx, param=ctx.command.params[0])
        searched, state = _read(Path(settings["run"]))
    for name in ("data", "seed", "derive_channels", "derive_layers"):
        settings[name] = searched[name] if settings[name] is None else settings[name]
    joined = {**searched, **settings, **_NOT_TAKEN}
    if settings["run"] is not None and _is_at(ctx.params["save"], Path(settings["run"])):
        raise ValueError("--save: name another directory than that of RUN, which is only read")
    set_threads(settings["threads"])
    data = read_search_data(joined)
    pipeline = Pipeline(joined, data, limits=limits_of(joined, data))
    if state is not None:
        with of_this_run(f"{settings['run']}: its supernet"):
            pipeline.search.begin_selection(state)
    run = open_run(ctx, {**settings, "search": searched})
    reporter = RunReporter(run, save_every=settings["save_every"])
    checkpoints = Checkpoints.of_command("select", run, reporter)
    with checkpoints.guarded():
        if not ctx.params["resume"]:
            pipeline.begin(checkpoints)
        elif not checkpoints.load(pipeline.load_state_dict, previous=ctx.params["previous"]):
            raise RunDirectoryError(
                f"run directory {run.path}: was stopped before its first checkpoint; select again "
                "with --overwrite"
            )
        if state is not None and "trainer" not in state:
            reporter.say("warning: RUN has kept weights alone; tuning has new optimizers and draws")
        pipeline.run(checkpoints)


def _is_at(save: str | None, run: Path) -> bool:
    """Whether the result would go where the search is."""
    folder = run.parent if run.is_file() else run
    return save is not None and Path(save).resolve() == folder.resolve()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a search, and a state of it before selection, with "net" at least.

    Raises:
        RunDirectoryError: there is no search, or no such state of it.
    """
    run = RunDirectory.open(path.parent if path.is_file() else path)
    loaded = run.read_json(CONFIG)
    if not isinstance(loaded, dict) or loaded.get("command") != "search":
        raise RunDirectoryError(f"run directory {run.path}: must be of a search, not of another")
    # An earlier version may not have saved all that there is now.
    defaults = search.make_context("search", []).params
    settings = {**defaults, **loaded}
    for name in (*NOT_SAVED, *META):
        settings.pop(name, None)
    names = [path.name] if path.is_file() else [SEARCHED, CHECKPOINT, *_supernets(run)]
    refused = RunDirectoryError(f"run directory {run.path}: holds no supernet of a search")
    for name in names:
        if (run.path / name).is_file():
            try:
                return settings, _state(run, name, settings)
            except _SelectedError as error:
                refused = error
    raise refused


class _SelectedError(RunDirectoryError):
    """A state from after the beginning of a selection."""


def _supernets(run: RunDirectory) -> list[str]:
    """Files of kept supernets, the last epoch first."""
    pattern = SUPERNET.format(epoch=0).replace("000", "*")
    return sorted((path.name for path in run.path.glob(pattern)), reverse=True)


def _state(run: RunDirectory, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    saved = run.load_checkpoint(name)
    with of_this_run(str(run.path / name)):
        if name == SEARCHED:
            return dict(saved)
        if "environment" not in saved:
            return {"net": saved}
        state = dict(saved["state"]["search"])
    if state["magnitude"] is not None and settings["select"] != "magnitude":
        raise _SelectedError(
            f"{run.path / name}: the run was selecting already, its supernet is no longer as it "
            f"was trained; name {SEARCHED} or a supernet-NNN.pt of it"
        )
    return state

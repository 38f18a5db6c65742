# SPDX-License-Identifier: Apache-2.0
"""``darts-fast compare``: searches with several methods, selections and seeds, and their table."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from darts_fast.cli.console import Stopped
from darts_fast.cli.grid import GridRun, run_grid
from darts_fast.cli.options import CONTEXT, debug_option
from darts_fast.cli.search import search
from darts_fast.files import atomic_write
from darts_fast.report.comparison import (
    METRICS,
    Group,
    comparison_figure,
    groups_of,
    runs_csv,
    summary_csv,
)
from darts_fast.report.run import Run
from darts_fast.report.theme import save_figure
from darts_fast.runs import RunDirectory
from darts_fast.search import METHODS
from darts_fast.selection import SELECTIONS
from darts_fast.spaces import load_accuracy_table

__all__ = ["compare"]

GRID = "compare.json"
LINE = 120  # of the table in a file or a pipe
SHOWN = ("test_accuracy", "table_accuracy", "skip_connections", "parameters", "search_seconds")
_OF_THE_GRID = ("method", "select", "seed", "save", "overwrite", "resume")


def _listed(choices: Sequence[str] | None) -> click.ParamType:
    """A comma-separated list, of the choices or of numbers from 0 up; nothing twice."""

    class Listed(click.ParamType):
        name = "list"

        def convert(
            self, value: object, param: click.Parameter | None, ctx: click.Context | None
        ) -> tuple[str, ...]:
            words = tuple(word.strip() for word in str(value).split(","))
            for word in words:
                if choices is not None and word not in choices:
                    self.fail(f"must be among {', '.join(choices)}, got {word!r}", param, ctx)
                if choices is None and not word.isdecimal():
                    self.fail(f"must be numbers from 0 up, got {word!r}", param, ctx)
            if len(set(words)) < len(words):
                self.fail(f"must not name anything twice, got {value!r}", param, ctx)
            return words

    return Listed()


@click.command(
    context_settings={**CONTEXT, "ignore_unknown_options": True},
    epilog="SEARCH_OPTIONS are those of darts-fast search, for all runs alike.",
)
@click.option("--methods", type=_listed(list(METHODS)), default="darts", metavar="A,B,...")
@click.option(
    "--selections",
    type=_listed(list(SELECTIONS)),
    default="perturbation,magnitude",
    metavar="X,Y,...",
)
@click.option("--seeds", type=_listed(None), default="0,1,2", metavar="0,1,...")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="Processes at a time.")
@click.option("--out", default="runs/compare", metavar="DIR", help="For runs, table and plot.")
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False),
    help="Results of NAS-Bench-201 (see darts_fast.spaces.NpzTable) to look up what is found.",
)
@debug_option
@click.argument("search_options", nargs=-1, type=click.UNPROCESSED)
def compare(
    methods: tuple[str, ...],
    selections: tuple[str, ...],
    seeds: tuple[str, ...],
    jobs: int,
    out: str,
    table: str | None,
    search_options: tuple[str, ...],
) -> int:
    """Search with every method, selection and seed, and compare.

    Each run is a process of its own with a directory of its own. The same command goes on where an
    earlier one has stopped: what has finished is not done again, what was interrupted goes on, and
    more methods, selections or seeds may be named.
    """
    threads = _checked(search_options)
    accuracies = None if table is None else load_accuracy_table(table)
    directory = RunDirectory(out)
    directory.path.mkdir(parents=True, exist_ok=True)
    _same_grid(directory, search_options)
    given = [*search_options]
    if not threads:
        given += ["--threads", str(max(1, (os.cpu_count() or 1) // jobs))]
    runs = [
        GridRun(
            method,
            selection,
            int(seed),
            directory.path / f"{method}-{selection}-seed{int(seed)}",
            (*given, "--method", method, "--select", selection, "--seed", seed),
        )
        for method, selection, seed in product(methods, selections, seeds)
    ]
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, LINE)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    failed, signum = run_grid(runs, jobs, say)
    done = [run for run in runs if run.finished]
    if signum is not None:
        raise Stopped(
            f"stopped with {len(done)} of {len(runs)} runs finished; the same command goes on",
            signum,
        )
    if done:
        found = [Run.read(run.path) for run in done]
        _write(groups_of(found, accuracies), directory.path, console)
    for run in failed:
        say(f"{run.name} failed: see {run.output}")
    return 1 if failed else 0


def _checked(options: Sequence[str]) -> bool:
    """Whether the options of the search say how many threads it has.

    Raises:
        ValueError: one of them is the grid's to give.
        click.UsageError: the search has no such option, or not with that value.
    """
    context = search.make_context("search", list(options))
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    for name in _OF_THE_GRID:
        if name in given:
            raise ValueError(f"compare: --{name} is given by the grid, leave it out")
    return "threads" in given


def _same_grid(directory: RunDirectory, options: Sequence[str]) -> None:
    """Write down the search options of the grid, or check that they are those of an earlier call.

    Raises:
        ValueError: they are others.
    """
    path = directory.path / GRID
    if not path.is_file():
        directory.write_json(GRID, {"search_options": list(options)})
        return
    before = directory.read_json(GRID)["search_options"]
    if before != list(options):
        raise ValueError(
            f"compare: the runs in {directory.path} have the search options "
            f"{shlex.join(before)!r}, which cannot become {shlex.join(options)!r}; "
            "name another --out"
        )


def _write(groups: Sequence[Group], out: Path, console: Console) -> None:
    """The table on the console, and all files."""
    table = Table(title="mean \u00b1 deviation over the seeds", box=None, padding=(0, 2, 0, 0))
    for name in ("method", "selection", "runs"):
        table.add_column(name, no_wrap=True)
    shown = [name for name in SHOWN if any(group.values(name) for group in groups)]
    if "test_accuracy" not in shown:
        shown.insert(0, "supernet_accuracy")
    for name in shown:
        table.add_column(METRICS[name][0], justify="right")
    for group in groups:
        texts = [group.text(name) for name in shown]
        table.add_row(group.method, group.selection, str(len(group.runs)), *texts)
    console.print(table)
    atomic_write(out / "runs.csv", runs_csv(groups))
    atomic_write(out / "summary.csv", summary_csv(groups))
    figure = comparison_figure(groups)
    for suffix in ("png", "svg", "pdf"):
        save_figure(figure, out / f"comparison.{suffix}")
    console.print(f"files: {out}", markup=False, highlight=False, soft_wrap=True)

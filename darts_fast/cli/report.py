# SPDX-License-Identifier: Apache-2.0
"""``darts-fast report``: a page on one run or several, and its figures for papers."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from darts_fast.cli.options import CONTEXT, debug_option, names_among
from darts_fast.report.page import CELLS, FORMATS, write_report
from darts_fast.report.run import open_runs

__all__ = ["report"]


@click.command(context_settings=CONTEXT)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--out",
    metavar="DIR",
    help="For page and figures.  [default: RUN/report for one run, else report]",
)
@click.option(
    "--formats",
    default=",".join(FORMATS),
    callback=names_among(FORMATS),
    help='Of the figures\' files; "" for the page alone.',
)
@click.option(
    "--cells",
    type=click.Choice(CELLS),
    default="auto",
    help="Who draws the cells; auto: Graphviz where its program dot is installed.",
)
@click.option("--title", help="Of the page.")
@debug_option
def report(
    runs: tuple[str, ...], out: str | None, formats: tuple[str, ...], cells: str, title: str | None
) -> None:
    """Make a page on runs, side by side, and its figures as files.

    RUN is the directory of a search or of a training, finished or not. The page is one HTML file
    that needs no network and no script; the figures are vector files with their fonts, fit for a
    paper.
    """
    found = open_runs(runs)
    directory = Path(out) if out else (Path(runs[0]) / "report" if len(runs) == 1 else "report")
    page = write_report(found, directory, formats=formats, cells=cells, title=title)
    Console().print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)

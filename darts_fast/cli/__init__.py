# SPDX-License-Identifier: Apache-2.0
"""The command line, ``darts-fast COMMAND``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import click

from darts_fast import __version__
from darts_fast.cli.analyze import analyze
from darts_fast.cli.bench import bench
from darts_fast.cli.compare import compare
from darts_fast.cli.console import Stopped
from darts_fast.cli.doctor import doctor
from darts_fast.cli.export import export
from darts_fast.cli.report import report
from darts_fast.cli.search import search
from darts_fast.cli.select import select
from darts_fast.cli.status import status
from darts_fast.cli.train import train
from darts_fast.distributed import RankLostError, ToldElsewhere, place
from darts_fast.reporter import NonFiniteLossError

__all__ = ["cli", "main"]

USER_ERROR = 2
FAILED = 1
KEYBOARD = 130


@dataclass
class Invocation:
    """What :func:`main` and the commands tell each other."""

    arguments: list[str]
    debug: bool = False


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Flags may be spelled with - or _. python -m darts_fast is the same command.",
)
@click.version_option(__version__, prog_name="darts-fast")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Fast differentiable architecture search: train a supernet, select from it, train what was
    found.
    """
    size = place()[1]
    if size > 1 and ctx.invoked_subcommand != "search":
        raise click.UsageError(
            f"{ctx.invoked_subcommand}: must run in one process, got {size} of torchrun"
        )


for command in (search, select, train, export, status, compare, report, analyze, bench, doctor):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: the training diverged, or another process of the run is gone. 2: an error of the
        user, told in one line (``--debug`` shows where it was raised).
    130, 143: stopped by Ctrl-C or SIGTERM with the checkpoint saved.

    Of several processes that share a run the first tells what happens to all of them alike.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    invocation = Invocation(arguments)
    try:
        result = cli.main(
            args=list(arguments),
            prog_name="darts-fast",
            standalone_mode=False,
            obj=invocation,
        )
    except ToldElsewhere:
        return USER_ERROR
    except Stopped as stopped:
        return _fail(str(stopped), stopped.status, shared=True)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped at once, without a checkpoint", KEYBOARD, shared=True)
    except click.ClickException as error:
        return _fail(error.format_message(), USER_ERROR, debug=invocation.debug, shared=True)
    except (ValueError, OSError) as error:
        return _fail(_one_line(error), USER_ERROR, debug=invocation.debug)
    except (NonFiniteLossError, FloatingPointError) as error:
        return _fail(_one_line(error), FAILED, debug=invocation.debug, shared=True)
    except RankLostError as error:
        return _fail(_one_line(error), FAILED, debug=invocation.debug)
    return result if isinstance(result, int) else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, status: int, *, debug: bool = False, shared: bool = False) -> int:
    """Tell why the process ends; `shared`: all processes of the run end so, and the first tells."""
    rank, size = place()
    if shared and rank > 0:
        return status
    if debug:
        traceback.print_exc()
    who = "" if size == 1 else f" process {rank} of {size}:"
    print(f"darts-fast:{who if not shared else ''} {message}", file=sys.stderr)
    return status

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
from darts_fast.cli.report import report
from darts_fast.cli.search import search
from darts_fast.cli.status import status
from darts_fast.cli.train import train
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
def cli() -> None:
    """Fast differentiable architecture search: train a supernet, select from it, train what was
    found.
    """


for command in (search, train, status, compare, report, analyze, bench, doctor):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: the training diverged. 2: an error of the user, told in one line (``--debug`` shows
        where it was raised).
    130, 143: stopped by Ctrl-C or SIGTERM with the checkpoint saved.
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
    except Stopped as stopped:
        return _fail(str(stopped), stopped.status)
    except (KeyboardInterrupt, click.Abort):
        return _fail("stopped at once, without a checkpoint", KEYBOARD)
    except click.ClickException as error:
        return _fail(error.format_message(), USER_ERROR, debug=invocation.debug)
    except (ValueError, OSError) as error:
        return _fail(_one_line(error), USER_ERROR, debug=invocation.debug)
    except (NonFiniteLossError, FloatingPointError) as error:
        return _fail(_one_line(error), FAILED, debug=invocation.debug)
    return result if isinstance(result, int) else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, status: int, *, debug: bool = False) -> int:
    if debug:
        traceback.print_exc()
    print(f"darts-fast: {message}", file=sys.stderr)
    return status

# SPDX-License-Identifier: Apache-2.0
"""Options that commands share, and how flags, a configuration file and a run's own configuration
are joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from darts_fast import __version__
from darts_fast.data import Augmentation
from darts_fast.runs import CONFIG, RunDirectory, RunDirectoryError, read_json

__all__ = [
    "CONTEXT",
    "Decorator",
    "common_options",
    "debug_option",
    "fill_in_config",
    "open_run",
    "set_threads",
    "with_cutout",
    "with_options",
]

# Belong to one call of the command, not to the run it describes.
NOT_SAVED = ("save", "overwrite", "resume", "config")
META = ("command", "version")

# --init-channels and --init_channels are the same flag.
CONTEXT = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "show_default": True,
    "help_option_names": ["-h", "--help"],
}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def with_options(*options: Decorator) -> Decorator:
    """Several options as one decorator; help lists them in this order."""

    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and ctx.obj is not None:
        ctx.obj.debug = True


debug_option: Decorator = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_set_debug,
    help="Show the traceback of an error.",
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--data --limit --seed --threads --save --tensorboard --overwrite --config --debug``."""
    options: list[Decorator] = [
        click.option(
            "--data",
            default="digits",
            metavar="digits|digits16|PATH",
            help="Embedded digits, a CIFAR folder (or its parent), a .npz file, or a folder with "
            "train.npz and test.npz.",
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), help="Use the first N training images only."
        ),
        click.option("--seed", default=0, type=click.IntRange(min=0), help="Of every random draw."),
        click.option(
            "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]"
        ),
        click.option(
            "--save",
            metavar="RUN_DIR",
            help="The run's directory.  [default: a new one under runs/]",
        ),
        click.option(
            "--tensorboard",
            is_flag=True,
            help="Write scalars to RUN_DIR/tensorboard; needs tensorboard or tensorboardX.",
        ),
        click.option("--overwrite", is_flag=True, help="Accept a run directory that is not empty."),
        click.option(
            "--config",
            metavar="FILE",
            help="Take settings from a run's config.json; flags given beside it win.",
        ),
        debug_option,
    ]
    return with_options(*options)(command)


def fill_in_config(ctx: click.Context) -> dict[str, Any]:
    """The settings of this call: flags given, else those of ``--config`` (or of the run to resume),
    else defaults.

    Raises:
        ValueError: the file is for another command, has an unknown setting or a value that its flag
        does not take, or
            ``--resume`` is combined with a flag that would change the run.
    """
    settings = {name: value for name, value in ctx.params.items() if name not in NOT_SAVED}
    resume = ctx.params.get("resume", False)
    if resume and ctx.params["config"] is not None:
        raise ValueError("--resume: the run has its own configuration, leave out --config")
    if resume and ctx.params["save"] is None:
        raise ValueError("--resume: name the run with --save RUN_DIR")
    if resume:
        path = RunDirectory.open(ctx.params["save"]).path / CONFIG
    elif ctx.params["config"] is not None:
        path = Path(ctx.params["config"])
    else:
        return settings
    loaded = read_json(path)
    if not isinstance(loaded, dict):
        raise RunDirectoryError(f"{path}: must be a JSON object, got {type(loaded).__name__}")
    if loaded.get("command", ctx.info_name) != ctx.info_name:
        raise RunDirectoryError(
            f"{path}: is the configuration of {loaded['command']}, not of {ctx.info_name}"
        )
    options = {option.name: option for option in ctx.command.params}
    for name, value in loaded.items():
        if name in META:
            continue
        if name not in settings:
            raise RunDirectoryError(f"{path}: no setting is called {name!r}")
        given = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        try:
            value = options[name].type_cast_value(ctx, value)
        except (click.BadParameter, TypeError) as error:
            reason = error.message if isinstance(error, click.BadParameter) else error
            raise RunDirectoryError(f"{path}: {name}: {reason}") from None
        if resume and given and name != "threads" and settings[name] != value:
            raise ValueError(
                f"--resume: the run has {name}={value}, which cannot become {settings[name]}"
            )
        if not given:
            settings[name] = value
    return settings


def open_run(ctx: click.Context, settings: dict[str, Any]) -> RunDirectory:
    """The run's directory, with its configuration written."""
    save, prefix = ctx.params["save"], str(ctx.info_name)
    if ctx.params.get("resume", False):
        return RunDirectory.open(save)
    if save is None:
        run = RunDirectory.fresh(prefix)
    else:
        run = RunDirectory.create(save, overwrite=ctx.params["overwrite"])
    run.write_json(CONFIG, {"command": prefix, "version": __version__, **settings})
    return run


def set_threads(threads: int | None) -> None:
    """Use that many CPU threads, or leave torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def with_cutout(augmentation: Augmentation, length: int | None, prob: float) -> Augmentation:
    """The augmentation with cutout of that length; None leaves it alone."""
    if length is None:
        return augmentation
    return replace(augmentation, cutout=length, cutout_prob=prob)

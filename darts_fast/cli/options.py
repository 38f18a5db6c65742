# SPDX-License-Identifier: Apache-2.0
"""Options that commands share, and how flags, a configuration file and a run's own configuration
are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from darts_fast import __version__
from darts_fast.data import Augmentation, Dataset, load_data
from darts_fast.runs import CONFIG, RunDirectory, RunDirectoryError, read_json

__all__ = [
    "CONTEXT",
    "META",
    "NOT_SAVED",
    "Decorator",
    "common_options",
    "debug_option",
    "fill_in_config",
    "image_size_option",
    "names_among",
    "open_run",
    "previous_option",
    "read_data",
    "read_search_data",
    "run_options",
    "set_threads",
    "with_cutout",
    "with_options",
]

# Belong to one call of the command, not to the run it describes.
NOT_SAVED = ("save", "overwrite", "resume", "previous", "config")
# Change no result, so a resumed run may have others.
FREE = ("threads", "save_every")
META = ("command", "version", "search")

# --init-channels and --init_channels are the same flag.
CONTEXT = {
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "show_default": True,
    "help_option_names": ["-h", "--help"],
}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def names_among(choices: Collection[str]) -> Callable[..., tuple[str, ...] | None]:
    """The callback of an option that lists names with commas between them; None stays None."""

    def read(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        for name in names:
            if name not in choices:
                raise click.BadParameter(f"must be among {', '.join(choices)}, got {name!r}")
        return names

    return read


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


previous_option: Decorator = click.option(
    "--previous", is_flag=True, help="With --resume: from the checkpoint before the last one."
)


image_size_option: Decorator = click.option(
    "--image_size",
    type=click.IntRange(min=1),
    help="Resize the centre square of every image file to this side.  [default: as they are]",
)


data_options = with_options(
    click.option(
        "--data",
        default="digits",
        metavar="digits|digits16|PATH",
        help="Embedded digits; a folder of images per class, or train and test with such "
        "folders; a folder of CIFAR (or its parent), SVHN, or train.npz and test.npz; a .npz "
        "file.",
    ),
    image_size_option,
    click.option(
        "--flip/--no_flip",
        default=None,
        help="Flip training images left-right at random.  [default: all sets but the digits]",
    ),
    click.option(
        "--limit", type=click.IntRange(min=1), help="Use the first N training images only."
    ),
    click.option("--seed", default=0, type=click.IntRange(min=0), help="Of every random draw."),
)

run_options = with_options(
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]"),
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
    click.option("--resume", is_flag=True, help="Go on with the run in --save, bit for bit."),
    previous_option,
    click.option(
        "--save_every",
        type=click.FloatRange(min=0),
        default=600.0,
        metavar="SECONDS",
        help="Time between checkpoints inside an epoch; SIGUSR1 asks for one; 0: on SIGUSR1 only.",
    ),
    click.option(
        "--config",
        metavar="FILE",
        help="Take settings from a run's config.json; flags given beside it win.",
    ),
    debug_option,
)

# Data and how it is read, seed and threads, the run's directory and its checkpoints.
common_options = with_options(data_options, run_options)


def fill_in_config(ctx: click.Context) -> dict[str, Any]:
    """The settings of this call: flags given, else those of ``--config`` (or of the run to resume),
    else defaults.

    Raises:
        ValueError: the file is for another command, has an unknown setting or a value that its flag
        does not take, or
            ``--resume`` is combined with a flag that would change the run.
    """
    settings = {name: value for name, value in ctx.params.items() if name not in NOT_SAVED}
    resume = ctx.params["resume"]
    if ctx.params["previous"] and not resume:
        raise ValueError("--previous: belongs to --resume")
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
        if resume and given and name not in FREE and settings[name] != value:
            raise ValueError(
                f"--resume: the run has {name}={value}, which cannot become {settings[name]}"
            )
        if not given:
            settings[name] = value
    return settings


def open_run(ctx: click.Context, settings: dict[str, Any]) -> RunDirectory:
    """The run's directory, locked until the command ends, with its configuration written."""
    save, prefix = ctx.params["save"], str(ctx.info_name)
    if ctx.params["resume"]:
        run = RunDirectory.open(save)
        run.lock()
    elif save is None:
        run = RunDirectory.fresh(prefix)
    else:
        run = RunDirectory.create(save, overwrite=ctx.params["overwrite"])
    ctx.call_on_close(run.unlock)
    if ctx.params["resume"]:
        return run
    run.write_json(CONFIG, {"command": prefix, "version": __version__, **settings})
    return run


def read_data(settings: Mapping[str, Any]) -> Dataset:
    """The data set of ``--data``, ``--image_size``, ``--limit`` and ``--flip``.

    ``image_size`` and ``flip`` may be missing: runs of earlier versions have not saved them.
    """
    data = load_data(
        settings["data"], limit=settings["limit"], image_size=settings.get("image_size")
    )
    flip = settings.get("flip")
    if flip is None:
        return data
    return replace(data, augmentation=replace(data.augmentation, flip=flip))


def read_search_data(settings: Mapping[str, Any]) -> Dataset:
    """As `read_data`, with the cutout of a search."""
    data = read_data(settings)
    cutout = settings["cutout_length"] if settings["cutout"] else None
    return replace(
        data, augmentation=with_cutout(data.augmentation, cutout, settings["cutout_prob"])
    )


def set_threads(threads: int | None) -> None:
    """Use that many CPU threads, or leave torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def with_cutout(augmentation: Augmentation, length: int | None, prob: float) -> Augmentation:
    """The augmentation with cutout of that length; None leaves it alone."""
    if length is None:
        return augmentation
    return replace(augmentation, cutout=length, cutout_prob=prob)

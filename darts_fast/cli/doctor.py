# SPDX-License-Identifier: Apache-2.0
"""``darts-fast doctor``: what was built, what runs, and which data is found."""

from __future__ import annotations

import platform
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from darts_fast import __version__, available_cpu_capabilities, build_info, cpu_capability
from darts_fast.backend import backend
from darts_fast.cli.options import CONTEXT, debug_option, image_size_option
from darts_fast.data import Dataset, describe_classes, load_data

__all__ = ["doctor", "facts"]


def _describe(data: Dataset) -> str:
    height, width = data.image_size
    return (
        f"{data.name}: {len(data.train)} + {len(data.test)} images of {height}x{width}, "
        f"{data.num_classes} classes"
    )


def facts(data: str | None = None, image_size: int | None = None) -> list[tuple[str, str]]:
    """Name and value of everything that a report of a problem should say.

    Raises:
        ValueError: ``data`` is given and is no data set.
    """
    cuda = torch.version.cuda or "torch built without it"
    if torch.cuda.is_available():
        cuda += f", {torch.cuda.get_device_name()}"
    rows = [
        ("darts_fast", __version__),
        ("installed at", str(Path(__file__).resolve().parents[1])),
        ("python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("torch", torch.__version__),
        ("torch capability", torch.backends.cpu.get_cpu_capability()),
        ("threads", str(torch.get_num_threads())),
        ("CUDA", cuda),
        ("backend", backend()),
        ("CPU capability", cpu_capability()),
        ("CPU capabilities", ", ".join(available_cpu_capabilities())),
    ]
    rows += [(f"built: {name}", str(value)) for name, value in build_info().items()]
    rows.append(("data digits", _describe(load_data("digits"))))
    if data is not None:
        found = load_data(data, image_size=image_size)
        line, _ = describe_classes(found.train, found.class_names)
        rows += [(f"data {data}", _describe(found)), ("", line)]
    return rows


@click.command(context_settings=CONTEXT)
@click.option("--data", metavar="PATH", help="Also read this data set.")
@image_size_option
@debug_option
def doctor(data: str | None, image_size: int | None) -> None:
    """Print build and backend facts, and check that the data can be read."""
    table = Table(show_header=False, box=None)
    for name, value in facts(data, image_size):
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)

# SPDX-License-Identifier: Apache-2.0
"""``--arch``: an architecture as users have it."""

from __future__ import annotations

from pathlib import Path

import click

from darts_fast.cli.options import Decorator
from darts_fast.runs import GENOTYPE
from darts_fast.spaces import Genotype, read_genotype

__all__ = ["arch_option", "read_architecture"]

arch_option: Decorator = click.option(
    "--arch",
    metavar="GENOTYPE|FILE[:NAME]|NAME|RUN_DIR",
    help="Genotype(...) or an architecture string as printed, a file with one (NAME: which of a "
    "genotypes.py), a known name such as DARTS_V2 or PC-DARTS, or a search's directory.",
)

SUFFIXES = (".txt", ".json", ".py", ".log")


def read_architecture(source: str) -> Genotype | str:
    """A genotype, its name or file, or a run directory with a genotype in it.

    Raises:
        ValueError: none of these; the message says what is missing or wrong.
    """
    if _is("dir", source):
        path = Path(source) / GENOTYPE
        if not path.is_file():
            raise ValueError(f"--arch: no {GENOTYPE} in the directory {source}")
        return read_genotype(path)
    if _is("file", source):
        return read_genotype(Path(source))
    file, colon, name = source.rpartition(":")
    if colon and _is("file", file):
        return read_genotype(Path(file), name)
    if (file if colon else source).endswith(SUFFIXES):
        raise ValueError(f"--arch: no such file: {file if colon else source}")
    return read_genotype(source)


def _is(kind: str, text: str) -> bool:
    """Whether a text names a file or a directory; text that can name none does not."""
    try:
        return Path(text).is_dir() if kind == "dir" else Path(text).is_file()
    except (OSError, ValueError):
        return False

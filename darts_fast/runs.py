# SPDX-License-Identifier: Apache-2.0
"""The directory of one run: log, configuration, genotype, checkpoint.

A directory that holds something is never written into unasked, and a file that exists is never half
replaced: every write goes to a temporary file in the same directory, is flushed to the disk, and
then renamed over the old one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from darts_fast.history import HISTORY

__all__ = ["RunDirectory", "RunDirectoryError", "atomic_save", "atomic_write"]

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.json"
LOG = "log.txt"
GENOTYPE = "genotype.txt"
RESULTS = "results.json"
STATUS = "status.json"


class RunDirectoryError(ValueError):
    """A run directory or a file in it cannot be used; the message names it and says what to do."""


def _sync_directory(path: Path) -> None:
    if (
        os.name == "posix"
    ):  # elsewhere a directory cannot be opened, and a rename needs no second flush
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def atomic_write(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``: readers see the old file or the new one, never a part.

    Raises:
        OSError: the file cannot be written; what was there is untouched.
    """
    _write_atomically(Path(path), lambda file: file.write(text.encode()))


def atomic_save(path: str | Path, state: object) -> None:
    """``torch.save(state)`` to ``path`` with the guarantee of :func:`atomic_write`."""
    _write_atomically(Path(path), lambda file: torch.save(state, file))


class RunDirectory:
    """Where one run keeps ``log.txt``, ``config.json``, ``genotype.txt`` and ``checkpoint.pt``.

    Use :meth:`create`, :meth:`fresh` or :meth:`open`; each says what it demands of the path.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunDirectory:
        """The directory ``path``, made if it is missing.

        ``overwrite=True`` accepts a directory that holds files: log, checkpoint and results of the
        earlier run go away at once, other files stay until the new run writes its own.

        Raises:
            RunDirectoryError: ``path`` is a file, or a non-empty directory and ``overwrite`` is
            False.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunDirectoryError(f"run directory {run.path}: it is a file; name a directory")
        run.path.mkdir(parents=True, exist_ok=True)
        if any(run.path.iterdir()):
            if not overwrite:
                raise RunDirectoryError(
                    f"run directory {run.path}: it is not empty; pass --overwrite, or --resume "
                    "to go on with it, or name another"
                )
            for name in (LOG, CHECKPOINT, GENOTYPE, RESULTS, HISTORY, STATUS):
                (run.path / name).unlink(missing_ok=True)
        return run

    @classmethod
    def fresh(cls, prefix: str, root: str | Path = "runs") -> RunDirectory:
        """A new directory ``root/prefix-YYYYmmdd-HHMMSS`` (with ``-2``, ``-3``, ... if that second
        is taken).
        """
        stem = f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
        Path(root).mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = Path(root) / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run's directory.

        Raises:
            RunDirectoryError: there is no directory at ``path``, or it holds no ``config.json``.
        """
        run = cls(path)
        if not (run.path / CONFIG).is_file():
            raise RunDirectoryError(
                f"run directory {run.path}: no {CONFIG} in it, so there is no run to go on with"
            )
        return run

    def log(self, line: str) -> None:
        """Append ``line`` to ``log.txt`` with the originals' time stamp, ``11/24 06:01:37 AM
        line``.
        """
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%m/%d %I:%M:%S %p')} {line}\n")

    def write_text(self, name: str, text: str) -> Path:
        """Write ``text`` to the file ``name`` of the directory, atomically."""
        atomic_write(self.path / name, text)
        return self.path / name

    def write_json(self, name: str, value: object) -> Path:
        """Write ``value`` as indented JSON to the file ``name`` of the directory, atomically."""
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The value in the JSON file ``name`` of the directory.

        Raises:
            RunDirectoryError: the file is missing or is not JSON.
        """
        return read_json(self.path / name)

    def save_checkpoint(self, state: object, name: str = CHECKPOINT) -> Path:
        """Save ``state`` (tensors and plain Python values) as the run's checkpoint, atomically."""
        atomic_save(self.path / name, state)
        return self.path / name

    def has_checkpoint(self, name: str = CHECKPOINT) -> bool:
        """Whether the run has left a checkpoint."""
        return (self.path / name).is_file()

    def load_checkpoint(self, name: str = CHECKPOINT) -> Any:
        """The checkpoint's state, loaded with ``weights_only=True`` onto the CPU.

        Raises:
            RunDirectoryError: there is none, or it is damaged.
        """
        path = self.path / name
        if not path.is_file():
            raise RunDirectoryError(f"checkpoint {path}: no such file")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch raise almost anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunDirectoryError(
                f"checkpoint {path}: damaged or not a checkpoint ({reason})"
            ) from error


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunDirectoryError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such file") from None
    except (ValueError, IsADirectoryError) as error:
        raise RunDirectoryError(f"{path}: not a JSON file ({error})") from error

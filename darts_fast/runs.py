# SPDX-License-Identifier: Apache-2.0
"""The directory of one run: log, configuration, genotype, the last two checkpoints.

A directory that holds something is never written into unasked, nor by two processes at a time, and
a file that exists is never half replaced (`darts_fast.files`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from darts_fast.files import (
    DamagedFileError,
    atomic_save,
    atomic_write,
    is_temporary,
    load_saved,
    remove_temporary_files,
)
from darts_fast.history import HISTORY

__all__ = ["RunDirectory", "RunDirectoryError", "read_json"]

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
CONFIG = "config.json"
LOG = "log.txt"
GENOTYPE = "genotype.txt"
RESULTS = "results.json"
STATUS = "status.json"
LOCK = ".lock"


class RunDirectoryError(ValueError):
    """A run directory or a file in it cannot be used; the message names it and says what to do."""


class RunDirectory:
    """Where one run keeps ``log.txt``, ``config.json``, ``genotype.txt`` and ``checkpoint.pt``.

    Use :meth:`create`, :meth:`fresh` or :meth:`open`; each says what it demands of the path. The
    first two take the lock of the directory, see :meth:`lock`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / LOCK, thread_local=False)
        self._sound = False  # whether the checkpoint in place is known to be whole

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunDirectory:
        """The directory ``path``, made if it is missing.

        ``overwrite=True`` accepts a directory that holds files: log, checkpoints and results of the
        earlier run go away at once, other files stay until the new run writes its own.

        Raises:
            RunDirectoryError: ``path`` is a file, a non-empty directory and ``overwrite`` is False,
            in use, or cannot be written to.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunDirectoryError(f"run directory {run.path}: it is a file; name a directory")
        run.path.mkdir(parents=True, exist_ok=True)
        if not overwrite:
            run._demand_empty()
        run.lock()
        if not overwrite:
            run._demand_empty()  # another process may have been faster
        for name in (CONFIG, LOG, CHECKPOINT, PREVIOUS, GENOTYPE, RESULTS, HISTORY, STATUS):
            (run.path / name).unlink(missing_ok=True)
        return run

    def _demand_empty(self) -> None:
        if any(path.name != LOCK and not is_temporary(path) for path in self.path.iterdir()):
            self.unlock()
            raise RunDirectoryError(
                f"run directory {self.path}: it is not empty; pass --overwrite, or --resume "
                "to go on with it, or name another"
            )

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
            run = cls(path)
            run.lock()
            return run

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

    def lock(self) -> None:
        """Keep other processes from writing here until :meth:`unlock` or the end of this process,
        however it ends; what a killed one has left half written is removed.

        Raises:
            RunDirectoryError: another process has the lock, or the directory is not writable.
        """
        try:
            self._lock.acquire(timeout=0)
            remove_temporary_files(self.path)
        except Timeout:
            raise RunDirectoryError(
                f"run directory {self.path}: another process is working on it"
            ) from None
        except OSError as error:
            self.unlock()
            raise RunDirectoryError(
                f"run directory {self.path}: cannot be written to ({error})"
            ) from error

    def unlock(self) -> None:
        """Let other processes write here."""
        self._lock.release(force=True)

    def log(self, line: str) -> None:
        """Append ``line`` to ``log.txt`` with the originals' time stamp, ``11/24 06:01:37 AM
        line``.
        """
        path = self.path / LOG
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%m/%d %I:%M:%S %p')} {line}\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error

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

    def save_checkpoint(self, state: object) -> Path:
        """Save ``state`` (tensors and plain Python values) as the run's checkpoint, atomically.

        The one before it is kept as ``checkpoint.previous.pt``: at any moment one of the two is
        whole. A checkpoint that is not known to be whole, because this object has neither saved nor
        loaded it, does not take the place of the previous one.

        Raises:
            OSError: it cannot be written; those that were there are untouched.
        """
        path = self.path / CHECKPOINT
        atomic_save(path, state, keep=self.path / PREVIOUS if self._sound else None)
        self._sound = True
        return path

    def has_checkpoint(self, name: str | None = None) -> bool:
        """Whether the run has left a checkpoint, the last or the one before it."""
        names = (CHECKPOINT, PREVIOUS) if name is None else (name,)
        return any((self.path / name).is_file() for name in names)

    def load_checkpoint(self, name: str = CHECKPOINT) -> Any:
        """The checkpoint's state, loaded with ``weights_only=True`` onto the CPU.

        Raises:
            RunDirectoryError: there is none, or a byte of it has changed.
        """
        try:
            state = load_saved(self.path / name)
        except FileNotFoundError:
            raise RunDirectoryError(f"checkpoint {self.path / name}: no such file") from None
        except DamagedFileError as error:
            reason = str(error).removeprefix(f"{self.path / name}: ")
            raise RunDirectoryError(
                f"checkpoint {self.path / name}: damaged or not a checkpoint ({reason})"
            ) from error
        self._sound = self._sound or name == CHECKPOINT
        return state


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

# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent, and saved states that notice every changed byte.

A write goes to a temporary file in the same directory, is flushed to the disk, and is then renamed
over the old file. A saved state is what `torch.save` writes, a zip archive, with the SHA-256 of all
that stands before it as the archive's comment: `torch.load` and zip tools read it as any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "DamagedFileError",
    "atomic_save",
    "atomic_write",
    "is_temporary",
    "load_saved",
    "remove_temporary_files",
]

_SEAL = b"darts_fast sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
_TEMPORARY = ".{name}.{process}.tmp"


class DamagedFileError(ValueError):
    """A saved state is not what was written; the message names the file."""


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes to ``path``: readers see the old file or the new one, never a
    part.

    Raises:
        OSError: the file cannot be written; it is named, and what was there is untouched.
    """
    _replace(Path(path), content.encode() if isinstance(content, str) else content)


def atomic_save(path: str | Path, state: object, *, keep: str | Path | None = None) -> None:
    """Save ``state`` (tensors and plain Python values) with the guarantee of :func:`atomic_write`.

    keep: where the old file goes, just before the new one takes its place. Whenever the process
    ends, one of the two is there and whole.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # The archive's last two bytes are the length of its comment, which is empty.
    archive = buffer.getvalue()[:-2] + _SEAL_LENGTH.to_bytes(2, "little")
    seal = _SEAL + hashlib.sha256(archive).hexdigest().encode()
    _replace(Path(path), archive + seal, None if keep is None else Path(keep))


def load_saved(path: str | Path) -> Any:
    """The state that :func:`atomic_save` wrote, on the CPU, loaded with ``weights_only=True``.

    Raises:
        DamagedFileError: a byte is not as it was written, or the file is not one of ours.
        OSError: it cannot be read.
    """
    data = Path(path).read_bytes()
    archive, seal = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        raise DamagedFileError(f"{path}: cut short, or not saved by darts_fast")
    if seal != _SEAL + hashlib.sha256(archive).hexdigest().encode():
        raise DamagedFileError(f"{path}: its bytes do not have the SHA-256 they were saved with")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # an object that is not plain makes torch raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFileError(f"{path}: {reason}") from error


def is_temporary(path: Path) -> bool:
    """Whether a file is what a killed process has left of a write."""
    return path.match(_TEMPORARY.format(name="*", process="*"))


def remove_temporary_files(directory: Path) -> None:
    """Remove what killed processes have left; nobody else may be writing in the directory."""
    for path in directory.iterdir():
        if is_temporary(path):
            path.unlink(missing_ok=True)


def _replace(path: Path, data: bytes, keep: Path | None = None) -> None:
    temporary = path.with_name(_TEMPORARY.format(name=path.name, process=os.getpid()))
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _sync_directory(path: Path) -> None:
    if (
        os.name == "posix"
    ):  # elsewhere a directory cannot be opened, and a rename needs no second flush
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

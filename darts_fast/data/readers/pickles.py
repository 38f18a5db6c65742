# SPDX-License-Identifier: Apache-2.0
"""Reading the pickled files of the CIFAR distribution without running what is in them.

A pickle calls whatever functions it names. Here it gets stand-ins for the three names that a numpy
array needs, so that a file can make plain Python values and arrays of numbers and nothing else.
numpy's own reconstruction would not do: it trusts the flags in the state of a dtype, and wrong ones
make it take raw bytes for object pointers.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from darts_fast.data.images import DataError
from darts_fast.data.readers.checks import one_line

__all__ = ["read_pickle"]

_NUMBERS = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"f4", "f8", "b1"}


class _ForbiddenError(pickle.UnpicklingError):
    """The file refers to something that is no part of an array of numbers."""


class _Type:
    """Stands in for numpy.dtype."""

    def __init__(self, code: str | bytes) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if name not in _NUMBERS:
            raise _ForbiddenError(f"dtype {name}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"byte order {order!r}")
        self.order = order


class _Array:
    """Stands in for numpy.ndarray; `value` is the array once its state has been read."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if not (isinstance(kind, _Type) and isinstance(raw, bytes)):
            raise pickle.UnpicklingError("an array without type or bytes")
        numbers = np.frombuffer(raw, dtype=kind.order + kind.name)
        self.value = numbers.reshape(shape, order="F" if fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Gives stand-ins for the names of array reconstruction and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in; a new function at every call, because a file can set its attributes."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: _Array()
        if module == "numpy" and name == "dtype":
            return lambda code, *_: _Type(code)
        if module == "numpy" and name == "ndarray":
            return None  # an argument of _reconstruct
        raise _ForbiddenError(f"{module}.{name}")


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in `path`: its keys as str, arrays of numbers as numpy arrays.

    Reads files written by Python 2 and 3. Raises DataError where the file is missing, truncated or
    corrupt, refers to anything but array reconstruction, or holds no dictionary.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: the file must exist, got none") from None
    except OSError as error:
        raise DataError(f"{path}: the file must be readable, got {error.strerror}") from None
    except _ForbiddenError as error:
        raise DataError(
            f"{path}: a pickled batch may refer to arrays of numbers only, got a reference to "
            f"{' '.join(str(error).split())[:120]}; nothing in it was run"
        ) from None
    # A corrupt stream makes the unpickler raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{path}: the file must be a complete pickled batch, got {one_line(error)}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a dictionary, got {type(content).__name__}")
    return {_text(key): _plain(value) for key, value in content.items()}


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value

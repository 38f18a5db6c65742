# SPDX-License-Identifier: Apache-2.0
"""Tabular benchmarks: accuracies of NAS-Bench-201 architectures that others have trained.

Two sources with one interface: an ``.npz`` file, and the API object of the ``nats_bench`` package
(NATS-Bench, Dong et al., TPAMI 2021; its topology space is NAS-Bench-201).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from darts_fast.spaces.nasbench201 import (
    NUM_ARCHITECTURES,
    arch_from_index,
    arch_from_ops,
    index_from_arch,
)
from darts_fast.spaces.tables import NASBENCH201_EDGES, NASBENCH201_PRIMITIVES

__all__ = ["AccuracyTable", "NatsBenchTable", "NpzTable", "load_accuracy_table"]

SPLITS = ("test", "valid")

# Of each data set: what its columns in a file start with, test and validation, and what nats_bench
# calls it. CIFAR-10's validation accuracies are those of training on half of the training images.
_NAMES = {
    "cifar10": ("c10_test", "c10valid_valid", "cifar10", "cifar10-valid"),
    "cifar100": ("c100_test", "c100_valid", "cifar100", "cifar100"),
    "ImageNet16-120": ("in16_test", "in16_valid", "ImageNet16-120", "ImageNet16-120"),
}


class AccuracyTable(ABC):
    """Accuracies by architecture."""

    def accuracy(
        self,
        architecture: str,
        dataset: str = "cifar10",
        *,
        split: str = "test",
        epochs: int = 200,
    ) -> float:
        """Mean accuracy in percent over the trained copies of an architecture.

        Args:
            architecture: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.
            dataset: ``"cifar10"``, ``"cifar100"`` or ``"ImageNet16-120"``.
            split: ``"test"`` or ``"valid"``.
            epochs: that the copies were trained for, 12 or 200.

        Raises:
            ValueError: not an architecture, or nothing in the table for it.
        """
        index = index_from_arch(architecture)
        if dataset not in _NAMES:
            raise ValueError(
                f"accuracy: dataset must be one of {', '.join(_NAMES)}, got {dataset!r}"
            )
        if split not in SPLITS:
            raise ValueError(f"accuracy: split must be one of {', '.join(SPLITS)}, got {split!r}")
        return self._look_up(index, dataset, split, epochs)

    @abstractmethod
    def _look_up(self, index: int, dataset: str, split: str, epochs: int) -> float:
        """The accuracy of the architecture with an official index."""


class NpzTable(AccuracyTable):
    """Accuracies in an ``.npz`` file, read without pickle.

    The file holds ``ops``, integers [n, 6], indices into ``op_names`` for the edges ``edges``
    [6, 2] (from, to), and a float array [n] or [n, seeds], in percent, for each of
    ``{c10,c100,in16}_test_{epochs}`` and ``{c10valid,c100,in16}_valid_{epochs}`` that it knows.
    Architectures may come in any order.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is not of that form; the message names it.
        OSError: it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                self._columns = {name: file[name] for name in file.files}
        except OSError:
            raise
        except Exception as error:  # numpy lets those of zip and of its own parser through
            raise ValueError(f"{self.path}: not an .npz file without pickles ({error})") from error
        missing = [name for name in ("ops", "op_names", "edges") if name not in self._columns]
        if missing:
            raise ValueError(
                f"{self.path}: must hold ops, op_names and edges, lacks {', '.join(missing)}"
            )
        self._rows = self._row_of_each_index()

    def _look_up(self, index: int, dataset: str, split: str, epochs: int) -> float:
        name = f"{_NAMES[dataset][SPLITS.index(split)]}_{epochs}"
        if name not in self._columns:
            raise ValueError(
                f"{self.path}: has no {split} accuracies on {dataset} after {epochs} epochs "
                f"(column {name})"
            )
        if self._rows[index] < 0:
            raise ValueError(f"{self.path}: has no architecture {arch_from_index(index)}")
        return float(self._columns[name][self._rows[index]].astype(np.float64).mean())

    def _row_of_each_index(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """For every official index the row of the file, -1 where it has none."""
        ops, names, edges = (self._columns[name] for name in ("ops", "op_names", "edges"))
        where = {tuple(edge): column for column, edge in enumerate(edges.tolist())}
        if set(where) != set(NASBENCH201_EDGES) or set(names.tolist()) != set(
            NASBENCH201_PRIMITIVES
        ):
            raise ValueError(
                f"{self.path}: must have the edges and operations of NAS-Bench-201, got edges "
                f"{edges.tolist()} and operations {names.tolist()}"
            )
        if ops.ndim != 2 or ops.shape[1] != len(where) or ops.dtype.kind not in "iu":
            raise ValueError(
                f"{self.path}: ops must be integers [n, {len(where)}], got {ops.dtype} "
                f"{list(ops.shape)}"
            )
        if ops.size and not 0 <= ops.min() <= ops.max() < len(names):
            raise ValueError(
                f"{self.path}: ops must be indices below {len(names)}, got {ops.min()} to "
                f"{ops.max()}"
            )
        for name, column in self._columns.items():
            if name.startswith(tuple(_prefixes())) and len(column) != len(ops):
                raise ValueError(
                    f"{self.path}: {name} must have a row per architecture ({len(ops)}), got "
                    f"{len(column)}"
                )
        rows = np.full(NUM_ARCHITECTURES, -1)
        order = [where[edge] for edge in NASBENCH201_EDGES]
        for row, cell in enumerate(names[ops[:, order]].tolist()):
            rows[index_from_arch(arch_from_ops(cell))] = row
        return rows


class NatsBenchTable(AccuracyTable):
    """The topology API of the ``nats_bench`` package: ``nats_bench.create(path, "tss", ...)``.

    Args:
        api: the object.

    Raises:
        TypeError: it has no ``get_more_info``.
    """

    def __init__(self, api: Any) -> None:
        if not callable(getattr(api, "get_more_info", None)):
            raise TypeError(
                "NatsBenchTable: needs an API of nats_bench (with get_more_info), "
                f"got {type(api).__name__}"
            )
        self._api = api

    def _look_up(self, index: int, dataset: str, split: str, epochs: int) -> float:
        name = _NAMES[dataset][2 + SPLITS.index(split)]
        found = self._api.get_more_info(index, name, hp=str(epochs), is_random=False)
        if f"{split}-accuracy" not in found:
            raise ValueError(f"nats_bench: has no {split} accuracies on {dataset}")
        return float(found[f"{split}-accuracy"])


def load_accuracy_table(source: Any) -> AccuracyTable:
    """The table in an ``.npz`` file (see `NpzTable`), or of an API object of ``nats_bench``.

    Raises:
        ValueError, OSError, TypeError: as the classes.
    """
    if isinstance(source, (str, Path)):
        return NpzTable(source)
    return NatsBenchTable(source)


def _prefixes() -> list[str]:
    return [f"{name}_" for names in _NAMES.values() for name in names[:2]]

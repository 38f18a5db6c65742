# SPDX-License-Identifier: Apache-2.0
"""Tabular benchmarks: the file format, the API of nats_bench, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darts_fast.spaces import (
    NASBENCH201_PRIMITIVES,
    AccuracyTable,
    NatsBenchTable,
    NpzTable,
    arch_from_index,
    load_accuracy_table,
    ops_from_arch,
)

EDGES = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
INDICES = (0, 7, 1462, 15_624)  # what the small tables hold


def contents() -> dict[str, Any]:
    """A table that has edges, operations and architectures in orders of its own."""
    names = list(reversed(NASBENCH201_PRIMITIVES))
    edges = EDGES[3:] + EDGES[:3]
    rows = []
    for index in reversed(INDICES):
        of_edge = dict(zip(EDGES, ops_from_arch(arch_from_index(index)), strict=True))
        rows.append([names.index(of_edge[edge]) for edge in edges])
    place = np.array(list(reversed(INDICES)), dtype=np.float32)
    return {
        "ops": np.array(rows, dtype=np.uint8),
        "op_names": np.array(names),
        "edges": np.array(edges),
        "c10_test_200": place / 1000,
        "c100_test_12": place / 500,
        "c10valid_valid_200": np.stack([place / 1000, place / 1000 + 1, place / 1000 + 5], 1),
    }


def write(path: Path, **changes: Any) -> Path:
    columns = {
        name: value for name, value in {**contents(), **changes}.items() if value is not None
    }
    np.savez(path, **columns)
    return path


def test_a_file_in_any_order_is_read_by_architecture(tmp_path: Path) -> None:
    table = load_accuracy_table(write(tmp_path / "table.npz"))
    for index in INDICES:
        arch = arch_from_index(index)
        assert table.accuracy(arch) == pytest.approx(index / 1000)
        assert table.accuracy(arch, "cifar100", epochs=12) == pytest.approx(index / 500)
        # Several trained copies: their mean.
        assert table.accuracy(arch, split="valid") == pytest.approx(index / 1000 + 2, rel=1e-6)


def test_what_a_table_does_not_have(tmp_path: Path) -> None:
    table = NpzTable(write(tmp_path / "table.npz"))
    arch = arch_from_index(7)
    with pytest.raises(ValueError, match=r"has no architecture \|"):
        table.accuracy(arch_from_index(8))
    with pytest.raises(ValueError, match=r"no test accuracies on cifar10 after 12 .*c10_test_12"):
        table.accuracy(arch, epochs=12)
    with pytest.raises(ValueError, match=r"dataset must be one of cifar10, .* got 'mnist'"):
        table.accuracy(arch, "mnist")
    with pytest.raises(ValueError, match="split must be one of test, valid, got 'train'"):
        table.accuracy(arch, split="train")
    with pytest.raises(ValueError, match="an architecture must read"):
        table.accuracy("|conv~0|")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": None}, "must hold ops, op_names and edges, lacks edges"),
        (
            {"edges": np.array(EDGES)[:, ::-1]},
            "must have the edges and operations of NAS",
        ),
        ({"op_names": np.array(["conv"] * 5)}, "must have the edges and operations"),
        ({"ops": np.zeros((4, 5), np.uint8)}, r"ops must be integers \[n, 6\], got uint8 \[4, 5\]"),
        ({"ops": np.zeros((4, 6))}, r"ops must be integers \[n, 6\], got float64"),
        ({"ops": np.full((4, 6), 5)}, "ops must be indices below 5, got 5 to 5"),
        (
            {"c10_test_200": np.zeros(3)},
            r"must have a row per architecture \(4\), got 3",
        ),
        ({"ops": np.array([[None]])}, "not an .npz file without pickles"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "table.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        NpzTable(path)
    assert str(path) in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NpzTable(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"not an \.npz file without pickles"):
        NpzTable(tmp_path / "text.npz")
    with pytest.raises(TypeError, match=r"needs an API of nats_bench .* got dict"):
        load_accuracy_table({})


def nats_bench_api() -> Any:
    """The package's own API, over results for INDICES: two copies of each, 0.5 apart."""
    nats_bench = pytest.importorskip("nats_bench", reason="nats_bench is not installed")
    from nats_bench.api_utils import ArchResults, ResultsCount

    sets = {"cifar10-valid": ("x-valid", "ori-test"), "cifar10": ("ori-test",)}
    sets["cifar100"] = sets["ImageNet16-120"] = ("x-valid", "x-test", "ori-test")
    infos = {}
    for index in INDICES:
        of_epochs = {}
        for epochs in (12, 200):
            results = ArchResults(index, arch_from_index(index))
            for shift, (dataset, names) in enumerate(sets.items()):
                for seed in (777, 888):
                    base = index / 1000 + epochs / 10 + shift + (seed == 888) / 2
                    count = ResultsCount(dataset, None, {}, {}, 1.0, 1.0, {}, seed, epochs, None)
                    every = dict.fromkeys(range(epochs), base)
                    count.update_train_info(every, every, every, every)
                    for number, name in enumerate(names):
                        keys = [f"{name}@{epoch}" for epoch in range(epochs)]
                        times = dict.fromkeys(keys, 1.0)
                        count.update_eval(dict.fromkeys(keys, base + 10 * number), times, times)
                    results.update(dataset, seed, count)
            of_epochs[str(epochs)] = results.state_dict()
        infos[index] = of_epochs
    archs = [arch_from_index(index) for index in range(15_625)]
    content = {"meta_archs": archs, "arch2infos": infos, "evaluated_indexes": list(INDICES)}
    return nats_bench.create(content, "tss", fast_mode=False, verbose=False)


def test_nats_bench_gives_means_over_copies() -> None:
    table: AccuracyTable = load_accuracy_table(nats_bench_api())
    assert isinstance(table, NatsBenchTable)
    for index in INDICES:
        arch, base = arch_from_index(index), index / 1000 + 0.25
        assert table.accuracy(arch) == pytest.approx(base + 20 + 1)
        assert table.accuracy(arch, epochs=12) == pytest.approx(base + 1.2 + 1)
        assert table.accuracy(arch, split="valid") == pytest.approx(base + 20)
        assert table.accuracy(arch, "cifar100", split="valid") == pytest.approx(base + 20 + 2)
        assert table.accuracy(arch, "ImageNet16-120") == pytest.approx(base + 20 + 3 + 10)

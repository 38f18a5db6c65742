# SPDX-License-Identifier: Apache-2.0
"""Every search method from end to end: trained, selected by strength, looked up in a table."""

from __future__ import annotations

from typing import Any

import pytest
from index_table import write_index_table

from darts_fast.data import Dataset, fixed_batches, load_data
from darts_fast.nn import Supernet
from darts_fast.search import METHODS, Search, SearchConfig
from darts_fast.seeding import seed_everything
from darts_fast.selection import StrengthConfig, strengths
from darts_fast.spaces import AccuracyTable, arch_from_ops, index_from_arch, load_accuracy_table

OPTIONS: dict[str, dict[str, Any]] = {"pc-darts": {"begin": 1}}
ONE_SHOT = StrengthConfig(schedule="one_shot")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=32)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> AccuracyTable:
    return load_accuracy_table(write_index_table(tmp_path_factory.mktemp("table") / "table.npz"))


def search_of(method: str, space: str, data: Dataset, select: str) -> tuple[Supernet, Search]:
    seed_everything(0)
    options = OPTIONS.get(method, {})
    config = SearchConfig(method, options, epochs=3, batch_size=8, valid_freq=0)
    layers = 1 if space == "nasbench201" else 3
    net = config.build_supernet(space, channels=4, num_classes=10, layers=layers)
    selection = ONE_SHOT if select == "strength" else None
    return net, Search(net, data, config, select=select, selection=selection)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_search_selects_the_strongest_and_is_in_the_table(
    method: str, digits: Dataset, table: AccuracyTable
) -> None:
    _, search = search_of(method, "nasbench201", digits, "strength")
    result = search.run()
    assert isinstance(result.genotype, str)
    assert table.accuracy(result.genotype) == index_from_arch(result.genotype) / 100
    # The same supernet, trained again and not selected from.
    net, again = search_of(method, "nasbench201", digits, "magnitude")
    assert again.run().genotype == result.magnitude
    batches = fixed_batches(again.trainer.valid, digits.plain, 8)
    strongest = strengths(net, batches).tables["cell"].argmax(1).tolist()
    names = [net.space.primitives["cell"][edge][op] for edge, op in enumerate(strongest)]
    assert result.genotype == arch_from_ops(names)


def test_strength_selects_the_two_strongest_edges_of_a_node(digits: Dataset) -> None:
    _, search = search_of("darts", "s2", digits, "strength")
    genotype = search.run().genotype
    assert not isinstance(genotype, str)
    net, again = search_of("darts", "s2", digits, "magnitude")
    again.run()
    tables = strengths(net, fixed_batches(again.trainer.valid, digits.plain, 8)).tables
    for found, name in ((genotype.normal, "normal"), (genotype.reduce, "reduce")):
        expected, first = [], 0
        for node in range(4):
            rows = tables[name][first : first + node + 2]
            first += node + 2
            kept = sorted(rows.amax(1).topk(2).indices.tolist())
            primitives = net.space.primitives[name][0]
            expected += [(primitives[int(rows[state].argmax())], state) for state in kept]
        assert list(found) == expected

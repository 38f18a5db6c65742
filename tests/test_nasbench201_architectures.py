# SPDX-License-Identifier: Apache-2.0
"""NAS-Bench-201 architectures: strings, official indices, isomorphism."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from darts_fast.spaces import (
    NASBENCH201_PRIMITIVES,
    arch_from_index,
    arch_from_ops,
    canonical_form,
    index_from_arch,
    ops_from_arch,
    unique_string,
)

TABLE = Path(__file__).parents[2] / "shared" / "data" / "nas" / "nb201.npz"
needs_table = pytest.mark.skipif(
    not TABLE.exists(), reason="needs the benchmark's table, ../shared/data/nas/nb201.npz"
)
ALL = 15_625
NAMES = NASBENCH201_PRIMITIVES


def test_known_architectures() -> None:
    assert arch_from_index(0) == (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+"
        "|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    )
    assert ops_from_arch(arch_from_index(1462)) == ("nor_conv_3x3",) * 6


def test_strings_and_indices_are_a_bijection_on_all_cells() -> None:
    archs = [arch_from_index(index) for index in range(ALL)]
    assert len(set(archs)) == ALL
    assert [index_from_arch(arch) for arch in archs] == list(range(ALL))
    assert {ops_from_arch(arch) for arch in archs} == set(itertools.product(NAMES, repeat=6))
    assert all(arch_from_ops(ops_from_arch(arch)) == arch for arch in archs)


@needs_table
def test_indices_are_those_of_the_benchmark() -> None:
    with np.load(TABLE) as table:
        assert tuple(table["op_names"].tolist()) == NAMES
        ops = table["ops"]
    ours = [[NAMES.index(op) for op in ops_from_arch(arch_from_index(i))] for i in range(ALL)]
    np.testing.assert_array_equal(ours, ops)


@needs_table
def test_unique_strings_are_the_classes_of_the_benchmark() -> None:
    with np.load(TABLE) as table:
        official = table["isomorph_id"].tolist()
    strings = [unique_string(arch_from_index(index)) for index in range(ALL)]
    assert len(set(strings)) == len(set(official)) == len(set(zip(strings, official, strict=True)))


def test_the_benchmark_counts_6466_unique_strings() -> None:
    assert len({unique_string(arch_from_index(index)) for index in range(ALL)}) == 6466


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|nor_conv_3x3~0|",
        arch_from_index(5).replace("~2", "~1"),
        arch_from_index(5).replace("+", ""),
        arch_from_index(5).replace("nor_conv_3x3", "nor_conv_5x5"),
        arch_from_index(5) + "+|none~0|none~1|none~2|none~3|",
    ],
)
def test_malformed_strings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must read \|op~0\|\+.*, got"):
        ops_from_arch(text)


def test_other_errors_name_the_values() -> None:
    for index in (-1, ALL):
        with pytest.raises(ValueError, match=f"between 0 and 15624, got {index}"):
            arch_from_index(index)
    with pytest.raises(ValueError, match=r"6 operations out of none, .*, got \['none'\]"):
        arch_from_ops(["none"])
    with pytest.raises(ValueError, match=r"got .*sep_conv_3x3"):
        arch_from_ops(["sep_conv_3x3"] * 6)
    with pytest.raises(ValueError, match=r"1, 3, 6, ... operations .* got \['none', 'none'\]"):
        canonical_form(["none", "none"])
    with pytest.raises(ValueError, match=r"got \['noise'\]"):
        canonical_form(["noise"])


def computation(ops: Sequence[str]) -> object:
    """What a cell computes, written out as a tree in which every operation carries its edge."""
    values: list[tuple[object, ...]] = [("x",)]
    edge = 0
    while edge < len(ops):
        summands: list[object] = []
        for source in list(values):
            if ops[edge] == "skip_connect":
                summands.extend(source)
            elif ops[edge] != "none" and source:
                summands.append((ops[edge], edge, source))
            edge += 1
        values.append(tuple(summands))
    return values[-1]


def renamed(tree: object, names: Sequence[int]) -> object:
    """The tree with its edges renamed and every sum sorted."""
    if isinstance(tree, tuple) and len(tree) == 3 and isinstance(tree[1], int):
        return (tree[0], names[tree[1]], renamed(tree[2], names))
    if isinstance(tree, tuple):
        return tuple(sorted((renamed(part, names) for part in tree), key=repr))
    return tree


def same_by_brute_force(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether some renaming of the edges turns one computation into the other."""
    target = renamed(computation(b), range(len(b)))
    tree = computation(a)
    return any(renamed(tree, names) == target for names in itertools.permutations(range(len(a))))


def test_canonical_form_equals_brute_force_on_three_nodes() -> None:
    cells = list(itertools.product(NAMES, repeat=3))
    classes: list[Sequence[str]] = []
    for cell in cells:
        if not any(same_by_brute_force(cell, other) for other in classes):
            classes.append(cell)
    forms = [canonical_form(cell) for cell in cells]
    assert len(set(forms)) == len(classes)
    for cell, form in zip(cells, forms, strict=True):
        for other in classes:
            assert (form == canonical_form(other)) == same_by_brute_force(cell, other)


def test_canonical_form_equals_brute_force_on_pairs_of_cells() -> None:
    """Cells with equal expression trees, the only ones that could be confused."""
    by_tree: dict[str, list[int]] = {}
    for index in range(0, ALL, 7):
        tree = renamed(computation(ops_from_arch(arch_from_index(index))), [0] * 6)
        by_tree.setdefault(repr(tree), []).append(index)
    pairs = [group[:2] for group in by_tree.values() if len(group) > 1][:150]
    answers = set()
    for first, second in pairs:
        a, b = arch_from_index(first), arch_from_index(second)
        same = same_by_brute_force(ops_from_arch(a), ops_from_arch(b))
        assert (canonical_form(a) == canonical_form(b)) == same
        answers.add(same)
    assert answers == {True, False}


def test_there_are_5425_different_computations() -> None:
    assert len({canonical_form(arch_from_index(index)) for index in range(ALL)}) == 5425


def test_canonical_form_examples() -> None:
    def form(*ops: str) -> object:
        return canonical_form(ops)

    conv, pool, skip, none = "nor_conv_3x3", "avg_pool_3x3", "skip_connect", "none"
    assert form(none, none, none) == ((), ())
    assert form(skip, none, skip) == ((), (-1,))
    # A convolution and its use: the same whether the path runs over node 1 or directly.
    assert form(conv, none, skip) == form(none, conv, conv) == form(skip, none, conv)
    # A result that two edges read is not a result that is computed twice.
    shared = form(conv, none, skip, none, pool, "nor_conv_1x1")
    double = form(conv, conv, none, none, pool, "nor_conv_1x1")
    assert shared != double

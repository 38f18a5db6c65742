# SPDX-License-Identifier: Apache-2.0
"""The DARTS parse and its quirks, random genotypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_fast.spaces import SPACES, Genotype, Space, get_space, random_genotype
from darts_fast.spaces.genotype import parse_cell

DARTS_SPACES = ["darts", "s1", "s2", "s3", "s4", "s5"]


def parsed(space: Space, normal: torch.Tensor) -> Genotype:
    genotype = space.genotype({"normal": normal, "reduce": torch.zeros_like(normal)})
    assert isinstance(genotype, Genotype)
    return genotype


def parse_by_elimination(
    weights: list[list[float]], primitives: tuple[tuple[str, ...], ...]
) -> list[tuple[str, int]]:
    """The rule of DARTS said another way: strike edges out, one at a time."""
    cell: list[tuple[str, int]] = []
    first_edge = 0
    for inputs in range(2, 6):
        candidates = []
        for j in range(inputs):
            edge = first_edge + j
            champion = ""
            strength = -1.0
            for name, weight in zip(primitives[edge], weights[edge], strict=True):
                if name != "none" and weight > strength:
                    champion, strength = name, weight
            candidates.append((champion, j, strength))
        for _ in range(2):
            winner = candidates[0]
            for other in candidates[1:]:
                if other[2] > winner[2]:
                    winner = other
            candidates.remove(winner)
            cell.append(winner[:2])
        first_edge += inputs
    return cell


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(DARTS_SPACES),
    levels=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_parse_equals_the_rule_also_where_weights_tie(name: str, levels: int, seed: int) -> None:
    space = get_space(name)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: torch.randint(levels, (14, space.num_ops), generator=generator) / levels
        for key in space.cell_types
    }
    genotype = space.genotype(weights)
    assert isinstance(genotype, Genotype)
    for key in space.cell_types:
        expected = parse_by_elimination(weights[key].tolist(), space.primitives[key])
        assert getattr(genotype, key) == expected


def test_all_weights_equal_keeps_the_first_edges_and_the_first_operation() -> None:
    genotype = parsed(get_space("darts"), torch.full((14, 8), 0.125))
    assert genotype.normal == [("max_pool_3x3", j) for j in (0, 1)] * 4
    assert genotype.normal_concat == range(2, 6)


def test_the_stronger_edge_is_printed_first() -> None:
    weights = torch.zeros(14, 7)
    weights[0, 3] = 0.4
    weights[1, 4] = 0.6
    assert parsed(get_space("s5"), weights).normal[:2] == [("sep_conv_5x5", 1), ("sep_conv_3x3", 0)]


def test_none_does_not_count_in_the_strength_of_an_edge() -> None:
    weights = torch.full((14, 8), 0.05)
    weights[2, 0] = 0.65
    weights[3, 4] = 0.2
    weights[4, 5] = 0.3
    assert parsed(get_space("darts"), weights).normal[2:4] == [
        ("sep_conv_5x5", 2),
        ("sep_conv_3x3", 1),
    ]


def test_noise_counts_as_any_operation() -> None:
    weights = torch.tensor([[0.9, 0.1]]).repeat(14, 1)
    assert parsed(get_space("s4"), weights).normal == [("noise", 0), ("noise", 1)] * 4


def test_a_row_that_is_one_hot_on_none_scores_nothing_and_prints_the_next_operation() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0]]).repeat(14, 1)
    assert parsed(get_space("s3"), rows).normal == [("skip_connect", j) for j in (0, 1)] * 4
    # Where another edge has any weight on a real operation, that edge goes first.
    rows[4] = torch.tensor([0.99, 0.0, 0.01])
    assert parsed(get_space("s3"), rows).normal[2:4] == [("sep_conv_3x3", 2), ("skip_connect", 0)]
    darts_rows = torch.zeros(14, 8)
    darts_rows[:, 0] = 1.0
    assert parsed(get_space("darts"), darts_rows).normal[0] == ("max_pool_3x3", 0)


def test_rows_that_selection_has_zeroed_lose() -> None:
    weights = torch.zeros(14, 7)
    weights[5:9] = torch.eye(7)[[6, 5, 4, 3]]
    weights[[5, 7]] = 0.0
    assert parsed(get_space("s5"), weights).normal[4:6] == [
        ("dil_conv_3x3", 1),
        ("sep_conv_3x3", 3),
    ]


def test_weights_are_compared_in_their_own_precision() -> None:
    """A float64 difference below float32 resolution decides, once the weights are float64."""
    weights = torch.full((14, 7), 0.1, dtype=torch.float64)
    weights[0, 2] += 1e-12
    assert parsed(get_space("s5"), weights).normal[0] == ("skip_connect", 0)
    assert parsed(get_space("s5"), weights.float()).normal[0] == ("max_pool_3x3", 0)


def test_parse_reads_weights_that_need_gradients() -> None:
    alpha = torch.zeros(14, 7, requires_grad=True)
    assert parsed(get_space("s5"), alpha.softmax(-1)).normal[0] == ("max_pool_3x3", 0)


def test_nasbench201_takes_the_strongest_operation_none_included() -> None:
    rows = torch.full((6, 5), 0.1)
    for edge, op in enumerate([0, 1, 2, 3, 4, 0]):
        rows[edge, op] = 0.6
    rows[5] = 0.2
    assert get_space("nasbench201").genotype({"cell": rows}) == (
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )


def test_parse_cell_checks_its_edges() -> None:
    with pytest.raises(ValueError, match=r"must fill whole nodes \(2, 5, 9, 14, ...\), got 4"):
        parse_cell([[1.0]] * 4, [["noise"]] * 4)
    with pytest.raises(ValueError, match=r"other than none, got \['none'\] on edge 1"):
        parse_cell([[1.0]] * 2, [["noise"], ["none"]])


@pytest.mark.parametrize("name", list(SPACES))
def test_random_genotypes_are_in_the_space_and_reproducible(name: str) -> None:
    space = SPACES[name]
    drawn = [random_genotype(space, torch.Generator().manual_seed(seed)) for seed in range(40)]
    again = [random_genotype(space, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert drawn == again
    assert len({str(genotype) for genotype in drawn}) > 30
    if name == "nasbench201":
        assert all(isinstance(genotype, str) for genotype in drawn)
        return
    edge_of = {pair: edge for edge, pair in enumerate(space.edges)}
    for genotype in drawn:
        assert isinstance(genotype, Genotype)
        for key in space.cell_types:
            cell = getattr(genotype, key)
            assert len(cell) == 8
            for position, (op, state) in enumerate(cell):
                edge = edge_of[(state, 2 + position // 2)]
                assert op in space.primitives[key][edge]
                assert op != "none"
            assert all(cell[2 * node][1] < cell[2 * node + 1][1] for node in range(4))


def test_random_genotypes_are_uniform() -> None:
    """Every pair of inputs of the last node and every operation comes up as often as it should."""
    generator = torch.Generator().manual_seed(0)
    pairs: dict[tuple[int, int], int] = {}
    ops: dict[str, int] = {}
    for _ in range(1000):
        genotype = random_genotype(get_space("darts"), generator)
        assert isinstance(genotype, Genotype)
        (first, a), (second, b) = genotype.normal[6:]
        pairs[(a, b)] = pairs.get((a, b), 0) + 1
        for op in (first, second):
            ops[op] = ops.get(op, 0) + 1
    assert len(pairs) == 10
    assert all(60 < count < 140 for count in pairs.values())
    assert len(ops) == 7
    assert all(220 < count < 350 for count in ops.values())

# SPDX-License-Identifier: Apache-2.0
"""The tables of the search spaces."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle

import pytest
import torch

from darts_fast.nn.operations import OPS
from darts_fast.spaces import (
    DARTS_OPERATIONS,
    DARTS_PRIMITIVES,
    NASBENCH201_PRIMITIVES,
    S5_PRIMITIVES,
    SPACES,
    Space,
    get_space,
)

DARTS_SPACES = ["darts", "s1", "s2", "s3", "s4", "s5"]


@pytest.mark.parametrize(
    ("name", "num_ops", "zero_rule"),
    [
        ("darts", 8, "multiply"),
        ("s1", 2, "skip"),
        ("s2", 2, "skip"),
        ("s3", 3, "skip"),
        ("s4", 2, "skip"),
        ("s5", 7, "skip"),
    ],
)
def test_darts_spaces_have_14_edges_and_their_rule(name: str, num_ops: int, zero_rule: str) -> None:
    space = get_space(name)
    assert space.name == name
    assert space.cell_types == ("normal", "reduce")
    assert (space.num_edges, space.num_ops) == (14, num_ops)
    assert space.zero_rule == zero_rule
    assert space.select_topology
    assert space.edges[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert space.node_edges == {
        2: (0, 1),
        3: (2, 3, 4),
        4: (5, 6, 7, 8),
        5: (9, 10, 11, 12, 13),
    }


def test_nasbench201_orders_its_edges_as_strings() -> None:
    space = get_space("nasbench201")
    names = [f"{node}<-{source}" for source, node in space.edges]
    assert names == sorted(names) == ["1<-0", "2<-0", "2<-1", "3<-0", "3<-1", "3<-2"]
    assert space.cell_types == ("cell",)
    assert (space.num_edges, space.num_ops) == (6, 5)
    assert space.zero_rule == "multiply"
    assert not space.select_topology
    assert space.primitives["cell"][0] == NASBENCH201_PRIMITIVES


def test_s5_is_the_darts_space_without_none() -> None:
    assert DARTS_PRIMITIVES[0] == "none"
    assert tuple(name for name in DARTS_PRIMITIVES if name != "none") == S5_PRIMITIVES
    assert get_space("s5").primitives["reduce"][13] == S5_PRIMITIVES


# Zela et al., ICLR 2020, section 3: d dilated, s separable, k skip, x max pool, a average pool.
S1_LETTERS = {
    "normal": "kd3 kd5 kd5 ks3 kd3 xk ks3 ks3 kd3 ks3 xk kd3 d3d5 d3d5",
    "reduce": "xa xd3 xa xa kd5 xa xs3 kd3 kd5 xa xa kd5 kd5 kd5",
}
LETTERS = {
    "skip_connect": "k",
    "max_pool_3x3": "x",
    "avg_pool_3x3": "a",
    "sep_conv_3x3": "s3",
    "dil_conv_3x3": "d3",
    "dil_conv_5x5": "d5",
}


@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
def test_s1_table(cell_type: str) -> None:
    lists = get_space("s1").primitives[cell_type]
    assert " ".join("".join(LETTERS[op] for op in ops) for ops in lists) == S1_LETTERS[cell_type]


def test_s1_checksum() -> None:
    space = get_space("s1")
    text = "\n".join(",".join(ops) for key in space.cell_types for ops in space.primitives[key])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest.startswith("515489eefaf96702")


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("s2", ("skip_connect", "sep_conv_3x3")),
        ("s3", ("none", "skip_connect", "sep_conv_3x3")),
        ("s4", ("noise", "sep_conv_3x3")),
    ],
)
def test_s2_to_s4_offer_the_same_on_every_edge(name: str, ops: tuple[str, ...]) -> None:
    for lists in get_space(name).primitives.values():
        assert set(lists) == {ops}


@pytest.mark.parametrize("name", DARTS_SPACES)
def test_every_operation_of_a_space_can_be_built(name: str) -> None:
    for lists in get_space(name).primitives.values():
        assert {op for ops in lists for op in ops} <= set(OPS)


def test_genotypes_may_name_exactly_the_operations_there_are() -> None:
    assert sorted(DARTS_OPERATIONS) == sorted(OPS)


def test_get_space_takes_a_space_and_lists_the_names() -> None:
    space = get_space("s2")
    assert get_space(space) is space
    assert list(SPACES) == [*DARTS_SPACES, "nasbench201"]
    with pytest.raises(ValueError, match=r"one of darts, s1, .*, nasbench201, got 's6'"):
        get_space("s6")
    with pytest.raises(TypeError, match="must be a name or a Space, got int"):
        get_space(5)  # type: ignore[arg-type]


def test_a_space_is_a_value() -> None:
    space = get_space("s1")
    for other in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert other == space
        assert hash(other) == hash(space)
    with pytest.raises(dataclasses.FrozenInstanceError):
        space.name = "mine"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_rule": "ignore"}, "zero_rule must be one of skip, multiply, got 'ignore'"),
        ({"cell_types": ("normal",)}, r"one entry per cell type in order, got \['normal', 're"),
        ({"edges": ((1, 2), (0, 2))}, r"ascending sources, got \[\(1, 2\), \(0, 2\)\]"),
        ({"edges": ((0, 2), (1, 2))}, "operations for every edge, got 14 lists for 2 edges"),
        (
            {"primitives": {"normal": (("a",),) * 14, "reduce": (("a", "b"),) * 14}},
            r"the same number of operations, got \[1, 2\]",
        ),
        (
            {"primitives": {"normal": ((),) * 14, "reduce": ((),) * 14}},
            r"the same number of operations, got \[0\]",
        ),
    ],
)
def test_a_space_whose_tables_do_not_fit_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_space("s2"), **change)  # type: ignore[arg-type]


def test_genotype_checks_its_weights() -> None:
    space = get_space("s2")
    good = torch.full((14, 2), 0.5)
    with pytest.raises(ValueError, match=r"every cell type \['normal', 'reduce'\], got \['norm"):
        space.genotype({"normal": good})
    with pytest.raises(ValueError, match=r"reduce weights must be .* = \[14, 2\], got \[14, 3\]"):
        space.genotype({"normal": good, "reduce": torch.zeros(14, 3)})
    bad = good.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="normal weights must be finite"):
        space.genotype({"normal": bad, "reduce": good})


def test_a_custom_space_is_a_space() -> None:
    mine = dataclasses.replace(
        get_space("s2"),
        name="mine",
        primitives=dict.fromkeys(("normal", "reduce"), (("noise", "max_pool_3x3"),) * 14),
    )
    assert isinstance(mine, Space)
    assert mine.num_ops == 2
    assert get_space(mine).name == "mine"

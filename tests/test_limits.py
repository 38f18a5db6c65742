# SPDX-License-Identifier: Apache-2.0
"""Limits on the derived network: kept where the unlimited choice breaks them, in no other way."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from scripted import Removed, ScriptedNet, scripted_batches
from torch import Tensor

from darts_fast.cost import CostTable, DerivedSizes, cost_table
from darts_fast.nn import Supernet, build_supernet
from darts_fast.search import SearchConfig
from darts_fast.selection import (
    Limit,
    Limits,
    PerturbationConfig,
    RaceConfig,
    StrengthConfig,
    cheapest,
    limited_magnitude,
    magnitude_genotype,
    select,
)
from darts_fast.spaces import Genotype, Space, get_space, random_genotype

SIZES = DerivedSizes(channels=4, layers=3, num_classes=10, image_size=(16, 16))
SEP5 = get_space("s5").primitives["normal"][0].index("sep_conv_5x5")
SKIP = get_space("s5").primitives["normal"][0].index("skip_connect")


@pytest.fixture(scope="module")
def macs() -> CostTable:
    return cost_table("macs", "s5", SIZES)


@pytest.fixture(scope="module")
def params() -> CostTable:
    return cost_table("params", "s5", SIZES)


def small(costs: dict[str, list[list[float]]], resource: str = "macs") -> CostTable:
    """A space of two nodes with two and three inputs and three operations, costs by hand."""
    names = ("cheap", "middle", "dear")
    space = Space(
        name="small",
        cell_types=("normal",),
        primitives={"normal": (names,) * 5},
        edges=((0, 2), (1, 2), (0, 3), (1, 3), (2, 3)),
        zero_rule="skip",
        select_topology=True,
    )
    return CostTable(resource, space, 10.0, costs)


def every_cost(tables: list[CostTable]) -> list[tuple[float, ...]]:
    """Costs of all architectures of the small space, one by one."""
    found = []
    for pair in itertools.combinations((2, 3, 4), 2):
        for ops in itertools.product(range(3), repeat=4):
            entries = list(zip((0, 1, *pair), ops, strict=True))
            found.append(
                tuple(
                    table.base + sum(table.tables["normal"][edge][op] for edge, op in entries)
                    for table in tables
                )
            )
    return found


def test_what_is_reachable_is_what_some_architecture_keeps() -> None:
    """Against all 243 architectures, also where one resource is cheap and the other dear."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        rows = torch.randint(0, 20, (2, 5, 3), generator=generator).tolist()
        tables = [small({"normal": rows[0]}), small({"normal": rows[1]}, "params")]
        costs = every_cost(tables)
        for a, b in itertools.product(range(10, 70, 7), repeat=2):
            possible = any(one <= a and other <= b for one, other in costs)
            limits = [Limit(tables[0], a), Limit(tables[1], b)]
            if possible:
                assert Limits(limits).reachable(Limits(limits).choices())
            else:
                with pytest.raises(ValueError, match=r"^limits?: "):
                    Limits(limits)


def test_limits_that_cannot_be_kept_are_refused(macs: CostTable, params: CostTable) -> None:
    least = min(
        macs.total(random_genotype(macs.space, torch.Generator().manual_seed(i))) for i in range(3)
    )
    with pytest.raises(ValueError, match=r"macs must be at least [\d,.e+]+, the cheapest network"):
        Limits([Limit(macs, 1.0)])
    Limits([Limit(macs, least)])
    with pytest.raises(ValueError, match="must be of one space, got"):
        Limits([Limit(macs, 1e9), Limit(cost_table("params", "s2", SIZES), 1e9)])
    with pytest.raises(ValueError, match="macs must be limited by more than 0, got -1"):
        Limit(macs, -1)
    with pytest.raises(ValueError, match="penalty of macs must be at least 0, got -2"):
        Limit(macs, 1, -2)
    # Each can be kept, both cannot: what is cheap for one is dear for the other.
    rows = [[1.0, 5.0, 9.0]] * 5
    tables = small({"normal": rows}), small({"normal": [row[::-1] for row in rows]}, "params")
    with pytest.raises(ValueError, match="no network keeps all of them at once, got macs, params"):
        Limits([Limit(tables[0], 20), Limit(tables[1], 20)])


def heavy_is_best(removed: Removed) -> float:
    """Removing a 5x5 separable convolution hurts most, the skip connection second, others least."""
    harm = 0.0
    for entries in removed.values():
        for edge, op in entries:
            harm += {SEP5: 9.0, SKIP: 6.0}.get(op, 1.0) + edge / 100
    return min(harm, 90.0)


def weighted(net: Supernet) -> Supernet:
    """The largest weights are those of the 5x5 separable convolution, with a little noise."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.copy_(0.1 * torch.rand(alpha.shape, generator=generator))
            alpha[:, SEP5] += 1
    return net


METHODS = ("perturbation", "one_shot", "magnitude")


def found_by(method: str, limits: Limits | None, criterion: str = "acc") -> Genotype | str:
    config = None
    if method != "magnitude":
        config = PerturbationConfig(proj_intv=0, proj_crit=criterion)
    net = weighted(ScriptedNet(heavy_is_best))
    return select(net, scripted_batches(1), method=method, config=config, limits=limits).genotype


@functools.cache
def free_of(method: str, criterion: str = "acc") -> Genotype | str:
    """What the method finds without limits."""
    return found_by(method, None, criterion)


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_holds_where_the_free_choice_breaks_it(
    macs: CostTable, params: CostTable, method: str
) -> None:
    free = free_of(method)
    assert all(op == "sep_conv_5x5" for op, _ in (*free.normal, *free.reduce))  # type: ignore[union-attr]
    bounds = []
    for table in (macs, params):
        low = cheapest(table)
        bounds.append(low + 0.4 * (table.total(free) - low))
    limits = Limits([Limit(macs, bounds[0]), Limit(params, bounds[1])])
    kept = found_by(method, limits)
    for table, bound in zip((macs, params), bounds, strict=True):
        assert table.total(free) > bound >= table.total(kept)
    # The limit does not keep more away than it must.
    assert any(op == "sep_conv_5x5" for op, _ in (*kept.normal, *kept.reduce))  # type: ignore[union-attr]


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_that_does_not_bind_changes_nothing(macs: CostTable, method: str) -> None:
    free = free_of(method)
    assert found_by(method, Limits([Limit(macs, macs.total(free))])) == free


@pytest.mark.parametrize(
    ("method", "criterion"),
    [("perturbation", "acc"), ("one_shot", "loss"), ("magnitude", "acc")],
)
def test_penalties_follow_their_formula(macs: CostTable, method: str, criterion: str) -> None:
    """A price below the lead of the dear operation changes nothing, one above it does."""
    free = free_of(method, criterion)
    dearest = max(row[SEP5] for rows in macs.tables.values() for row in rows)
    low = Limits([Limit(macs, dearest, penalty=1e-7)])
    high = Limits([Limit(macs, dearest, penalty=1e3)])
    assert low.price("normal", 0, SEP5) == 1e-7 * macs.tables["normal"][0][SEP5] / dearest
    assert high.price("normal", 0, SKIP) == 0
    assert found_by(method, low, criterion) == free
    cheap = found_by(method, high, criterion)
    # At that price only what costs nothing is left on the edges of stride 1.
    free_of_charge = {"skip_connect", "max_pool_3x3", "avg_pool_3x3"}
    assert {op for op, _ in cheap.normal} <= free_of_charge  # type: ignore[union-attr]


def test_the_price_at_which_the_choice_turns(macs: CostTable) -> None:
    """Without 5x5 the loss of points is 9, without the skip 6: the price must be below 3."""
    cost = macs.tables["normal"][0][SEP5]

    def choice(penalty: float) -> str:
        net = ScriptedNet(heavy_is_best)
        limits = Limits([Limit(macs, cost, penalty)])
        config = PerturbationConfig(proj_intv=0)
        decisions = select(
            net, scripted_batches(), method="one_shot", config=config, limits=limits
        ).decisions
        (op,) = next(
            d.chosen for d in decisions if (d.kind, d.cell_type, d.place) == ("op", "normal", 0)
        )
        return net.space.primitives["normal"][0][op]

    assert choice(2.9) == "sep_conv_5x5"
    assert choice(3.1) == "skip_connect"


def test_rejected_candidates_are_not_scored(macs: CostTable) -> None:
    limits = Limits([Limit(macs, cheapest(macs))])
    net = ScriptedNet(heavy_is_best)
    result = select(
        net,
        scripted_batches(),
        method="perturbation",
        config=PerturbationConfig(proj_intv=0),
        limits=limits,
    )
    first = next(d for d in result.decisions if d.kind == "op" and d.cell_type == "normal")
    names = net.space.primitives["normal"][first.place]
    # With the cheapest network as the limit an edge may be heavy only if its node can drop it.
    assert macs.total(result.genotype) == cheapest(macs)
    scored = {names[op] for op in first.candidates[0]}
    node_can_drop = len(net.space.node_edges[net.space.edges[first.place][1]]) > 2
    assert ("sep_conv_5x5" in scored) == node_can_drop


def test_races_keep_limits_but_take_no_penalty(macs: CostTable) -> None:
    bound = cheapest(macs) * 1.2
    config = PerturbationConfig(proj_intv=0, race=RaceConfig(min_batches=2))
    net = weighted(ScriptedNet(heavy_is_best))
    found = select(
        net,
        scripted_batches(4),
        method="perturbation",
        config=config,
        limits=Limits([Limit(macs, bound)]),
    )
    assert macs.total(found.genotype) <= bound
    with pytest.raises(ValueError, match="a penalty needs scores of all images, got a race"):
        select(
            net,
            scripted_batches(),
            method="one_shot",
            config=config,
            limits=Limits([Limit(macs, bound, 1.0)]),
        )


def test_strength_keeps_limits(macs: CostTable) -> None:
    net = build_supernet("s5", channels=2, num_classes=4, layers=3)
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,)))]
    config = StrengthConfig()
    free = select(net, batches, method="strength", config=config).genotype
    least = cheapest(macs)
    bound = least + 0.3 * (macs.total(free) - least)
    twin = build_supernet("s5", channels=2, num_classes=4, layers=3)
    found = select(
        twin, batches, method="strength", config=config, limits=Limits([Limit(macs, bound)])
    )
    assert macs.total(found.genotype) <= bound < macs.total(free)


def test_methods_and_spaces_are_checked(macs: CostTable) -> None:
    limits = Limits([Limit(macs, 1e12)])
    net = build_supernet("s2", channels=2, num_classes=4, layers=1)
    with pytest.raises(ValueError, match="limits must be of space s2, got s5"):
        select(net, method="magnitude", limits=limits)
    other = build_supernet("s5", channels=2, num_classes=4, layers=1)
    with pytest.raises(ValueError, match="discretization takes no limits"):
        select(other, [], method="discretization", converge=lambda net: None, limits=limits)


@pytest.mark.parametrize("space", ["darts", "s3", "s5", "nasbench201", "partial channels"])
def test_limited_magnitude_equals_the_free_one_and_then_keeps_the_limit(space: str) -> None:
    method = "darts"
    if space == "partial channels":
        space, method = "s5", "pc-darts"  # edges have weights of their own
    table = cost_table("macs", space, SIZES)
    for seed in range(3):
        torch.manual_seed(seed)
        net = SearchConfig(method=method).build_supernet(space, channels=4, num_classes=4, layers=1)
        with torch.no_grad():
            for alpha in net.arch_parameters():
                alpha.normal_()
        free = magnitude_genotype(net)
        assert limited_magnitude(net, Limits([Limit(table, table.total(free))])) == free
        least = cheapest(table)
        for share in (0.0, 0.3, 0.7):
            bound = least + share * (table.total(free) - least)
            found = limited_magnitude(net, Limits([Limit(table, bound)]))
            assert table.total(found) <= bound * (1 + 1e-9)


def test_none_is_no_candidate_under_a_hard_limit() -> None:
    """A node may not keep it, and the network printed must be the one that was counted."""
    table = cost_table("macs", "s3", SIZES)

    class Net(Supernet):
        def __init__(self) -> None:
            super().__init__(get_space("s3"), None)
            self.scale = torch.nn.Parameter(torch.ones(()))
            self._register_alphas({"normal": "alphas_normal", "reduce": "alphas_reduce"})
            with torch.no_grad():
                for alpha in self.arch_parameters():
                    alpha[:, 0] += 3  # none

        def forward(self, x: Tensor, weights: object = None) -> Tensor:
            raise AssertionError

    least = cheapest(table)
    assert table.total(limited_magnitude(Net(), Limits([Limit(table, least)]))) == least

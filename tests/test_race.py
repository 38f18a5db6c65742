# SPDX-License-Identifier: Apache-2.0
"""Races: the tests behind them, the stated error rate, and what they do to selections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from planted import EDGES, planted
from scipy import integrate
from scripted import ScriptedNet, scripted_batches

from darts_fast.data import fixed_batches, load_data
from darts_fast.nn import build_supernet
from darts_fast.search import Search
from darts_fast.seeding import seed_everything
from darts_fast.selection import (
    PerturbationConfig,
    PerturbationSelection,
    RaceConfig,
    RaceResult,
    bounds,
    race,
    race_summary,
    removal_scores,
    select,
)
from darts_fast.selection.bounds import log_mixture
from darts_fast.selection.strength import ranked_shares

Array = npt.NDArray[np.float64]


# The t-test of a finite pool


def test_the_martingale_is_the_mixture_of_likelihood_ratios() -> None:
    values, pool, prior = np.array([0.7, -0.2, 1.1, 0.4]), 9, 0.8
    n = len(values)
    inverse = np.linalg.inv(np.eye(n) - np.ones((n, n)) / pool)  # given the pool's mean
    logs, deltas = np.linspace(-4, 7, 900), np.linspace(0, 8 * prior, 900)
    sigma, delta = np.exp(logs)[:, None], deltas[None]
    away = values / sigma[..., None] - delta[..., None]
    density = sigma ** (-n) * np.exp(-0.5 * np.einsum("sdi,ij,sdj->sd", away, inverse, away))
    half_normal = 2 * np.exp(-0.5 * (deltas / prior) ** 2) / (prior * math.sqrt(2 * math.pi))
    above = integrate.simpson(integrate.simpson(density * half_normal, x=deltas), x=logs)
    below = integrate.simpson(density[:, 0], x=logs)  # d sigma / sigma = d log sigma
    assert log_mixture(values, pool, prior=prior) == pytest.approx(
        math.log(above / below), abs=1e-6
    )


def ever_positive(pools: Array, level: float, first: int = 2) -> float:
    """Share of the pools, rows, that are called positive before their end."""
    pool = pools.shape[1]
    found = np.zeros(len(pools), dtype=bool)
    for n in range(first, pool):
        found |= bounds.mixture(pools[:, :n], pool, np.asarray(level), 0.0, False)
    return float(found.mean())


@pytest.mark.parametrize("pool", [6, 20, 60])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_a_normal_pool_of_mean_zero_is_rarely_called_positive(pool: int, level: float) -> None:
    draws = np.random.default_rng(0).standard_normal((4000, pool))
    zero = draws - draws.mean(1, keepdims=True)
    rate = ever_positive(zero, level)
    assert rate <= level + 3 * math.sqrt(level * (1 - level) / 4000)
    # It is not empty either: half of the level and more is used, and a real mean is found.
    assert rate > level / 5
    assert ever_positive(zero + 1.0, level) > (0.5 if pool > 6 else 0.1)
    assert ever_positive(zero - 1.0, level) < level / 5


def test_the_test_does_not_depend_on_scale_and_treats_constants_as_what_they_are() -> None:
    values = np.random.default_rng(0).standard_normal((5, 7)) + 0.5
    np.testing.assert_allclose(log_mixture(values, 20), log_mixture(1e4 * values, 20), rtol=1e-9)
    assert log_mixture(np.zeros(8), 20) < 0
    assert log_mixture(np.full(8, 0.3), 20) > 8
    assert log_mixture(np.full(8, -0.3), 20) < 0
    # One image in eight batches, or none: counts are not sure yet.
    assert log_mixture(np.full(8, 0.01), 20, floor=1.0) < 1


# Races on numbers


def run(scores: Array, config: RaceConfig, seed: int = 0, **settings: Any) -> RaceResult:
    """Race the rows of ``scores`` [candidates, batches] of 64 images."""
    sizes = settings.pop("sizes", [64] * scores.shape[1])
    order = np.random.default_rng(seed).permutation(scores.shape[1]).tolist()
    return race(
        lambda batch, rows: scores[rows, batch], sizes, order, len(scores), config, **settings
    )


def pool_of_losses(rng: np.random.Generator, gap: float, candidates: int = 7) -> Array:
    """Losses per batch of 64 images like those of removals on a trained supernet.

    A batch is hard or easy for all candidates alike; their differences are skewed and have tails.
    Over the pool every candidate is worse than the first by `gap` nats per image.
    """
    batches = 79
    common = 64 * (1.4 + 0.1 * rng.standard_normal(batches))
    skewed = rng.gamma(8.0, 1.0, (candidates, batches)) - 8.0  # skewness 0.7, as measured
    own = 64 * 0.02 * skewed / math.sqrt(8.0)
    own -= own.mean(1, keepdims=True)
    own[1:] -= 64 * gap
    result: Array = common + own
    return result


def wrong_rate(config: RaceConfig, gap: float, margin: float, draws: int = 200) -> float:
    """Share of races, one per pool, whose winner is worse than the best by more than the margin."""
    rng = np.random.default_rng(1)
    wrong = 0
    for seed in range(draws):
        scores = pool_of_losses(rng, gap)
        means = scores.mean(1) / 64
        winner = run(scores, config, seed, margin=margin).winner
        wrong += means.max() - means[winner] > margin + 1e-12
    return wrong / draws


def naive(
    values: Array, pool: int, level: Array, reach: float, counts: bool
) -> npt.NDArray[np.bool_]:
    """What not to do: a fixed threshold on a z-score that is looked at again and again."""
    error = values.std(-1, ddof=1) / math.sqrt(values.shape[-1])
    positive: npt.NDArray[np.bool_] = values.mean(-1) > 1.645 * error
    return positive


ERROR = 0.1


@pytest.mark.parametrize(("gap", "margin"), [(0.001, 0.0), (0.004, 0.0), (0.006, 0.005)])
def test_the_rate_of_wrong_decisions_stays_below_the_stated_one(gap: float, margin: float) -> None:
    assert wrong_rate(RaceConfig(error=ERROR), gap, margin) <= ERROR


def test_a_bad_bound_exceeds_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bounds.BOUNDS, "mixture", naive)
    assert wrong_rate(RaceConfig(error=ERROR), 0.001, 0.0) > 1.5 * ERROR


def test_any_division_of_the_error_rate_keeps_it() -> None:
    rng = np.random.default_rng(2)
    wrong, config = 0, RaceConfig(error=ERROR)
    shares = ranked_shares([0.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], largest=True)  # all but the best
    for seed in range(200):
        wrong += run(pool_of_losses(rng, 0.001), config, seed, shares=shares).winner != 0
    assert wrong / 200 <= ERROR


def test_a_good_order_saves_images() -> None:
    rng = np.random.default_rng(3)
    pools = [pool_of_losses(rng, 0.01) for _ in range(40)]
    good = ranked_shares([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], largest=True)
    assert sum(good) == pytest.approx(1)
    config = RaceConfig(error=ERROR)
    plain = [run(scores, config, i).share for i, scores in enumerate(pools)]
    ordered = [run(scores, config, i, shares=good).share for i, scores in enumerate(pools)]
    assert np.mean(ordered) < 0.98 * np.mean(plain)


def test_realistic_races_save_most_of_the_images() -> None:
    rng = np.random.default_rng(4)
    shares, outcomes = [], set()
    for seed in range(40):
        result = run(pool_of_losses(rng, 0.02), RaceConfig(), seed)
        shares.append(result.share)
        outcomes.add(result.outcome)
        assert result.winner == 0
    assert outcomes == {"decided"}
    assert np.mean(shares) < 0.35


def test_equal_candidates_go_through_the_pool_unless_there_is_a_margin() -> None:
    scores = pool_of_losses(np.random.default_rng(5), 0.0)
    scores[1] = scores[0]
    exact = run(scores[:2], RaceConfig())
    assert (exact.winner, exact.outcome, exact.share) == (0, "exhausted", 1.0)
    assert run(scores[:2], RaceConfig(), last=True).winner == 1
    loose = run(scores[:2], RaceConfig(), margin=0.01)
    assert (loose.outcome, loose.batches) == ("decided", [4, 4])


def test_a_pool_that_is_used_up_gives_the_full_pass() -> None:
    rng = np.random.default_rng(6)
    for seed in range(20):
        scores = rng.standard_normal((4, 9))
        result = run(scores, RaceConfig(error=1e-9), seed)
        assert result.winner == scores.sum(1).argmax()
        assert result.outcome == "exhausted"
        assert result.mean == pytest.approx((scores.sum(1) / (9 * 64)).tolist())
        smallest = run(scores, RaceConfig(error=1e-9), seed, largest=False)
        assert smallest.winner == scores.sum(1).argmin()


def test_images_count_and_not_batches() -> None:
    # By batches candidate 1 is ahead, by images candidate 0.
    scores = np.array([[10.0, 0.0, 0.0], [9.0, 0.4, 0.4]])
    result = run(scores, RaceConfig(), sizes=[100, 1, 1])
    assert result.winner == 0
    assert result.images == [102, 102]
    assert result.mean == pytest.approx([10 / 102, 9.8 / 102])


def test_losers_leave_and_the_limits_hold() -> None:
    rng = np.random.default_rng(7)
    scores = pool_of_losses(rng, 0.1, candidates=3)
    scores[1] = scores[0] - 0.02 * rng.standard_normal(79)  # a rival that cannot be told apart
    result = run(scores, RaceConfig(min_batches=5, max_batches=12))
    assert result.batches == [12, 12, 5]
    assert result.images == [768, 768, 320]
    assert (result.outcome, result.decided) == ("undecided", False)
    assert result.winner == int(np.nanargmax(result.mean[:2]))
    assert result.share == pytest.approx((2 * 12 + 5) / (3 * 79))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_is_infinite(bad: float) -> None:
    scores = pool_of_losses(np.random.default_rng(8), 0.1, candidates=3)
    scores[2, 40] = bad
    order = np.random.default_rng(0).permutation(79).tolist()
    most = run(scores[1:], RaceConfig(error=1e-12))
    assert (most.winner, most.outcome) == (1, "decided")
    assert most.batches == [order.index(40) + 1] * 2
    least = run(scores[1:], RaceConfig(error=1e-12), largest=False)
    assert (least.winner, least.outcome) == (0, "decided")


def test_one_candidate_is_not_evaluated() -> None:
    result = run(np.zeros((1, 5)), RaceConfig())
    assert (result.winner, result.outcome, result.images) == (0, "decided", [0])


def test_bernstein_decides_counts_and_is_exact_about_its_rate() -> None:
    rng = np.random.default_rng(9)
    config = RaceConfig(bound="bernstein", error=ERROR)
    clear = np.stack([rng.binomial(64, p, 400) for p in (0.8, 0.3)]).astype(float)
    result = run(clear, config, counts=True)
    assert (result.winner, result.outcome) == (0, "decided")
    assert result.batches[0] < 300
    assert run(clear, RaceConfig(error=ERROR), counts=True).batches[0] <= 8
    wrong = 0
    for seed in range(30):
        even = rng.binomial(64, 0.5, (2, 100)).astype(float)
        wrong += run(even, config, seed, counts=True).winner != even.sum(1).argmax()
    assert wrong == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"error": 0.0}, "error must be between 0 and 1, got 0.0"),
        ({"margin": -1.0}, "margin must be finite and >= 0, got -1.0"),
        ({"bound": "x"}, "bound must be one of mixture, bernstein, got 'x'"),
        ({"min_batches": 1}, "min_batches must be 2 or more, got 1"),
        (
            {"min_batches": 5, "max_batches": 3},
            "max_batches must be at least min_batches = 5, got 3",
        ),
    ],
)
def test_race_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaceConfig(**settings)


def test_race_arguments_are_checked() -> None:
    def evaluate(batch: int, rows: Sequence[int]) -> list[float]:
        return [0.0] * len(rows)

    with pytest.raises(ValueError, match="there must be a candidate, got 0"):
        race(evaluate, [4], [0], 0, RaceConfig())
    with pytest.raises(ValueError, match=r"permutation of the 2 batches, got \[0, 0\]"):
        race(evaluate, [4, 4], [0, 0], 2, RaceConfig())
    with pytest.raises(ValueError, match="bernstein needs scores that are counts"):
        race(evaluate, [4], [0], 2, RaceConfig(bound="bernstein"))
    with pytest.raises(ValueError, match=r"shares must be .* got \[0.9, 0.9\]"):
        race(evaluate, [4], [0], 2, RaceConfig(), shares=[0.9, 0.9])
    with pytest.raises(ValueError, match="a race needs mode paired, got 'compat'"):
        PerturbationConfig(mode="compat", race=RaceConfig())
    with pytest.raises(ValueError, match="bound bernstein needs proj_crit acc, got loss"):
        PerturbationConfig(proj_crit="loss", race=RaceConfig(bound="bernstein"))
    net, batches = planted()
    with pytest.raises(ValueError, match="a race needs removals to compare, got method 'strength'"):
        select(net, batches, method="strength", race=RaceConfig())


# Races in selections


@pytest.mark.parametrize("method", ["perturbation", "one_shot"])
@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_a_raced_selection_finds_the_planted_architecture(method: str, criterion: str) -> None:
    net, batches = planted(images=4000)
    config = PerturbationConfig(proj_crit=criterion, race=RaceConfig())
    selection = select(net, batches, method=method, config=config)
    assert selection.genotype == "|".join(["rotation"] * EDGES)
    assert all(decision.outcomes == ["decided"] for decision in selection.decisions)
    used = sum(sum(decision.images_used[0]) for decision in selection.decisions)
    assert used < 0.5 * 3 * EDGES * 4000


def test_races_are_summed_up() -> None:
    net, batches = planted(images=4000)
    decisions = select(net, batches, method="perturbation", race=RaceConfig()).decisions
    used = sum(sum(decision.images_used[0]) for decision in decisions)
    assert race_summary(decisions, 4000) == (
        f"{EDGES} races: {EDGES} decided, 0 saw all images, 0 undecided; "
        f"{100 * used / (EDGES * 3 * 4000):.1f} % of the images of full passes"
    )
    net, batches = planted()
    assert race_summary(select(net, batches, method="perturbation").decisions, 1000) is None


def small_selection(race: RaceConfig | None, criterion: str = "loss") -> PerturbationSelection:
    torch.manual_seed(0)
    net = build_supernet("nasbench201", channels=4, num_classes=3, layers=1)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(4, 3, 8, 8, generator=generator),
            torch.randint(3, (4,), generator=generator),
        )
        for _ in range(4)
    ]
    config = PerturbationConfig(proj_intv=0, proj_crit=criterion, seed=3, race=race)
    return PerturbationSelection(net, batches, config)


@pytest.mark.parametrize("criterion", ["acc", "loss"])
def test_a_race_through_the_whole_pool_is_the_full_pass(criterion: str) -> None:
    raced = small_selection(RaceConfig(error=1e-15, margin=0.0), criterion).run()
    full = small_selection(None, criterion).run()
    for one, other in zip(raced, full, strict=True):
        assert (one.kind, one.place, one.chosen) == (other.kind, other.place, other.chosen)
        for mine, theirs in zip(one.loss, other.loss, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-12)
        assert one.accuracy == other.accuracy
        assert one.loss_stderr[0] == pytest.approx(other.loss_stderr[0], rel=1e-9)
        assert set(one.outcomes) == {"exhausted"}
        assert set(other.outcomes) == {"full"}
        assert one.images_used == other.images_used == [[16] * len(row) for row in one.loss]


def test_noise_is_the_same_in_a_race_and_in_the_full_pass() -> None:
    def losses(race: RaceConfig | None) -> list[list[list[float]]]:
        net, batches = planted()
        config = PerturbationConfig(proj_crit="loss", race=race)
        phase = PerturbationSelection(net, batches, config)
        phase.run()
        return [decision.loss for decision in phase.decisions]

    raced, full = losses(RaceConfig(error=1e-15, min_batches=9, margin=0.0)), losses(None)
    for mine, theirs in zip(raced, full, strict=True):
        assert mine == [pytest.approx(theirs[0], rel=1e-12)]


def test_a_node_shares_its_error_rate_among_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []

    def watched(
        values: Array, pool: int, level: Array, reach: float, counts: bool
    ) -> npt.NDArray[np.bool_]:
        seen.append((len(values), float(np.max(level))))
        return np.zeros(values.shape[:-1], dtype=bool)

    monkeypatch.setitem(bounds.BOUNDS, "mixture", watched)
    net = ScriptedNet(lambda removed: 0.0)
    config = PerturbationConfig(proj_intv=0, race=RaceConfig(error=0.12, min_batches=2))
    PerturbationSelection(net, scripted_batches(4), config).run()
    assert {(k, round(level * (k - 1), 9)) for k, level in seen} == {
        (7, 0.12),  # operations
        (5, 0.04),  # node 5: three rounds
        (4, 0.04),
        (3, 0.04),
        (4, 0.06),  # node 4
        (3, 0.06),
        (3, 0.12),  # node 3
    }


def stopped_at(selection: PerturbationSelection, decisions: int) -> None:
    class StopError(Exception):
        pass

    def stop() -> None:
        if len(selection.decisions) == decisions:
            raise StopError

    selection.checkpoint = stop
    with pytest.raises(StopError):
        selection.run()


def test_a_raced_selection_goes_on_to_the_same_result() -> None:
    config = RaceConfig(min_batches=2, margin=0.02, error=0.4, ordered=True)
    whole = small_selection(config)
    whole.run()
    assert "decided" in {outcome for d in whole.decisions for outcome in d.outcomes}
    first = small_selection(config)
    stopped_at(first, 3)
    second = small_selection(config)
    second.net.projection.load_state_dict(first.net.projection.state_dict())
    second.load_state_dict(first.state_dict())
    second.run()
    assert second.decisions == whole.decisions


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "most"), [("loss", 0.6), ("acc", 0.9)])
def test_races_on_a_trained_supernet_agree_with_the_full_pass(criterion: str, most: float) -> None:
    data = load_data("digits")
    seed_everything(0)
    net = build_supernet("nasbench201", channels=4, num_classes=10, layers=1)
    search = Search(net, data, epochs=4, learning_rate=0.1, batch_size=32, select="magnitude")
    search.run()
    batches = fixed_batches(search.trainer.valid, data.plain, 32)
    scores = removal_scores(net, batches, cell_type="cell")
    sizes = [len(labels) for _, labels in batches]
    config = RaceConfig()
    margin, wrong, shares = config.margin_of(criterion), 0, []
    for edge in range(6):
        table = scores.batch_loss[edge] if criterion == "loss" else -scores.batch_correct[edge]
        means = (table.sum(1) / scores.images).tolist()
        for seed in range(20):
            counts = criterion == "acc"
            result = run(table.numpy(), config, seed, sizes=sizes, margin=margin, counts=counts)
            wrong += max(means) - means[result.winner] > margin + 1e-12
            shares.append(result.share)
    assert wrong / len(shares) <= config.error
    assert np.mean(shares) < most


def test_races_say_how_they_went_in_the_log() -> None:
    lines: list[str] = []
    log: Callable[[str], None] = lines.append
    net, batches = planted()
    select(net, batches, method="perturbation", race=RaceConfig(), log=log)
    assert sum(line.startswith("race decided: images ") for line in lines) == EDGES

# SPDX-License-Identifier: Apache-2.0
"""Early stopping: the rules on series by hand, and what they do to a search."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_fast.backend import use_backend
from darts_fast.data import Dataset, load_data
from darts_fast.nn import build_supernet
from darts_fast.search import Interrupted, Reporter, Search, SearchConfig
from darts_fast.search import early_stopping as module
from darts_fast.search.alpha_hessian import exact_hessian
from darts_fast.search.early_stopping import EarlyStopping, dominant_eigenvalue
from darts_fast.search.stopping_rules import EigenvalueRule, SkipRule, normal_skips
from darts_fast.seeding import seed_everything
from darts_fast.spaces import DARTS_V1, DARTS_V2


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=32)


# The rules


def test_the_published_rule_decides_at_epoch_24_for_epoch_12() -> None:
    rule = EigenvalueRule()
    series = [0.3] * 10 + [0.3 * 1.25**k for k in range(1, 8)]
    found = {2 * check: rule.update(2 * check, value) for check, value in enumerate(series)}
    assert {epoch: found[epoch] for epoch in range(0, 26, 2)} == {
        **dict.fromkeys(range(0, 24, 2)),
        24: 12,
    }


@pytest.mark.parametrize("jump", range(6, 14))
def test_the_rule_compares_means_of_full_windows(jump: int) -> None:
    """A step from 1 to 3 moves the mean of 5 by 0.4 a check: above 1.3 at once, if early enough."""
    rule = EigenvalueRule(every=1, first=4)
    decided = [rule.update(epoch, 1.0 if epoch < jump else 3.0) for epoch in range(20)]
    first = next(epoch for epoch, target in enumerate(decided) if target is not None)
    # A target of 4 needs epoch 10; the means before the jump reach to 4 checks behind it.
    assert first == max(jump, 10)
    assert decided[first] == first - 6


def test_the_rule_goes_on_while_eigenvalues_fall_or_rise_slowly() -> None:
    for factor in (0.9, 1.0, 1.05):  # 1.05^4 < 1.3
        rule = EigenvalueRule(every=1, first=0)
        assert [rule.update(epoch, factor**epoch) for epoch in range(30)] == [None] * 30
    rule = EigenvalueRule(every=1, first=0)
    assert any(rule.update(epoch, 1.08**epoch) is not None for epoch in range(30))


def test_what_is_forgotten_does_not_decide_again() -> None:
    rule = EigenvalueRule(every=1, first=0)
    found = [rule.update(epoch, 1.2**epoch) for epoch in range(9)]
    target = found[8]
    assert found == [None] * 8 + [2]
    assert target == 2
    rule.forget_after(target)
    other = EigenvalueRule(every=1, first=0)
    other.load_state_dict(rule.state_dict())
    assert other.values == {0: 1.0, 1: 1.2, 2: 1.2**2}
    assert [other.update(epoch, 1.0) for epoch in range(3, 12)] == [None] * 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"first": -1}, "first must be at least 0, got -1"),
        ({"ratio": 0.0}, "ratio must be positive, got 0"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EigenvalueRule(**options)


def test_skips_of_the_normal_cell_count() -> None:
    assert (normal_skips(DARTS_V1), normal_skips(DARTS_V2)) == (3, 2)
    arch = "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    assert normal_skips(arch) == 2
    rule = SkipRule(2)
    assert [rule.update(7, DARTS_V2), rule.update(8, DARTS_V1), rule.update(0, DARTS_V1)] == [
        None,
        7,
        0,
    ]
    with pytest.raises(ValueError, match="skips must be at least 0, got -1"):
        SkipRule(-1)
    with pytest.raises(ValueError, match="needs a rule, got none"):
        EarlyStopping()
    with pytest.raises(ValueError, match="adapt needs the eigenvalue rule"):
        EarlyStopping(skips=SkipRule(1), adapt=True)


# In a search


class Watch(Reporter):
    """Keeps the log and the events, and can stop after so many steps."""

    def __init__(self, stop_after: int = -1) -> None:
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.left = stop_after

    def log(self, line: str) -> None:
        self.lines.append(line)

    def record(self, event: Any) -> None:
        self.events.append(dict(event))

    def advance(self, accuracy: float | None = None) -> None:
        self.left -= 1

    @property
    def stopping(self) -> bool:
        return self.left == 0


def search_of(data: Dataset, stopping: EarlyStopping, **options: Any) -> Search:
    seed_everything(3)
    net = build_supernet("s2", channels=2, num_classes=10, layers=3)
    config = SearchConfig(epochs=9, batch_size=16, seed=3, valid_freq=0, arch_learning_rate=0.1)
    options = {"reporter": Watch(), "select": "magnitude", **options}
    return Search(net, data, config, stopping=stopping, **options)


def weights_of(search: Search) -> dict[str, Tensor]:
    state = search.net.full_state_dict()
    return copy.deepcopy({**state["state_dict"], **state["alphas"]})


def kept_weights(search: Search) -> dict[int, dict[str, Tensor]]:
    """By epoch the weights at its end, before anything goes back."""
    kept: dict[int, dict[str, Tensor]] = {}
    end_epoch = search.trainer.method.end_epoch

    def watched(loop: Any) -> None:
        end_epoch(loop)
        kept[loop.epoch] = weights_of(search)

    search.trainer.method.end_epoch = watched  # type: ignore[method-assign]
    return kept


def planted(monkeypatch: pytest.MonkeyPatch, growth: float) -> list[int]:
    """Eigenvalues that grow by a factor with every epoch; the epochs at which one was asked for."""
    asked: list[int] = []

    def value(loop: Any) -> float:
        asked.append(loop.epoch)
        return growth**loop.epoch

    monkeypatch.setattr(module, "dominant_eigenvalue", value)
    return asked


def quick_rule() -> EigenvalueRule:
    """Decides at epoch 4 for epoch 2: means of 1, 2 checks apart."""
    return EigenvalueRule(window=1, delay=2, every=1, first=2)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_search_ends_with_the_network_of_the_epoch_it_goes_back_to(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = planted(monkeypatch, 1.3)
    search = search_of(digits, EarlyStopping(eigenvalue=quick_rule()))
    kept = kept_weights(search)
    result = search.run()
    assert asked == [0, 1, 2, 3, 4]
    assert same(weights_of(search), kept[2])
    assert not same(weights_of(search), kept[4])
    assert result.history[2]["genotype"] == result.history[-1]["genotype"]
    reporter = search.reporter
    assert isinstance(reporter, Watch)
    assert "early stopping: back from epoch 4 to epoch 2" in reporter.lines
    assert {"event": "eigenvalue", "epoch": 1, "value": 1.3} in reporter.events
    assert {"event": "early_stopping", "epoch": 4, "back_to": 2} in reporter.events


def test_ada_goes_on_from_there_with_three_times_the_weight_decay(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = planted(monkeypatch, 1.3)
    stopping = EarlyStopping(eigenvalue=quick_rule(), adapt=True)
    search = search_of(digits, stopping, weight_decay=3e-3)
    decays: list[tuple[int, float]] = []
    begin_epoch = search.trainer.method.begin_epoch

    def watched(loop: Any) -> None:
        decays.append((loop.epoch, round(loop.optimizer.param_groups[0]["weight_decay"], 6)))
        begin_epoch(loop)

    search.trainer.method.begin_epoch = watched  # type: ignore[method-assign]
    search.run()
    # Back to 2 from 4 each time: 0.003, 0.009, then 0.027 which is cut to 0.0243, then the end.
    assert decays == [
        *((epoch, 0.003) for epoch in range(5)),
        *((3, 0.009), (4, 0.009), (3, 0.0243), (4, 0.0243)),
    ]
    assert asked == [0, 1, 2, 3, 4, 3, 4, 3, 4]
    assert search.trainer.stopped


def test_too_many_skips_end_the_search_before_them(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_of(digits, EarlyStopping(skips=SkipRule(2)))
    kept = kept_weights(search)

    def more_skips() -> Any:
        return DARTS_V2 if search.trainer.epoch < 3 else DARTS_V1

    monkeypatch.setattr(search.net, "genotype", more_skips)
    search.run()
    assert max(kept) == 3
    assert same(weights_of(search), kept[2])


def test_a_stopped_search_goes_on_with_its_selection(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, 1.3)
    search = search_of(digits, EarlyStopping(eigenvalue=quick_rule()), select="strength")
    kept = kept_weights(search)
    found = search.run()
    assert max(kept) == 4
    assert found.decisions
    assert torch.equal(search.net.arch_parameters()[0], kept[2]["normal"])


def test_an_interrupted_search_stops_at_the_same_epoch_with_the_same_network(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, 1.3)
    whole = search_of(digits, EarlyStopping(eigenvalue=quick_rule(), adapt=True))
    whole.run()
    states: list[Any] = []
    stopping = EarlyStopping(eigenvalue=quick_rule(), adapt=True)
    first = search_of(digits, stopping, reporter=Watch(stop_after=6))
    first.checkpoint = lambda state: states.append(copy.deepcopy(state))
    with pytest.raises(Interrupted):
        first.run()
    rest = search_of(digits, EarlyStopping(eigenvalue=quick_rule(), adapt=True))
    rest.load_state_dict(states[-1])
    rest.run()
    assert same(weights_of(rest), weights_of(whole))
    assert rest.history == whole.history


def test_a_search_that_is_only_watched_is_the_search(digits: Dataset) -> None:
    rule = EigenvalueRule(every=4, first=100)
    watched = search_of(digits, EarlyStopping(eigenvalue=rule))
    states: list[Any] = []
    watched.checkpoint = states.append
    watched.run()
    kept = [sorted(state["trainer"]["stopping"]["snapshots"]) for state in states]
    assert kept == [[0]] * 4 + [[0, 4]] * 4
    assert sorted(rule.values) == [0, 4, 8]
    seed_everything(3)
    net = build_supernet("s2", channels=2, num_classes=10, layers=3)
    plain = Search(net, digits, watched.config, reporter=Watch(), select="magnitude")
    plain.run()
    assert same(weights_of(watched), weights_of(plain))


def test_the_eigenvalue_is_that_of_autograd(digits: Dataset) -> None:
    search = search_of(digits, EarlyStopping(skips=SkipRule(8)))
    net, loop = search.net, search.trainer._loop
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.normal_()
    batch = loop.draw_valid()
    loop.draw_valid = lambda: batch  # type: ignore[method-assign]
    before, random = weights_of(search), torch.get_rng_state()
    net.eval()
    found = dominant_eigenvalue(loop, tolerance=1e-5)
    assert not net.training
    assert same(weights_of(search), before)
    assert torch.equal(random, torch.get_rng_state())
    twin = copy.deepcopy(net).double().train()

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(twin(batch.images.double()), batch.labels)

    with use_backend("reference"):
        exact = exact_hessian(twin, loss)
    wanted = float(torch.linalg.eigvalsh((exact + exact.T) / 2)[-1])
    assert found == pytest.approx(wanted + search.config.arch_weight_decay, rel=1e-3)

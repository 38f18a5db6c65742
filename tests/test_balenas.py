# SPDX-License-Identifier: Apache-2.0
"""BaLeNAS in a search: gradients at samples, the means in the weight step, and its posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_fast.data import Dataset, load_data
from darts_fast.nn import build_supernet
from darts_fast.reporter import Reporter
from darts_fast.search import SearchConfig, Trainer
from darts_fast.search.loop import Loop
from darts_fast.search.methods.balenas import BaLeNAS, BaLeNASOptions
from darts_fast.search.methods.training_free import best_drawn
from darts_fast.search.methods.vadam import Vadam
from darts_fast.seeding import seed_everything


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def trainer_of(data: Dataset, space: str = "nasbench201", **options: Any) -> Trainer:
    seed_everything(0)
    net = build_supernet(space, channels=4, num_classes=10, layers=1 if space[0] == "n" else 3)
    config = SearchConfig(method="balenas", method_options=options, batch_size=8, epochs=2)
    return Trainer(net.double(), data, config)


def begun(trainer: Trainer) -> BaLeNAS:
    """The method, with the loop at its first step."""
    trainer._loop.begin_step(trainer.batch(*trainer._search_batches.draw()), trainer._valid_stream)
    method = trainer.method
    assert isinstance(method, BaLeNAS)
    return method


@pytest.mark.parametrize("space", ["nasbench201", "s2"])
def test_samples_in_one_pass_are_samples_one_by_one(digits: Dataset, space: str) -> None:
    trainer = trainer_of(digits, space, samples=3)
    method, loop, net = begun(trainer), trainer._loop, trainer.net
    cell_type = net.space.cell_types[0]
    net.projection.project_op(cell_type, 1, 0)  # a decided edge has no gradient
    samples = method.posterior.sample(3)
    loss, together = method.at_samples.grouped(loop, [sample.clone() for sample in samples])
    losses, alone = method.at_samples.one_by_one(loop, samples)
    assert loss == pytest.approx(losses, rel=1e-12)
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert (together[0][:, 1] == 0).all()
    assert together[0][:, 0].abs().sum() > 0


def test_a_step_is_that_of_the_optimizer_and_weights_see_the_means(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(digits, samples=2, data_size=100)
    alpha = trainer.net.arch_parameters()[0]
    twin = alpha.detach().clone()
    reference = Vadam([twin], trainer.config.arch_learning_rate, data_size=100, samples=2)
    seen: list[list[Tensor]] = []
    move = Vadam.move

    def watched(posterior: Vadam, gradients: Sequence[Tensor]) -> None:
        seen.append([gradient.clone() for gradient in gradients])
        move(posterior, gradients)

    monkeypatch.setattr(Vadam, "move", watched)
    weight_step = trainer._weight_step

    def step(*arguments: Any) -> None:
        move(reference, seen[-1])
        assert torch.equal(alpha, twin)
        weight_step(*arguments)

    monkeypatch.setattr(trainer, "_weight_step", step)
    trainer.run_epoch(Reporter(), lambda: None)
    assert len(seen) == 3
    assert seen[0][0].shape == (2, *alpha.shape)
    assert trainer.arch_optimizer.state == {}  # Adam has done nothing


def test_second_order_takes_its_virtual_step_at_the_means(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(digits, samples=2, hypergradient="second")
    method, loop = begun(trainer), trainer._loop
    alpha = trainer.net.arch_parameters()[0]
    mean = alpha.detach().clone()
    calls: list[tuple[str, Tensor]] = []
    gradients = Loop.gradients

    def watched(loop: Loop, batch: Any, leaves: Any, weights: Any = None) -> Any:
        kind = "virtual" if len(leaves) == len(loop.weights) else "at sample"
        calls.append((kind, alpha.detach().clone()))
        return gradients(loop, batch, leaves, weights)

    monkeypatch.setattr(Loop, "gradients", watched)
    found = method.gradient(loop)
    assert found is not None
    assert [kind for kind, _ in calls] == ["virtual", *["at sample"] * 3] * 2
    assert all(torch.equal(at, mean) for kind, at in calls if kind == "virtual")
    first, second = calls[1][1], calls[5][1]
    assert not torch.equal(first, mean)
    assert not torch.equal(first, second)
    assert all(torch.equal(calls[i][1], first) for i in (2, 3))
    assert torch.equal(alpha, mean)


def test_orders_differ_by_what_the_learning_rate_scales(digits: Dataset) -> None:
    """With a small learning rate of the weights all hypergradients are the first-order one."""
    for rate, near in ((1e-9, True), (0.5, False)):
        found = {}
        for order in ("first", "second", "implicit"):
            trainer = trainer_of(digits, samples=1, hypergradient=order)
            trainer.config = trainer.config.with_settings(learning_rate=rate, learning_rate_min=0.0)
            method = begun(trainer)
            result = method.gradient(trainer._loop)
            assert result is not None
            found[order] = result[1][0]
        for order in ("second", "implicit"):
            distance = (found[order] - found["first"]).norm() / found["first"].norm()
            assert (distance < 1e-5) == near


def test_the_training_free_pick_is_the_best_of_the_group() -> None:
    seed_everything(0)
    net = build_supernet("nasbench201", channels=4, num_classes=10, layers=1)
    before = [alpha.detach().clone() for alpha in net.arch_parameters()]
    posterior = Vadam(net.arch_parameters(), generator=torch.Generator().manual_seed(0))
    calls: list[str] = []

    def planted(architecture: Any) -> float:
        """Counts convolutions of 3x3."""
        calls.append(architecture)
        return float(architecture.count("nor_conv_3x3"))

    found = best_drawn(net, posterior, planted, samples=50)
    assert len(calls) == len(set(calls)) == len(found.architectures) > 20
    assert found.scores == [float(text.count("nor_conv_3x3")) for text in found.architectures]
    assert found.best == found.architectures[found.scores.index(max(found.scores))]
    # The group is what the posterior draws: sigma is 1, so that no operation is preferred.
    (draws,) = Vadam(net.arch_parameters(), generator=torch.Generator().manual_seed(0)).sample(50)
    assert found.architectures[0] == net.space.genotype({"cell": draws[0].softmax(-1)})
    assert all(map(torch.equal, before, net.arch_parameters()))
    assert best_drawn(net, posterior).best == net.genotype()
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        best_drawn(net, posterior, planted, samples=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hypergradient": "third"}, "must be one of first, second, implicit, got 'third'"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"prior_precision": -1.0}, "prior_precision, which is positive, got 1.0 and -1.0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        BaLeNASOptions(**options)

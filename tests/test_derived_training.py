# SPDX-License-Identifier: Apache-2.0
"""The training recipe of derived networks, against a plain loop and rule by rule."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.data import Augmentation, Batches, Dataset, Images, load_data
from darts_fast.derive.train import (
    EpochResult,
    NetworkTraining,
    TrainConfig,
    TrainProgress,
    train_network,
)
from darts_fast.evaluation import evaluate
from darts_fast.reporter import NonFiniteLossError
from darts_fast.seeding import generator


class Net(nn.Module):
    """A small convolution network with an auxiliary head and a drop-path-like draw."""

    def __init__(self, auxiliary: bool = True) -> None:
        super().__init__()
        self.drop_path_prob = 0.0
        self.seen: list[float] = []
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        self.side = nn.Linear(8, 3) if auxiliary else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.norm(self.first(x)).relu()
        if self.training:
            self.seen.append(self.drop_path_prob)
            keep = torch.rand(len(h), 1, 1, 1) >= self.drop_path_prob
            h = h * keep / (1 - self.drop_path_prob)
        h = h.mean((2, 3))
        use_side = self.side is not None and self.training
        return self.head(h), self.side(h) if use_side else None


def dataset(n: int = 22, *, pad: int = 1) -> Dataset:
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n + 9, 3, 6, 6), dtype=torch.uint8, generator=draws)
    labels = torch.arange(n + 9) % 3
    pixels[torch.arange(n + 9), labels] |= 128
    augmentation = Augmentation((0.5,) * 3, (0.3,) * 3, pad=pad, cutout=2)
    train, test = Images(pixels[:n], labels[:n]), Images(pixels[n:], labels[n:])
    return Dataset("small", train, test, ("r", "g", "b"), augmentation)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 4, "batch_size": 8, "seed": 3, **changes})


def built(auxiliary: bool = True) -> Net:
    torch.manual_seed(0)
    return Net(auxiliary)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_equals_a_plain_loop(auxiliary: bool) -> None:
    data, config = dataset(), small(learning_rate=0.5, grad_clip=0.3, drop_path_prob=0.4)
    net = built(auxiliary).eval()
    result = train_network(net, data, config)

    other = built(auxiliary)
    velocity = {name: torch.zeros_like(p) for name, p in other.named_parameters()}
    batches = Batches(data.train, data.augmentation, 8, generator(3, "train_network: batches"))
    torch.manual_seed(generator(3, "train_network: network").initial_seed())
    clipped = 0
    for epoch in range(4):
        rate = 0.25 * (1 + math.cos(math.pi * epoch / 4))
        other.drop_path_prob = 0.4 * epoch / 4
        other.train()
        for x, y in batches:
            logits, side = other(x)
            loss = functional.cross_entropy(logits, y)
            if side is not None:
                loss = loss + 0.4 * functional.cross_entropy(side, y)
            gradients = torch.autograd.grad(loss, list(other.parameters()))
            norm = torch.stack([g.norm() for g in gradients]).norm()
            clipped += int(norm > 0.3)
            with torch.no_grad():
                for (name, p), g in zip(other.named_parameters(), gradients, strict=True):
                    g = g * min(1.0, 0.3 / (norm.item() + 1e-6)) + 3e-4 * p
                    velocity[name] = 0.9 * velocity[name] + g
                    p -= rate * velocity[name]
    assert clipped > 6  # the case tests clipping
    for (name, ours), theirs in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    accuracy, loss = evaluate(other, data.test, data.plain, 8)
    assert result.test_accuracy == accuracy
    assert result.history[-1].test_loss == pytest.approx(loss, rel=1e-4)


def test_schedules_and_history() -> None:
    net, lines, steps = built(), [], []
    result = train_network(net, dataset(), small(), progress=steps.append, log=lines.append)
    rates = [0.0125 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert [r.learning_rate for r in result.history] == pytest.approx(rates)
    assert [r.drop_path_prob for r in result.history] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert net.seen == pytest.approx([p for p in (0, 0.05, 0.1, 0.15) for _ in range(3)])
    assert [r.epoch for r in result.history] == [0, 1, 2, 3]
    tested = [r.test_accuracy for r in result.history]
    assert result.best_test_accuracy == max(t for t in tested if t is not None)
    assert result.test_accuracy == tested[-1]
    assert [(p.epoch, p.step, p.steps, p.images) for p in steps][:4] == [
        (0, 1, 3, 8),
        (0, 2, 3, 8),
        (0, 3, 3, 6),
        (1, 1, 3, 8),
    ]
    assert len(steps) == 12
    last: TrainProgress = steps[-1]
    final: EpochResult = result.history[-1]
    assert (last.loss, last.accuracy) == (final.train_loss, final.train_accuracy)
    assert lines[:3] == [
        "epoch 0 lr 2.500000e-02",
        f"train_acc {result.history[0].train_accuracy:f}",
        f"valid_acc {result.history[0].test_accuracy:f}",
    ]
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("every", "epochs", "tested"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (9, 2, [1])]
)
def test_evaluation_interval(every: int, epochs: int, tested: list[int]) -> None:
    config = small(epochs=epochs, evaluate_every=every)
    result = train_network(built(), dataset(), config)
    assert [r.epoch for r in result.history if r.test_accuracy is not None] == tested
    assert [r.epoch for r in result.history if r.test_loss is not None] == tested


def test_the_seed_decides_everything() -> None:
    runs = []
    for seed, disturbance in ((3, 1), (3, 2), (4, 1)):
        net = built()
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        train_network(net, dataset(), small(seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
        runs.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


class Stop(Exception):  # noqa: N818  (as a signal would)
    """Raised by a test after a step."""


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("steps", range(1, 10))
def test_a_training_stopped_after_any_step_goes_on_to_the_same_bits(steps: int, every: int) -> None:
    """Three epochs of three steps."""
    data, config = dataset(), small(epochs=3, drop_path_prob=0.4, evaluate_every=every)
    whole, net = built(), built()
    result = train_network(whole, data, config)
    saved: list[dict[str, Any]] = []

    def stop(step: TrainProgress) -> None:
        if 3 * step.epoch + step.step == steps:
            saved.append(copy.deepcopy(first.state_dict()))
            raise Stop

    first = NetworkTraining(built(), data, config, progress=stop)
    with pytest.raises(Stop):
        first.run()
    second = NetworkTraining(net, data, config)
    second.load_state_dict(saved[0])
    assert 3 * second.epoch + second.step == steps
    assert second.run() == result
    assert_same(net, whole)


def test_a_training_goes_on_from_the_end_of_an_epoch() -> None:
    data, config = dataset(), small(epochs=3, drop_path_prob=0.4)
    whole = built()
    saved: list[dict[str, Any]] = []
    training = NetworkTraining(
        whole,
        data,
        config,
        checkpoint=lambda: saved.append(copy.deepcopy(training.state_dict())),
    )
    result = training.run()
    assert len(saved) == 3
    for state in saved:
        net = built()
        later = NetworkTraining(net, data, config)
        later.load_state_dict(state)
        assert later.run() == result
        assert_same(net, whole)


def test_a_last_batch_of_one_image_is_left_out() -> None:
    steps: list[TrainProgress] = []
    train_network(built(), dataset(17), small(epochs=1), progress=steps.append)
    assert [s.images for s in steps] == [8, 8]
    steps.clear()
    train_network(built(), dataset(3), small(epochs=1), progress=steps.append)
    assert [s.images for s in steps] == [3]
    with pytest.raises(ValueError, match=r"train_network: .* 2 training images, got 1"):
        train_network(built(), dataset(1), small())


def test_cutout_is_used_when_the_augmentation_has_it() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)
            self.zeros: dict[bool, int] = {True: 0, False: 0}

        def forward(self, x: Tensor) -> Tensor:
            self.zeros[self.training] += int((x == 0).sum())
            return self.head(x.mean((2, 3)))

    spy = Spy()
    train_network(spy, dataset(pad=0), small(epochs=1))
    assert spy.zeros[True] >= 22 * 3  # at least one pixel of each image
    assert spy.zeros[False] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(value: float) -> None:
    class Breaks(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            logits, side = super().forward(x)
            return logits * (value if len(self.seen) == 5 else 1), side

    torch.manual_seed(0)
    message = (
        r"loss must be finite, got nan at epoch 1, step 2 of 3; first in .*; "
        r"a smaller .* 0.025 may help"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        train_network(Breaks(), dataset(), small())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"grad_clip": math.nan}, "grad_clip must be positive, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"auxiliary_weight": -0.4}, "auxiliary_weight must be at least 0, got -0.4"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        ({"drop_path_prob": -0.2}, "drop_path_prob must be at least 0 and below 1, got -0.2"),
    ],
)
def test_config_is_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"TrainConfig: {message}"):
        TrainConfig(**change)


def test_defaults_are_those_of_darts() -> None:
    assert dataclasses.asdict(TrainConfig()) == {
        "epochs": 600,
        "batch_size": 96,
        "learning_rate": 0.025,
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "grad_clip": 5.0,
        "auxiliary_weight": 0.4,
        "drop_path_prob": 0.2,
        "seed": 0,
        "evaluate_every": 1,
    }


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    result = train_network(net, load_data("digits"), TrainConfig(epochs=3, batch_size=32))
    assert result.test_accuracy > 93


def test_trains_a_derived_network() -> None:
    from darts_fast.derive.network import NetworkCIFAR
    from darts_fast.spaces.well_known import DARTS_V2

    torch.manual_seed(0)
    net = NetworkCIFAR(4, 10, 5, True, DARTS_V2)
    data = load_data("digits16", limit=64)
    data = dataclasses.replace(data, test=data.test.take(32))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = train_network(net, data, TrainConfig(epochs=2, batch_size=32))
    assert math.isfinite(result.history[-1].train_loss)
    assert net.drop_path_prob == pytest.approx(0.1)
    # The auxiliary head has learnt too.
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith("auxiliary_head") for k in changed)

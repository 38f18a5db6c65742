# SPDX-License-Identifier: Apache-2.0
"""The second-order architecture step (shared acceptance test of DARTS, parts iii and iv)."""

from __future__ import annotations

import copy

import eager_supernets
import pytest
import torch
from compat_cases import ARGS
from compat_cases import batch as draw
from torch import Tensor, nn

from darts_fast.compat._unrolled import unrolled_alpha_gradients
from darts_fast.compat.darts.architect import Architect
from darts_fast.compat.darts.model_search import Network

ETA, MOMENTUM, DECAY = 0.05, ARGS.momentum, ARGS.weight_decay
Batch = tuple[Tensor, Tensor]


def network() -> tuple[Network, torch.optim.SGD]:
    net = Network(2, 5, 3, nn.CrossEntropyLoss(), 2, 2).double()
    return net, torch.optim.SGD(net.parameters(), ETA, momentum=MOMENTUM, weight_decay=DECAY)


def train_a_step(net: Network, optimizer: torch.optim.SGD) -> None:
    optimizer.zero_grad()
    net._loss(*draw(5)).backward()
    optimizer.step()
    optimizer.zero_grad()


def unrolled_loss(
    plain: eager_supernets.Network,
    alphas: list[Tensor],
    velocities: list[Tensor | None],
    train: Batch,
    valid: Batch,
) -> float:
    """L_val after a weight step at these alphas, by plain modules; `plain` stays as it is."""
    trial = copy.deepcopy(plain)
    trial.alphas_normal, trial.alphas_reduce = alphas
    weights = list(trial.parameters())
    loss = nn.functional.cross_entropy(trial(train[0]), train[1])
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for w, g, velocity in zip(weights, gradients, velocities, strict=True):
            step = g + DECAY * w
            w -= ETA * (step if velocity is None else MOMENTUM * velocity + step)
        return nn.functional.cross_entropy(trial(valid[0]), valid[1]).item()


@pytest.mark.parametrize("momentum", [False, True])
def test_equals_finite_differences(momentum: bool) -> None:
    net, sgd = network()
    if momentum:
        train_a_step(net, sgd)
    train, valid = draw(1), draw(2)
    plain = eager_supernets.Network(2, 5, 3, "multiply", steps=2).double()
    plain.load_state_dict(net.state_dict())
    velocities = [sgd.state[w].get("momentum_buffer") for w in net.parameters()]
    assert all((velocity is not None) == momentum for velocity in velocities)
    common = {"eta": ETA, "momentum": MOMENTUM, "weight_decay": DECAY, "network_optimizer": sgd}
    found = unrolled_alpha_gradients(net, train, valid, **common, scale=1e-6)

    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]
    first = torch.autograd.grad(net._loss(*valid), net.arch_parameters())
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(a.shape, dtype=a.dtype, generator=generator) for a in alphas]
        h = 1e-6  # the gradient jumps where a ReLU or a maximum switches
        up, down = (
            unrolled_loss(
                plain,
                [a + sign * h * d for a, d in zip(alphas, directions, strict=True)],
                velocities,
                train,
                valid,
            )
            for sign in (1, -1)
        )
        expected = (up - down) / (2 * h)
        slope = sum((g * d).sum().item() for g, d in zip(found, directions, strict=True))
        length = sum(g.square().sum().item() for g in found) ** 0.5
        assert abs(slope - expected) < 1e-4 * length
        wrong = sum((g * d).sum().item() for g, d in zip(first, directions, strict=True))
        assert abs(wrong - expected) > 1e-3 * length


def test_weights_are_bitwise_the_same_and_statistics_move_as_in_the_original() -> None:
    """Three forwards of the training batch move the running statistics, none of validation does."""
    net, sgd = network()
    train_a_step(net, sgd)
    twin, other = copy.deepcopy(net), copy.deepcopy(net)
    train, valid = draw(1), draw(2)
    before = [weight.detach().clone() for weight in net.parameters()]
    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]
    architect = Architect(net, ARGS)
    architect.step(*train, *valid, ETA, sgd, unrolled=True)
    assert all(torch.equal(w, saved) for w, saved in zip(net.parameters(), before, strict=True))
    assert all(w.requires_grad and w.grad is None for w in net.parameters())
    for alpha, saved in zip(net.arch_parameters(), alphas, strict=True):
        assert (alpha - saved).abs().max() > 0
    counts = {key: value for key, value in net.named_buffers() if key.endswith("tracked")}
    initial = dict(twin.named_buffers())
    assert {int(value - initial[key]) for key, value in counts.items()} == {3}
    # The statistics of the stem do not depend on the small shifts: three times the same batch.
    for _ in range(3):
        twin(train[0])
        other(valid[0])
    key = "stem.1.running_mean"
    torch.testing.assert_close(net.state_dict()[key], twin.state_dict()[key], rtol=0.05, atol=1e-4)
    assert not torch.allclose(net.state_dict()[key], other.state_dict()[key], rtol=0.05)


def test_weights_are_put_back_when_the_loss_raises() -> None:
    net, sgd = network()
    before = copy.deepcopy(net.state_dict())
    valid = (draw(2)[0], torch.full((4,), 9))  # no such class
    with pytest.raises(IndexError):
        Architect(net, ARGS).step(*draw(1), *valid, ETA, sgd, unrolled=True)
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("unrolled", [False, True])
def test_a_step_returns_the_norm_of_its_gradient(unrolled: bool) -> None:
    """Scripts of early revisions give it to a meter."""
    net, sgd = network()
    norm = Architect(net, ARGS).step(*draw(1), *draw(2), ETA, sgd, unrolled=unrolled)
    both = torch.cat([alpha.grad.flatten() for alpha in net.arch_parameters()])
    assert norm.item() == pytest.approx(both.norm().item(), rel=1e-9)
    assert norm.item() > 0


def test_no_size_no_second_order() -> None:
    """With a step of size 0 the gradient is the first-order one."""
    net, sgd = network()
    train, valid = draw(1), draw(2)
    first = torch.autograd.grad(net._loss(*valid), net.arch_parameters())
    common = {"momentum": MOMENTUM, "weight_decay": DECAY, "network_optimizer": sgd}
    found = unrolled_alpha_gradients(net, train, valid, eta=0.0, **common)
    for gradient, expected in zip(found, first, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)

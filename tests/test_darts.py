# SPDX-License-Identifier: Apache-2.0
"""DARTS's two hypergradients: closed forms on a quadratic problem, differences on a supernet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from darts_fast.data import Dataset, load_data
from darts_fast.nn import Supernet, build_supernet
from darts_fast.nn.operations import Noise
from darts_fast.search import METHODS, Reporter, SearchConfig, Trainer
from darts_fast.search.loop import Loop
from darts_fast.search.methods import method_options
from darts_fast.search.methods.numeric import central_difference, global_norm, restored

MOMENTUM, DECAY, RATE = 0.9, 3e-4, 0.1


class Quadratic:
    """``L_train = w'Aw/2 - w'Ba`` and ``L_val = |w - c|^2/2 + a'Ca/2``, as the loop of a search."""

    train, valid = "train", "valid"
    learning_rate = RATE

    def __init__(self, buffer: bool) -> None:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        self.A = draw(9, 9)
        self.A = self.A @ self.A.T
        self.B, self.C, self.c = draw(9, 4), draw(4, 4), draw(9)
        self.C = self.C + self.C.T
        self.weights = [draw(9).requires_grad_()]
        self.alphas = [draw(4).requires_grad_()]
        self.buffer = draw(9) if buffer else torch.zeros(9, dtype=torch.float64)
        states = {self.weights[0]: {"momentum_buffer": self.buffer}} if buffer else {}
        self.optimizer = SimpleNamespace(state=states)
        self.net: Any = SimpleNamespace(arch_parameters=lambda: self.alphas)
        self.config = SearchConfig(momentum=MOMENTUM, weight_decay=DECAY)

    def gradients(self, batch: str, leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        (w,), (a,) = self.weights, self.alphas
        loss = w @ self.A @ w / 2 - w @ self.B @ a
        if batch == "valid":
            loss = (w - self.c).square().sum() / 2 + a @ self.C @ a / 2
        return loss.item(), list(torch.autograd.grad(loss, leaves))

    def gradient(self, method: str, **options: Any) -> Tensor:
        """Of the method, for alpha."""
        built = METHODS[method](self.net, self.config, method_options(method, options))
        found = built.gradient(self)  # type: ignore[arg-type]
        assert found is not None
        return found[1][0]


@pytest.mark.parametrize("buffer", [False, True])
def test_the_second_order_gradient_of_a_quadratic_problem_is_exact(buffer: bool) -> None:
    problem = Quadratic(buffer)
    (w,), (a,) = problem.weights, problem.alphas
    before = w.detach().clone()
    step = MOMENTUM * problem.buffer + problem.A @ w - problem.B @ a + DECAY * w
    ahead = w - RATE * step
    expected = (problem.C @ a + RATE * problem.B.T @ (ahead - problem.c)).detach()
    for found in (problem.gradient("darts-2nd"), problem.gradient("darts", unrolled=True)):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(w, before)


def test_the_first_order_gradient_of_a_quadratic_problem_is_exact_and_another_one() -> None:
    problem = Quadratic(buffer=True)
    (a,) = problem.alphas
    found = problem.gradient("darts")
    torch.testing.assert_close(found, (problem.C @ a).detach(), rtol=1e-14, atol=1e-14)
    assert (found - problem.gradient("darts-2nd")).norm() > 0.01 * found.norm()


# On a supernet


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_data("digits", limit=48)


def trainer_of(
    data: Dataset, space: str = "nasbench201", *, smooth: bool = False, **settings: Any
) -> Trainer:
    """After a step, so that there are momentum buffers; in double precision.

    smooth: tanh in place of every ReLU, and convolutions five times as large. Batch norms take that
    back, but a step of a given length is then shorter beside them.
    """
    torch.manual_seed(0)
    layers = 1 if space == "nasbench201" else 3
    net = build_supernet(space, channels=4, num_classes=10, layers=layers).double()
    with torch.no_grad():
        for alpha in net.arch_parameters():
            alpha.normal_()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(5.0 if smooth and parameter.ndim == 4 else 1.0)
    for module in list(net.modules()) if smooth else []:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Tanh())
    config = SearchConfig(batch_size=24, epochs=2, learning_rate=RATE, **settings)
    trainer = Trainer(net, data, config)
    trainer.run_epoch(Reporter(), lambda: None)
    net.train()
    trainer._loop.begin_step(
        trainer.batch(*trainer._search_batches.draw()), trainer._valid_batches.forever()
    )
    return trainer


def loss_after_a_step(trainer: Trainer, alphas: Sequence[Tensor]) -> float:
    """``L_val(w - xi g(w, alpha), alpha)`` on the batches of the loop, on a copy, step by step."""
    loop = trainer._loop
    net: Supernet = copy.deepcopy(trainer.net)
    with torch.no_grad():
        for own, alpha in zip(net.arch_parameters(), alphas, strict=True):
            own.copy_(alpha)
    weights = list(net.parameters())
    loss = functional.cross_entropy(net(loop.train.images), loop.train.labels)
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for weight, gradient, old in zip(weights, found, trainer.net.parameters(), strict=True):
            state = trainer.optimizer.state.get(old, {})
            move = gradient + DECAY * weight
            if "momentum_buffer" in state:
                move += MOMENTUM * state["momentum_buffer"]
            weight -= trainer.learning_rate * move
        return functional.cross_entropy(net(loop.valid.images), loop.valid.labels).item()


def slopes_after_a_step(trainer: Trainer) -> Tensor:
    """The gradient of `loss_after_a_step` by central differences, every third entry."""
    (alpha,) = (parameter.detach() for parameter in trainer.net.arch_parameters())
    slopes = []
    for place in range(0, alpha.numel(), 3):
        sides = []
        for step in (1e-5, -1e-5):
            moved = alpha.clone()
            moved.view(-1)[place] += step
            sides.append(loss_after_a_step(trainer, [moved]))
        slopes.append((sides[0] - sides[1]) / 2e-5)
    return torch.tensor(slopes, dtype=alpha.dtype)


def gradient_of(method: str, trainer: Trainer) -> Tensor:
    made = METHODS[method](trainer.net, trainer.config, method_options(method, {}))
    found = made.gradient(trainer._loop)
    assert found is not None
    return found[1][0].flatten()[::3]


def test_the_second_order_gradient_of_a_supernet_is_that_of_the_loss_after_a_step(
    digits: Dataset,
) -> None:
    """With the published step, which asks for a smooth loss."""
    trainer = trainer_of(digits, smooth=True)
    assert trainer.optimizer.state
    expected = slopes_after_a_step(trainer)
    found = gradient_of("darts-2nd", trainer)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (gradient_of("darts", trainer) - expected).norm() > 0.01 * expected.norm()


def test_with_a_small_step_it_is_so_among_relus_as_well(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(digits)
    expected = slopes_after_a_step(trainer)

    def small(*arguments: Any, scale: float) -> list[Tensor]:
        assert scale == 0.01  # as published
        return central_difference(*arguments, scale=1e-6)

    monkeypatch.setattr("darts_fast.search.methods.darts.central_difference", small)
    found = gradient_of("darts-2nd", trainer)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("method", ["darts", "darts-2nd"])
@pytest.mark.parametrize("space", ["s3", "nasbench201"])
def test_an_architecture_step_leaves_weights_and_buffers_bitwise(
    digits: Dataset, space: str, method: str
) -> None:
    trainer = trainer_of(digits, space, method=method)
    net = trainer.net
    kept = [*net.parameters(), *net.buffers()]
    before = [tensor.detach().clone() for tensor in kept]
    alphas = [alpha.detach().clone() for alpha in net.arch_parameters()]
    trainer._architecture_step()
    assert all(torch.equal(old, new) for old, new in zip(before, kept, strict=True))
    for old, new in zip(alphas, net.arch_parameters(), strict=True):
        assert not torch.equal(old, new)


def test_noise_operations_draw_alike_in_the_virtual_step_and_its_difference(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the difference is one of noise, divided by the step: ten times as large for a tenth of
    it."""
    trainer = trainer_of(digits, "s4", smooth=True)
    random = torch.get_rng_state()
    drawn: list[tuple[bool, Tensor]] = []
    gradients = Loop.gradients

    def watched(loop: Loop, batch: Any, *rest: Any) -> Any:
        found: list[Tensor] = []
        noises = [module for module in trainer.net.modules() if isinstance(module, Noise)]
        hooks = [
            noise.register_forward_hook(lambda _, __, out: found.append(out)) for noise in noises
        ]
        result = gradients(loop, batch, *rest)
        for hook in hooks:
            hook.remove()
        drawn.append((batch is loop.train, torch.cat([noise.flatten() for noise in found])))
        return result

    monkeypatch.setattr(Loop, "gradients", watched)
    found = []
    for scale in (1e-4, 1e-6):
        torch.set_rng_state(random)

        def small(*arguments: Any, scale: float, size: float = scale) -> list[Tensor]:
            return central_difference(*arguments, scale=size)

        monkeypatch.setattr("darts_fast.search.methods.darts.central_difference", small)
        found.append(gradient_of("darts-2nd", trainer))
    (first, *others), (valid,) = (
        [noise for is_train, noise in drawn[:4] if is_train is kind] for kind in (True, False)
    )
    assert len(others) == 2
    assert all(torch.equal(first, noise) for noise in others)
    assert abs(torch.corrcoef(torch.stack([first, valid]))[0, 1]) < 0.05  # noise of its own
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()
    assert not torch.equal(torch.get_rng_state(), random)


# The pieces


def test_central_differences_of_a_cubic_have_the_steps_error() -> None:
    """``L = sum(w^3) a``: d2L/dadw . v = 3 sum(w^2 v), and the difference adds e^2 sum(v^3)."""
    w = torch.tensor([1.0, -2.0], dtype=torch.float64)
    a = torch.tensor(0.5, dtype=torch.float64)
    v = torch.tensor([3.0, 4.0], dtype=torch.float64)

    def gradients(leaves: Sequence[Tensor]) -> tuple[float, list[Tensor]]:
        assert leaves[0] is a
        return 0.0, [w.pow(3).sum()]

    exact = 3 * (w.square() * v).sum()
    for scale, norm, step in ((0.01, None, 0.002), (0.1, None, 0.02), (0.1, 2.0, 0.05)):
        (found,) = central_difference(gradients, [w], [v], [a], scale=scale, norm=norm)
        torch.testing.assert_close(found, exact + step**2 * v.pow(3).sum(), rtol=1e-9, atol=0)
    assert w.tolist() == [1.0, -2.0]
    (nothing,) = central_difference(gradients, [w], [0 * v], [a])
    assert nothing == 0
    assert global_norm([v, v]) == pytest.approx(50**0.5)


def test_values_come_back_bitwise_even_after_an_error() -> None:
    w = torch.randn(5)
    before, storage = w.clone(), w.data_ptr()

    def fail() -> None:
        with restored([w]):
            w.mul_(1.1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(w, before)
    assert w.data_ptr() == storage
